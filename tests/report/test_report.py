"""The page as a reader or an attacker sees it, without a browser."""

import base64
import errno
import hashlib
import json
import os
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from typer.testing import CliRunner

from nnunet_imbal.cli import app
from nnunet_imbal.errors import DataError, GeometryError
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders
from nnunet_imbal.report import _write, write_report

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>'\"&{{7*7}}"


class Page(HTMLParser):
    """Tags, visible text and scripts of a page, as a browser's parser separates them."""

    def __init__(self, html):
        super().__init__()
        self.html, self.tags, self.scripts, self.words, self.within = html, [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.within.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.within and self.within.pop() != tag:
            pass

    def handle_data(self, data):
        if "script" in self.within:
            self.scripts[-1] += data
        elif "style" not in self.within:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def viewers(self):
        return [json.loads(script) for script in self.scripts[:-1]]


def write_page(evaluation, out, **options):
    return Page(write_report(evaluation, out, **options).read_text(encoding="utf-8"))


@pytest.fixture
def out(tmp_path):
    return tmp_path / "report.html"


def empty(shape=(4, 8, 8)):
    return np.zeros(shape, np.uint8)


def test_the_key_sentence_comes_first(two_lesions, out):
    page = write_page(two_lesions.save(), out, title="Trial 7")
    assert page.html.index("<h1>Trial 7</h1>") < page.html.index("1 of 2 lesions was missed; its volume is 18\xa0mm³.")
    assert "There was 1 false alarm in 1 case." in page.text
    assert page.html.index("false alarm in 1 case") < page.html.index("Summary</h2>")
    assert "not a medical device" in page.text


def test_settings_version_and_folders_are_named(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    last = two_lesions.root.name
    for words in (f"\N{HORIZONTAL ELLIPSIS}/{last}/predictions", f"/{last}/labelsTs", "26 neighbours", "1 mm"):
        assert words in page.text


def test_no_path_on_the_page_names_people_or_disks(two_lesions, out):
    image = two_lesions.root / "imagesTs" / "case_001_0000.nii.gz"
    for content in (np.ones((12, 20, 25)), np.full((12, 20, 24), np.nan)):
        two_lesions.write(image, content.astype(np.float32))
        page = write_page(two_lesions.save(), out)
        assert str(two_lesions.root.parent) not in page.html
        assert "imagesTs/case_001_0000.nii.gz" in page.text


def test_version_is_named(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    assert re.search(r"nnunet-imbal \d+\.\d+", page.text)


def test_the_page_asks_nothing_of_any_network(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    links = [value for _, attrs in page.tags for key, value in attrs.items() if key in ("src", "href", "xlink:href")]
    assert links
    assert all(link.startswith(("#", "data:")) for link in links)
    assert not re.search(r"url\((?!#)|@import|fetch\(|XMLHttpRequest", page.html)


def test_the_security_policy_admits_our_script_only(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    policy = next(attrs["content"] for _, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[-1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_names_never_become_markup_or_script(two_lesions, out):
    def rename(content):
        content["cases"][0]["case"] = content["prediction_folder"] = content["version"] = EVIL
        for mapping in (content["classes"], content["summary"], content["cases"][0]["classes"]):
            mapping[EVIL] = mapping.pop("lesion")

    plain = write_page(two_lesions.save(), out)
    page = write_page(two_lesions.change(rename), out, title=EVIL)
    tags = [[tag for tag, _ in each.tags if not tag.startswith(("path", "use", "g", "def"))] for each in (plain, page)]
    assert tags[0].count("script") == tags[1].count("script") == 2
    assert "img" not in tags[1]
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    assert page.viewers[0]["classes"][0]["name"] == EVIL
    assert "{{7*7}}" in page.text  # shown, not computed


def test_equal_input_gives_the_same_bytes(two_lesions, out):
    evaluation = two_lesions.save()
    first = write_report(evaluation, out).read_bytes()
    assert write_report(evaluation, out).read_bytes() == first


def test_each_id_occurs_once(many_classes, out):
    page = write_page(many_classes.save(), out)
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    targets = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert targets <= set(ids)


def test_controls_and_plots_have_names_for_screen_readers(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    for tag, attrs in page.tags:
        if tag == "canvas" or attrs.get("type") == "range" or attrs.get("class") == "plot":
            assert attrs["aria-label"]
    assert ("html", {"lang": "en"}) in page.tags


def test_worst_case_comes_first(dataset, out):
    truth = empty()
    truth[1, 2:4, 2:4] = 1
    dataset.add(truth, truth).add(truth, empty()).save()
    page = write_page(dataset.evaluation, out)
    assert page.html.index('id="case-0-name">case_002') < page.html.index('id="case-1-name">case_001')


def test_a_long_list_of_cases_is_cut_and_says_so(dataset, out, monkeypatch):
    monkeypatch.setattr(_write, "MAX_VIEWERS", 2)
    truth = empty()
    truth[1, 2:4, 2:4] = 1
    for _ in range(3):
        dataset.add(truth, truth)
    page = write_page(dataset.save(), out)
    assert len(page.viewers) == 2
    assert "Pictures of 2 of 3 cases are included, worst first" in page.text
    assert all(f"case_00{number}" in page.text for number in (1, 2, 3))


def test_a_heavy_page_is_cut_but_keeps_the_worst_case(two_lesions, out, monkeypatch):
    monkeypatch.setattr(_write, "MAX_BYTES", 1)
    two_lesions.add(empty(), empty())
    page = write_page(two_lesions.save(), out)
    assert len(page.viewers) == 1
    assert "Pictures of 1 of 2 cases" in page.text


def test_nothing_marked_by_anyone(dataset, out):
    page = write_page(dataset.add(empty(), empty()).save(), out)
    assert "The reference contains no lesion." in page.text
    assert "The model marked nothing." in page.text
    assert "\N{EN DASH}" in page.text  # Dice is not defined


def test_an_empty_prediction_is_named_and_never_praised(dataset, out):
    truth = empty()
    truth[1, 2:4, 2:4] = 1
    page = write_page(dataset.add(truth, empty()).save(), out)
    assert "The only lesion was missed; its volume is 18 mm³." in page.text.replace("\xa0", " ")
    assert page.text.count("model marked nothing") >= 3  # headline, tile, case
    assert "nothing marked" in page.text  # table of cases
    assert "no false alarm" not in page.text.lower()


def test_an_empty_prediction_among_others_is_counted(dataset, out):
    truth = empty()
    truth[1, 2:4, 2:4] = 1
    page = write_page(dataset.add(truth, empty()).add(truth, truth).save(), out)
    assert "There was no false alarm in 1 case; in 1 of 2 cases the model marked nothing." in page.text


def test_one_case_has_values_instead_of_statistics(dataset, out):
    truth = empty()
    truth[1, 2:4, 2:4] = 1
    page = write_page(dataset.add(truth, truth).save(), out)
    assert "Dice 1.00, surface Dice 1.00, HD95 0.0 mm" in page.text
    assert not re.search(r"Dice mean|mean,|Median Dice|whiskers|per case", page.text)
    more = write_page(dataset.add(truth, truth).evaluate_again(), out)
    assert all(word in more.text for word in ("Dice mean", "mean,", "Median Dice", "whiskers"))


def test_every_missed_lesion_and_false_alarm_is_listed(dataset, out):
    truth, prediction = empty((3, 12, 40)), empty((3, 12, 40))
    truth[1, 1, 1:38:2] = 1  # 19 lesions
    prediction[1, 8, 1:28:2] = 1  # 14 false alarms
    page = write_page(dataset.add(truth, prediction).save(), out)
    assert sum(tag == "button" for tag, _ in page.tags) == 19 + 14
    for words in ("Missed lesions (19)", "7 more", "False alarms (14)", "2 more"):
        assert words in page.text


def test_a_missed_lesion_of_the_list_leads_to_the_opening_slice(clinic, out):
    page = write_page(clinic.save(), out)
    for number, viewer in enumerate(page.viewers):
        article = page.html.split(f'id="case-{number}"')[1].split("<script")[0]
        lists = article.split('class="findings"')[1:]
        for packed, listed in zip(viewer["classes"], lists, strict=True):
            missed = listed.split("False alarms")[0]
            leads_to = {int(z) for z in re.findall(r'data-slice="(\d+)"', missed)}
            assert not leads_to or packed["open"] in leads_to


def test_the_channel_is_named_in_the_case_header(two_lesions, out):
    evaluation, description = two_lesions.save(), two_lesions.root / "dataset.json"
    for channels, shown in (({"0": "FLAIR<b>"}, ["FLAIR<b>"]), ({}, []), ([], [])):
        description.write_text(json.dumps({"channel_names": channels}), encoding="utf-8")
        page = write_page(evaluation, out)
        header = page.text.split("turn the wheel")[1].split("lesion found")[0]
        assert [name for name in ("FLAIR<b>",) if name in header] == shown
    description.write_text("{", encoding="utf-8")
    write_page(evaluation, out)


def test_the_sides_of_the_patient_are_in_the_text_too(two_lesions, out):
    page = write_page(two_lesions.save(), out)
    label = next(attrs["aria-label"] for tag, attrs in page.tags if tag == "canvas")
    assert "Left edge: patient's right (R)." in label
    assert "Bottom edge: patient's back (P)." in label


def test_many_classes_are_named_and_the_plots_show_the_worst(many_classes, out):
    page = write_page(many_classes.save(), out)
    assert "The plots show the 12 classes with the lowest recall." in page.text
    assert "The table below has the results of 9 other classes." in page.text
    assert page.text.count("class with a name of rather a great length 15") >= 3


def test_a_single_slice(dataset, out):
    truth = empty((1, 16, 16))
    truth[0, 3:6, 3:6] = 1
    page = write_page(dataset.add(truth, truth, np.ones(truth.shape)).save(), out)
    assert len(page.viewers[0]["images"]) == 1


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (None, "No image was found"),
        (np.full((12, 20, 24), np.nan), "is nan"),
        (np.ones((12, 20, 25)), "number of voxels along axis X is 25 and 24"),
    ],
)
def test_an_image_that_cannot_be_shown_is_left_out_and_the_page_says_why(two_lesions, out, image, reason):
    from_file = two_lesions.root / "imagesTs" / "case_001_0000.nii.gz"
    from_file.unlink()
    if image is not None:
        two_lesions.write(from_file, image.astype(np.float32))
    page = write_page(two_lesions.save(), out)
    assert page.viewers[0]["images"] == []
    assert reason in page.viewers[0]["note"]
    assert "shown on black" in page.text


def test_images_from_a_named_folder(two_lesions, out, tmp_path):
    (two_lesions.root / "imagesTs").rename(tmp_path / "elsewhere")
    assert write_page(two_lesions.save(), out).viewers[0]["images"] == []
    assert len(write_page(two_lesions.evaluation, out, images=tmp_path / "elsewhere").viewers[0]["images"]) == 12


def test_missing_evaluation(out, tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json"):
        write_report(tmp_path / "nowhere.json", out)
    assert not out.exists()


def test_other_schema(two_lesions, out):
    with pytest.raises(DataError, match="expected 'nnunet-imbal/evaluation/2'"):
        write_report(two_lesions.change(lambda content: content.update(schema="other/2")), out)


@pytest.mark.parametrize(
    ("break_it", "lacking"),
    [
        (lambda content: content["summary"].clear(), "summary of lesion"),
        (lambda content: content["summary"]["lesion"].pop("recall_by_size"), "summary of lesion: recall_by_size"),
        (lambda content: content["settings"].pop("connectivity"), "settings: connectivity"),
        (lambda content: content.update(cases=None), "cases"),
        (lambda content: content.update(cases=[]), "cases"),
        (lambda content: content["cases"][0].pop("spacing_mm"), "case 1: spacing_mm"),
        (lambda content: content["cases"][0]["classes"].clear(), "case 1: class lesion"),
        (lambda content: content["cases"][0]["classes"]["lesion"].pop("dice"), "case 1: class lesion: dice"),
    ],
)
def test_incomplete_evaluation(two_lesions, out, break_it, lacking):
    with pytest.raises(DataError, match=f"lacks {lacking}; write it again"):
        write_report(two_lesions.change(break_it), out)
    assert not out.exists()


@pytest.mark.parametrize(("folder", "role"), [("predictions", "prediction"), ("labelsTs", "reference")])
def test_a_label_map_that_moved_is_named(two_lesions, out, folder, role):
    evaluation = two_lesions.save()
    (two_lesions.root / folder / "case_001.nii.gz").unlink()
    with pytest.raises(
        DataError, match=rf"the {role} of case 'case_001' .*{folder}.case_001\.nii\.gz.*put the file back"
    ):
        write_report(evaluation, out)


def test_a_label_map_that_changed_its_shape_is_named(two_lesions, out):
    evaluation = two_lesions.save()
    two_lesions.write(two_lesions.root / "predictions" / "case_001.nii.gz", empty())
    with pytest.raises(GeometryError, match=r"predictions.case_001\.nii\.gz has shape \(4, 8, 8\), but \(12, 20, 24\)"):
        write_report(evaluation, out)


def test_images_must_be_a_folder(two_lesions, out):
    with pytest.raises(DataError, match="nowhere is not a folder"):
        write_report(two_lesions.save(), out, images=two_lesions.root / "nowhere")


def test_no_file_but_an_older_report_is_overwritten(two_lesions, out, tmp_path):
    evaluation = two_lesions.save()
    before = evaluation.read_bytes()
    with pytest.raises(DataError, match="is no report of ours"):
        write_report(evaluation, evaluation)
    assert evaluation.read_bytes() == before
    with pytest.raises(DataError, match="is a folder"):
        write_report(evaluation, tmp_path)
    write_report(evaluation, out)
    write_report(evaluation, out)


def test_the_folder_of_the_report_is_made(two_lesions, tmp_path):
    assert write_report(two_lesions.save(), tmp_path / "new" / "deep" / "report.html").is_file()


def test_a_full_disk_leaves_the_old_report(two_lesions, out, monkeypatch):
    write_report(two_lesions.save(), out, title="Old")
    before, names = out.read_bytes(), sorted(two_lesions.root.rglob("*"))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(DataError, match="No space left"):
        write_report(two_lesions.evaluation, out, title="New")
    assert out.read_bytes() == before
    assert sorted(two_lesions.root.rglob("*")) == names


def test_the_command(two_lesions, out):
    result = CliRunner().invoke(app, ["report", str(two_lesions.save()), "--out", str(out), "--title", "By command"])
    assert result.exit_code == 0, result.output
    assert result.output.strip().endswith("report.html")
    assert "<h1>By command</h1>" in out.read_text(encoding="utf-8")


def test_scores_lesion_by_lesion(two_lesions, out):
    two_lesions.save()
    settings = EvaluationSettings(lesion_rule="brats2023-met", matching_threshold=0.25)
    folders = two_lesions.root / "predictions", two_lesions.root / "labelsTs"
    result = evaluate_folders(*folders, two_lesions.evaluation, settings=settings)
    page = write_report(two_lesions.evaluation, out).read_text(encoding="utf-8")
    summary = result["summary"]["lesion"]
    for score in (summary["cc_dice"], summary["panoptic"]["pq"], summary["lesionwise"]["dice"]):
        assert f"<td>{score['mean']:.2f}</td>" in page
    assert "brats2023-met" in page
    assert "whose overlap (IoU) reaches 0.25" in page
    two_lesions.evaluate_again()
    assert "Lesion-wise" not in write_report(two_lesions.evaluation, out).read_text(encoding="utf-8")
