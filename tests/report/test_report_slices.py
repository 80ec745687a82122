"""What the viewer gets to draw, and the words and plots around it."""

import base64
import io
import itertools
import json
import re

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.figure import Figure
from PIL import Image

from nnunet_imbal.errors import DataError
from nnunet_imbal.io import read_label
from nnunet_imbal.report._figures import dice_figure, recall_figure, size_figure
from nnunet_imbal.report._orientation import edge_letters, names_patient_axes, radiological_turn, turn_letters
from nnunet_imbal.report._slices import MAX_PIXELS, case_slices, mark_codes, runs
from nnunet_imbal.report._words import false_alarm_sentence, lesion_sentence

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9))


def unpack(flat, shape):
    """Naive twin of the viewer's codesOf."""
    codes = np.zeros(shape, np.uint8)
    for row, column, length, code in np.reshape(flat, (-1, 4)):
        codes[row, column : column + length] = code
    return codes


@given(arrays(np.uint8, SHAPES, elements=st.integers(0, 3)))
def test_runs_lose_nothing(codes):
    flat = runs(codes)
    np.testing.assert_array_equal(unpack(flat, codes.shape), codes)
    assert all(length > 0 and code for _, _, length, code in np.reshape(flat, (-1, 4)))


@given(arrays(bool, SHAPES), st.integers(1, 4), st.randoms(use_true_random=False))
def test_reduction_never_hides_a_mark(truth, factor, random):
    prediction = np.array([[random.random() < 0.3 for _ in row] for row in truth])
    reduced = mark_codes(truth, prediction, factor)
    for row in range(reduced.shape[0]):
        for column in range(reduced.shape[1]):
            block = np.s_[row * factor : (row + 1) * factor, column * factor : (column + 1) * factor]
            inside = mark_codes(truth[block], prediction[block])
            assert reduced[row, column] in inside
            assert bool(reduced[row, column]) == bool(inside.any())


@pytest.fixture
def packed(dataset):
    """Function (truth, prediction, image) -> what the viewer gets."""

    def pack(truth, prediction, image=None):
        content = {}
        dataset.add(truth, prediction, image).change(content.update)
        file = dataset.root / "imagesTs" / "case_001_0000.nii.gz"
        return case_slices(
            content["cases"][0], content["classes"], file if image is not None else None, {"connectivity": 26}
        )

    return pack


def blank(shape=(9, 6, 6)):
    return np.zeros(shape, np.uint8)


def test_opens_at_the_slice_with_most_of_the_missed_lesions(packed):
    truth, prediction = blank(), blank()
    truth[1:4, 0:4, 0:4] = 1  # large, but found
    prediction[2, 0, 0] = 1
    truth[6:9, 5, 5] = truth[7, 4, 5] = 1
    assert packed(truth, prediction)["classes"][0]["open"] == 7


def test_a_missed_lesion_leads_to_its_own_largest_cross_section(packed):
    truth = blank()
    truth[1:7, 1, 1] = truth[6, 0:3, 0:3] = 1  # a pear: its centroid is in slice 5
    truth[8, 4:6, 4:6] = 1
    one = packed(truth, blank())["classes"][0]
    assert [(place["slice"], place["area"]) for place in one["missed"]] == [(6, 9), (8, 4)]
    assert (one["missed"][1]["row"], one["missed"][1]["column"]) == (4.5, 4.5)
    assert one["open"] == 6


def test_label_maps_with_other_lesions_than_those_evaluated_are_refused(dataset):
    truth, content = blank(), {}
    truth[4, 1:3, 1:3] = 1
    dataset.add(truth, blank()).change(content.update)
    for other in (blank(), np.roll(truth, 1, axis=0) | np.eye(6, dtype=np.uint8)):
        dataset.write(dataset.root / "labelsTs" / "case_001.nii.gz", other)
        with pytest.raises(DataError, match="'case_001' are not those that were evaluated"):
            case_slices(content["cases"][0], content["classes"], None, content["settings"])


