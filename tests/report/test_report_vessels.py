"""The topology part of the page: table, centre lines, circles where the true line is missed."""

import re

import numpy as np
import pytest

from nnunet_imbal.errors import DataError
from nnunet_imbal.evaluation import EvaluationSettings, evaluate_folders, load_evaluation
from nnunet_imbal.report import _vessels, write_report
from nnunet_imbal.report._vessels import vessel_pictures


@pytest.fixture
def measured():
    """Function (dataset) -> its evaluation file, with topology."""

    def measure(dataset):
        folders = dataset.root / "predictions", dataset.root / "labelsTs"
        evaluate_folders(*folders, dataset.evaluation, settings=EvaluationSettings(topology=True))
        return dataset.evaluation

    return measure


def fork(shape=(12, 14, 40)):
    """Two parallel vessels along X, three voxels thick."""
    labels = np.zeros(shape, np.uint8)
    labels[5:8, 2:5, 2:38] = labels[5:8, 9:12, 2:38] = 1
    return labels


def cut():
    found = fork()
    found[:, 2:5, 18:24] = 0  # a gap of six slices
    return found


def circles(svg):
    return re.findall(r'<circle class="gap" cx="([\d.]+)" cy="([\d.]+)" r="([\d.]+)"', svg)


def test_a_gap_is_circled_where_it_is(dataset, measured):
    dataset.add(fork(), cut())
    (picture,) = vessel_pictures(load_evaluation(measured(dataset)))
    assert (picture["gaps"], picture["circled"], len(picture["views"])) == (1, 1, 2)
    above = picture["views"][0]
    ((x, y, radius),) = circles(above["svg"])
    # X 18..24 of 1.5 mm and Y 3 of 1 mm; the picture leaves four voxels around the vessels, but stays in the image
    assert (float(x), float(y)) == (pytest.approx(21 * 1.5), pytest.approx(3.5))
    assert 4.5 < float(radius) < 7
    assert above["letters"] == {"left": "R", "right": "L", "top": "A", "bottom": "P"}


def test_head_is_on_top_when_seen_along_the_slices(dataset, measured):
    dataset.add(fork(), cut())
    (picture,) = vessel_pictures(load_evaluation(measured(dataset)))
    along = picture["views"][1]
    assert along["letters"] == {"left": "R", "right": "L", "top": "S", "bottom": "I"}
    ((x, y, _),) = circles(along["svg"])
    # slices 1..11 are shown, the last on top: slice 6 is the sixth of 11 from above
    assert (float(x), float(y)) == (pytest.approx(21 * 1.5), pytest.approx(5.5 * 3))


def test_page_shows_table_and_pictures(dataset, measured, tmp_path):
    evaluation = measured(dataset.add(fork(), fork()).add(fork(), cut()))
    page = write_report(evaluation, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Are the vessels whole?" in page
    assert "1 missed stretch of the centre line" in page
    assert page.index("case_002</b>") < page.index("case_001</b>")  # lowest clDice first
    mean = load_evaluation(evaluation)["summary"]["lesion"]["topology"]["cldice"]["mean"]
    assert f"<td>{mean:.2f}</td>" in page
    assert "Which pieces were found?" in page
    assert "All 4 pieces were found." in page
    assert "of the centre line was found; the number of pieces is off by 0.5 on average" in page
    assert "lesions" not in page.split("<body>")[1].split("<script")[0].lower()  # the class is called "lesion"


def test_without_topology_the_page_says_nothing_of_it(two_lesions, tmp_path):
    page = write_report(two_lesions.save(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Are the vessels whole?" not in page
    older = two_lesions.change(lambda content: content.pop("topology"))
    write_report(older, tmp_path / "report.html")


def test_many_gaps_and_cases_are_cut_and_the_page_says_so(dataset, measured, tmp_path, monkeypatch):
    monkeypatch.setattr(_vessels, "MAX_CIRCLES", 2)
    monkeypatch.setattr(_vessels, "MAX_PICTURES", 1)
    found = fork()
    found[:, :, 6:36:6] = found[:, :, 7:36:6] = 0
    evaluation = measured(dataset.add(fork(), found).add(fork(), fork()))
    (picture,) = vessel_pictures(load_evaluation(evaluation))
    assert (picture["gaps"], picture["circled"]) == (10, 2)
    assert len(circles(picture["views"][0]["svg"])) == 2
    page = write_report(evaluation, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "the 2 longest circled" in page


@pytest.mark.parametrize("empty", ["truth", "prediction"])
def test_one_empty_map_is_drawn(dataset, measured, empty):
    maps = [fork() * (empty != "truth"), fork() * (empty != "prediction")]
    (picture,) = vessel_pictures(load_evaluation(measured(dataset.add(*maps))))
    assert picture["cldice"] == 0
    assert picture["gaps"] == (0 if empty == "truth" else 2)


def test_nothing_anywhere_is_not_drawn(dataset, measured, tmp_path):
    evaluation = measured(dataset.add(fork() * 0, fork() * 0))
    assert vessel_pictures(load_evaluation(evaluation)) == []
    write_report(evaluation, tmp_path / "report.html")


def test_a_single_slice_has_one_view(dataset, measured):
    (picture,) = vessel_pictures(load_evaluation(measured(dataset.add(fork()[6:7], cut()[6:7]))))
    assert len(picture["views"]) == 1


def test_what_nobody_looked_at_is_not_drawn(ignoring, measured):
    truth = fork()
    truth[:, :7] = 9  # the broken vessel lies where nobody looked
    (picture,) = vessel_pictures(load_evaluation(measured(ignoring.add(truth, cut()))))
    assert (picture["gaps"], picture["cldice"]) == (0, 1)


def test_incomplete_topology_is_named(dataset, measured, tmp_path):
    measured(dataset.add(fork(), cut()))
    dataset.change(lambda content: content["summary"]["lesion"].pop("topology"))
    with pytest.raises(DataError, match="summary of lesion: topology"):
        write_report(dataset.evaluation, tmp_path / "report.html")
