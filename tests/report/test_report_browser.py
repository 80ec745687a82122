"""The report in a real browser: it opens from disk, draws, listens to keys and clicks, and keeps quiet."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_imbal.report import write_report

pytestmark = pytest.mark.browser

webdriver = pytest.importorskip("selenium.webdriver")

ARTIFACTS = Path(os.environ.get("NNUNET_IMBAL_TEST_ARTIFACTS") or Path(__file__).parents[1] / "artifacts")
FOUND, MISSED, FALSE_ALARM = (86, 180, 233), (255, 176, 0), (232, 72, 138)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Chromium and its driver (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for word in ("headless=new", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{word}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Viewer:
    """One case of the open page, by what a user sees and touches."""

    def __init__(self, browser, number=0):
        self.browser, self.article = browser, browser.find_element("id", f"case-{number}")

    def find(self, selector):
        return self.article.find_element("css selector", selector)

    @property
    def position(self):
        return self.find("output").text

    def press(self, key):
        self.find("canvas").send_keys(key)

    def click(self, selector):
        self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.find(selector))
        self.find(selector).click()

    def amount(self, colour):
        """Pixels of the canvas near a colour, once the picture is decoded."""
        script = """
            const [canvas, colour, done] = arguments;
            setTimeout(() => {
              const copy = new OffscreenCanvas(canvas.width, canvas.height);
              const pen = copy.getContext("2d", { willReadFrequently: true });
              pen.drawImage(canvas, 0, 0);
              const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
              let amount = 0;
              for (let i = 0; i < data.length; i += 4)
                amount += colour.every((value, c) => Math.abs(data[i + c] - value) < 12);
              done(amount);
            }, 150);"""
        return self.browser.execute_async_script(script, self.find("canvas"), colour)


@pytest.fixture
def opened(browser, tmp_path):
    """Function (dataset) -> viewer of its first case; no page may write to the console."""

    def open_report(dataset):
        browser.get(write_report(dataset.save(), tmp_path / "report.html").as_uri())
        return Viewer(browser)

    yield open_report
    assert browser.get_log("browser") == []


def test_opens_at_the_missed_lesion_and_paints_it(two_lesions, opened):
    viewer = opened(two_lesions)
    assert viewer.position == "10 / 12"
    assert viewer.amount(MISSED) > 50
    assert viewer.amount(FOUND) == viewer.amount(FALSE_ALARM) == 0


def test_keys_move_through_the_slices_and_stop_at_the_ends(two_lesions, opened):
    viewer = opened(two_lesions)
    for key, position in (("\ue013", 11), ("\ue015", 10), ("\ue010", 12), ("\ue013", 12), ("\ue011", 1), ("\ue015", 1)):
        viewer.press(key)  # up, down, end, up, home, down
        assert viewer.position == f"{position} / 12"


def test_the_slider_moves_too(two_lesions, opened):
    viewer = opened(two_lesions)
    viewer.find("input[type=range]").send_keys("\ue012")  # left
    assert viewer.position == "9 / 12"


def test_the_wheel_turns_slices_only_after_a_click(two_lesions, opened, browser):
    viewer = opened(two_lesions)
    turn = "arguments[0].dispatchEvent(new WheelEvent('wheel', {deltaY: 100, cancelable: true}))"
    browser.execute_script(turn, viewer.find("canvas"))
    assert viewer.position == "10 / 12"
    viewer.click("canvas")
    browser.execute_script(turn, viewer.find("canvas"))
    assert viewer.position == "9 / 12"


def test_a_click_jumps_to_a_false_alarm_and_back_to_the_missed_lesion(two_lesions, opened):
    viewer = opened(two_lesions)
    viewer.click(".jumps.false-alarm button")
    assert viewer.position == "2 / 12"
    assert viewer.amount(FALSE_ALARM) > 0
    viewer.click(".jumps.missed button")
    assert viewer.position == "10 / 12"
    assert viewer.find(".jumps.missed button").get_attribute("aria-pressed") == "true"
    assert viewer.find(".jumps.false-alarm button").get_attribute("aria-pressed") == "false"


def test_marks_can_be_hidden_and_enlarged(two_lesions, opened):
    viewer = opened(two_lesions)
    small = viewer.amount(MISSED)
    viewer.click(".zoom input")
    assert viewer.amount(MISSED) > 2 * small
    viewer.click("input[value=off] + span")
    assert viewer.amount(MISSED) == 0


def test_the_sides_of_the_patient_are_painted_unless_they_are_unknown(two_lesions, opened):
    (two_lesions.root / "imagesTs" / "case_001_0000.nii.gz").unlink()
    viewer = opened(two_lesions)
    assert viewer.amount((255, 255, 255)) > 200
    for name in ("labelsTs", "predictions"):
        path = two_lesions.root / name / "case_001.nii.gz"
        labels = sitk.ReadImage(str(path))
        labels.SetDirection((0.8, -0.6, 0, 0.6, 0.8, 0, 0, 0, 1))
        sitk.WriteImage(labels, str(path))
    viewer = opened(two_lesions)
    assert viewer.amount((255, 255, 255)) == 0
    assert "No letters for the sides of the patient" in viewer.article.text


def test_lesions_beyond_the_first_twelve_are_one_click_away(dataset, opened, browser):
    truth = np.zeros((3, 24, 40), np.uint8)
    truth[1, 1, 1:38:2] = truth[2, 8, 5] = 1  # 20 lesions
    viewer = opened(dataset.add(truth, np.zeros_like(truth)))
    buttons = viewer.article.find_elements("css selector", ".jumps.missed button")
    assert sum(button.is_displayed() for button in buttons) == 12
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    assert sum(button.is_displayed() for button in buttons) == 20
    viewer.click(".more summary")
    assert sum(button.is_displayed() for button in buttons) == 12
    viewer.click(".more summary")
    assert sum(button.is_displayed() for button in buttons) == 20
    viewer.click(".more li:last-child button")
    assert viewer.position == "3 / 3"
    _keep_screenshot(browser, "report_one_case.png")


def test_the_class_can_be_changed(clinic, opened, browser):
    viewer = opened(clinic)
    shown = [part.is_displayed() for part in viewer.article.find_elements("css selector", ".findings")]
    assert sorted(shown) == [False, True]
    viewer.find("select option:not(:checked)").click()
    changed = [part.is_displayed() for part in viewer.article.find_elements("css selector", ".findings")]
    assert changed == shown[::-1]
    _keep_screenshot(browser, "report.png")


def test_hostile_names_run_nothing(two_lesions, browser, tmp_path):
    def rename(content):
        content["cases"][0]["case"] = "<script>alert(1)</script><img src=x onerror=alert(2)>"

    browser.get(write_report(two_lesions.change(rename), tmp_path / "report.html").as_uri())
    assert browser.find_element("id", "case-0-name").text.startswith("<script>alert(1)")
    assert browser.get_log("browser") == []  # an open alert would end this call with an error


@pytest.mark.parametrize("width", [390, 1180])
def test_the_page_never_scrolls_sideways(clinic, opened, browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        opened(clinic)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def _keep_screenshot(browser, name):
    height = browser.execute_script("return document.documentElement.scrollHeight")
    metrics = {"width": 1180, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.execute_script("scrollTo(0, 0)")
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(ARTIFACTS / name))
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