def turned(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return (cos, -sin, 0, sin, cos, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("direction", "letters"),
    [
        ((1, 0, 0, 0, 1, 0, 0, 0, 1), "RLAP"),
        ((-1, 0, 0, 0, -1, 0, 0, 0, 1), "LRPA"),  # NIfTI's RAS, as LPS cosines
        ((0, 0, 1, 1, 0, 0, 0, -1, 0), "APSI"),  # sagittal: X runs to the back, Y to the feet
        ((1, 0, 0, 0, 0, 1, 0, -1, 0), "RLSI"),  # coronal
        (turned(9), "RLAP"),
        (turned(-9), "RLAP"),
        (turned(11), None),
        (turned(45), None),
    ],
)
def test_letters_at_the_edges(direction, letters):
    edges = edge_letters(direction)
    assert letters == (edges and "".join(edges[side] for side in ("left", "right", "top", "bottom")))


def test_letters_agree_with_nibabel(tmp_path, rng):
    for axes in itertools.permutations(range(3)):
        affine = np.eye(4)
        affine[:3, :3] = np.eye(3)[:, axes] * rng.choice([-1, 1], 3)
        nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), affine), tmp_path / "a.nii")
        across, down, _ = nibabel.aff2axcodes(affine)
        edges = edge_letters(read_label(tmp_path / "a.nii").direction)
        assert (edges["right"], edges["bottom"]) == (across, down)


@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("RLAP", "RLAP"),
        ("LRPA", "RLAP"),
        ("LRAP", "RLAP"),
        ("LRIS", "RLSI"),
        ("RLSI", "RLSI"),
        ("PAIS", "APSI"),
        ("APIS", "APSI"),
        ("APLR", "APLR"),  # rows and columns would have to change places
        ("ISPA", "ISPA"),
    ],
)
def test_known_slices_hang_as_radiologists_expect(stored, shown):
    letters = dict(zip(("left", "right", "top", "bottom"), stored, strict=True))
    assert "".join(turn_letters(letters, radiological_turn(letters)).values()) == shown


AXIAL, SAGITTAL = (1, 0, 0, 0, 1, 0, 0, 0, 1), (0, 0, 1, 1, 0, 0, 0, -1, 0)  # both as radiologists hang them


@pytest.mark.parametrize("direction", [AXIAL, SAGITTAL])
@pytest.mark.parametrize("reverse", [(-1, 1), (1, -1), (-1, -1)])
@pytest.mark.parametrize("size", [8, MAX_PIXELS + 1])  # the larger is reduced, and its last block is cut off
def test_a_patient_looks_the_same_however_the_slices_are_stored(tmp_path, dataset_in, rng, direction, reverse, size):
    truth, prediction = (np.zeros((3, size, 7), np.uint8) for _ in range(2))
    truth[1, 1, 0] = truth[1, 1, 5] = truth[2, 4:7, 2] = 1  # equal lesions, so that a wrong number goes unnoticed
    prediction[1, 1, 5] = prediction[1, 6, 1] = prediction[0, size - 1, 6] = 1
    image, (down, across) = rng.random(truth.shape) * 100, reverse

    def shown(folder, down, across):
        stored = np.reshape(direction, (3, 3)) * (across, down, 1)
        case = dataset_in(tmp_path / folder, direction=stored.ravel().tolist())
        case.add(*(array[:, ::down, ::across] for array in (truth, prediction, image)))
        content = json.loads(case.save().read_text(encoding="utf-8"))
        file = case.root / "imagesTs" / "case_001_0000.nii.gz"
        return case_slices(content["cases"][0], content["classes"], file, content["settings"])

    hung, otherwise = shown("hung", 1, 1), shown("otherwise", down, across)
    found, expected = (
        sorted((place["slice"], place["row"], place["column"]) for place in packed["classes"][0].pop("false_alarms"))
        for packed in (otherwise, hung)
    )
    assert found == expected == [(0, size - 1, 6), (1, 6, 1)]
    assert otherwise == hung
    assert [(place["row"], place["column"]) for place in hung["classes"][0]["missed"]] == [(5, 2), (1, 0)]


def test_files_that_do_not_name_the_patient_get_no_letters(tmp_path):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.eye(4))
    nibabel.save(image, tmp_path / "known.nii.gz")
    image.header.set_qform(None, 0)
    image.header.set_sform(None, 0)
    nibabel.save(nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), None, image.header), tmp_path / "unknown.nii")
    sitk.WriteImage(sitk.Image(5, 4, 3, sitk.sitkUInt8), str(tmp_path / "space.nrrd"))
    (tmp_path / "none.nrrd").write_bytes(
        b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 2 2 2\nencoding: raw\n\n" + bytes(8)
    )
    names = ("known.nii.gz", "unknown.nii", "space.nrrd", "none.nrrd", "slice.png", "a.mha")
    assert [names_patient_axes(tmp_path / name) for name in names] == [True, False, True, False, False, True]


def test_opens_at_most_truth_if_all_was_found(packed):
    truth = blank()
    truth[3:6, 2, 2] = truth[5, 2, 3] = 1
    assert packed(truth, truth)["classes"][0]["open"] == 5


def test_opens_at_the_false_alarm_if_there_is_no_truth(packed):
    prediction = blank()
    prediction[8, 1, 1] = 1
    assert packed(blank(), prediction)["classes"][0]["open"] == 8


def test_opens_in_the_middle_if_nothing_is_marked(packed):
    assert packed(blank(), blank())["classes"][0]["open"] == 4


def test_marks_agree_with_the_voxels(packed, rng):
    truth, prediction = (rng.random((2, 5, 7)) < 0.4 for _ in range(2))
    sent = packed(truth, prediction)["classes"][0]["runs"]
    expected = truth + 2 * prediction
    np.testing.assert_array_equal([unpack(flat, (5, 7)) for flat in sent], expected)


def test_pictures_are_those_of_the_image(packed, rng):
    image = np.kron(rng.random((3, 4, 4)), np.ones((1, 16, 16))) * 1000 - 500
    slices = packed(blank(image.shape), blank(image.shape), image)
    for plane, coded in zip(image, slices["images"], strict=True):
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(coded))), float)
        assert np.corrcoef(shown.ravel(), plane.ravel())[0, 1] > 0.99


def test_a_constant_image_is_no_reason_to_fail(packed):
    assert len(packed(blank(), blank(), np.full((9, 6, 6), -1024.0))["images"]) == 9


def test_a_large_slice_is_reduced_for_display(packed):
    size = MAX_PIXELS + 2
    truth = blank((1, size, 40))
    truth[0, 4:6, 6:8] = 1
    slices = packed(truth, truth, truth.astype(float))
    assert (slices["factor"], slices["rows"], slices["columns"]) == (2, size // 2, 20)
    assert slices["classes"][0]["runs"] == [[2, 3, 1, 3]]
    assert Image.open(io.BytesIO(base64.b64decode(slices["images"][0]))).size == (20, size // 2)


def test_the_stretch_follows_the_spacing(packed):
    assert packed(blank(), blank())["aspect"] == pytest.approx(1.0 / 1.5)


def test_voxels_that_nobody_annotated_are_no_false_alarm(ignoring):
    truth, prediction = blank(), blank()
    truth[2] = 9
    truth[5, 1, 1] = prediction[5, 1, 1] = prediction[2, 3, 3] = 1
    content = {}
    ignoring.add(truth, prediction).change(content.update)
    case = content["cases"][0]
    sent = case_slices(case, content["classes"], None, content["settings"])["classes"][0]["runs"]
    assert case["classes"]["lesion"]["false_positives"] == []
    assert [z for z, flat in enumerate(sent) if flat] == [5]


@pytest.mark.parametrize(
    ("missed", "found", "sentence"),
    [
        ([], [], "The reference contains no lesion."),
        ([], [5.0], "The only lesion was found."),
        ([], [5.0, 6.0], "All 2 lesions were found."),
        ([2.4], [], "The only lesion was missed; its volume is 2.4 mm³."),
        ([2.4], [5.0], "1 of 2 lesions was missed; its volume is 2.4 mm³."),
        ([10, 12, 20, 25, 28, 900], [5], "6 of 7 lesions were missed; the largest missed one has 900 mm³."),
        ([10] * 5, [10] * 6, "5 of 11 lesions were missed; the largest missed one has 10 mm³."),
        (
            [10, 20, 30, 900],
            [15, 40, 50, 60, 1500, 2000],
            "4 of 10 lesions were missed: 3 of the 5 below the median volume of 45 mm³, 1 of the other 5; "
            "the largest missed one has 900 mm³.",
        ),
        ([1500.0, 24_000.0], [], "All 2 lesions were missed; the largest has 24 mL."),
    ],
)
def test_the_sentence_about_missed_lesions(missed, found, sentence):
    lesions = [{"volume_mm3": v, "detected": False} for v in missed]
    lesions += [{"volume_mm3": v, "detected": True} for v in found]
    assert lesion_sentence(lesions) == sentence


@pytest.mark.parametrize(
    ("numbers", "sentence"),
    [
        ((0, 1), "There was no false alarm in 1 case."),
        ((1, 2), "There was 1 false alarm in 2 cases (0.5 per case)."),
        ((0, 1, 1), "The model marked nothing."),
        ((0, 4, 4), "The model marked nothing in any of the 4 cases."),
        (
            (3, 4, 1),
            "There were 3 false alarms in 4 cases (0.8 per case); in 1 of 4 cases the model marked nothing.",
        ),
    ],
)
def test_the_sentence_about_false_alarms(numbers, sentence):
    assert false_alarm_sentence(*numbers) == sentence


def test_the_bars_have_a_legend():
    bins = [{"low_mm3": 8.0, "high_mm3": 8.0, "lesions": 5, "detected": 0, "recall": 0.0}]
    svg = recall_figure({"lesion": {"recall_by_size": bins}})
    assert re.findall(r">(found|missed)</text>", svg).count("missed") == 1


def test_a_box_needs_five_cases():
    def drawn(amount):
        cases = [{"classes": {"lesion": {"dice": 0.1 * n}}} for n in range(amount)]
        median = re.search(r'<path ([^>]*)stroke-width: 2"', dice_figure(cases, ["lesion"]))
        return 'd="' in median[1]  # a line without points has no d

    assert [drawn(amount) for amount in (2, 4, 5)] == [False, False, True]


def test_plots_show_names_as_they_are():
    name = "<b>$x_1$</b> & Läsion 病変"
    entry = {"dice": None, "lesions": [{"volume_mm3": 8.0, "detected": True}]}
    bins = [{"low_mm3": 8.0, "high_mm3": 8.0, "lesions": 1, "detected": 1, "recall": 1.0}]
    cases = [{"classes": {name: entry, "other": {"dice": 0.5, "lesions": []}}}]
    for svg in (
        dice_figure(cases, [name, "other"]),
        size_figure(cases, [name, "other"]),
        recall_figure({name: {"recall_by_size": bins}, "other": {"recall_by_size": bins}}),
    ):
        assert "&lt;b&gt;$x_1$&lt;/b&gt; &amp; Läsion 病変" in svg
        assert "<b>" not in svg


@pytest.mark.parametrize("volumes", [(210.0, 300.0, 450.0), (8.0, 8.0), (1.0, 1e6)])
def test_lesions_of_any_size_have_numbers_on_the_axis(volumes):
    lesions = [{"volume_mm3": volume, "detected": True} for volume in volumes]
    svg = size_figure([{"classes": {"lesion": {"lesions": lesions}}}], ["lesion"])
    assert 2 <= len(re.findall(r">[^<]+(?:mm³|mL)<", svg)) <= 12


@pytest.mark.parametrize("low", [0.07, 1.0, 20.0, 210.0, 9e3])
@pytest.mark.parametrize("ratio", [1.01, 1.4, 2.2, 5, 9, 12, 30, 95, 400, 990, 2e3, 1e5, 1e8])
def test_the_numbers_on_the_axis_stand_apart(low, ratio, monkeypatch):
    figures, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kw: figures.append(self) or save(self, *args, **kw))
    lesions = [{"volume_mm3": volume, "detected": True} for volume in (low, low * ratio)]
    longest = "lesion with a very long name indeed"
    size_figure([{"classes": {longest: {"lesions": lesions}}}], [longest])
    axes = figures[0].axes[0]
    left, right = axes.get_xlim()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if left <= tick.get_loc() <= right]
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.x0)
    assert len({label.get_text() for label in labels}) == len(labels) >= 2
    assert all(after.x0 - before.x1 > 4 for before, after in itertools.pairwise(boxes))
