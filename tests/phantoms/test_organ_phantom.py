"""The organ phantom: sizes and frequencies are those that were measured, and its truth is the truth."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from scipy.ndimage import binary_dilation, binary_erosion

from nnunet_imbal.check import check_dataset
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.laterality import paired_labels
from nnunet_imbal.phantoms import OrganPhantom, write_dataset
from nnunet_imbal.phantoms._abdomen import LESIONS, MEASURED_ML, ORGANS, Ellipsoids
from nnunet_imbal.phantoms.organs import _largest_share, _take

COARSE = OrganPhantom(shape=(56, 44, 60), spacing=(6.0, 6.0, 6.0))
FINE = OrganPhantom(shape=(84, 66, 90), spacing=(4.0, 4.0, 4.0))
NAMES = {value: name for name, value in OrganPhantom.labels.items()}
# Which organs lie side by side in nearly everyone, whatever their size.
NEIGHBOURS = [
    ("aorta", "iliac_artery_left"),
    ("kidney_right", "adrenal_right"),
    ("kidney_left", "adrenal_left"),
    ("portal_vein", "liver"),
    ("inferior_vena_cava", "liver"),
    ("colon", "small_bowel"),
    ("liver", "colon"),
    ("spleen", "colon"),
]


@pytest.fixture(scope="module")
def cases():
    return [FINE.training_case(seed=1, index=index) for index in range(3)]


@pytest.fixture(scope="module")
def draws():
    rng = np.random.default_rng(0)
    return [OrganPhantom().draw_volumes(rng) for _ in range(2000)]


def test_volumes_have_the_measured_medians(draws):
    for name, median in MEASURED_ML.items():
        logs = np.log([case[name] for case in draws if name in case])
        # The standard error of a median is 1.25 standard errors of the mean; 25 classes, so 4 of them.
        assert np.median(logs) == pytest.approx(math.log(median), abs=4 * 1.25 * logs.std() / math.sqrt(len(logs)))
        assert logs.std() == pytest.approx(0.4 if ORGANS[name].hollow else 0.2, rel=0.1)


def test_classes_are_as_frequent_as_declared(draws):
    counts = Counter(name for case in draws for name in case)
    for name in OrganPhantom.labels:
        if name != "background":
            declared = OrganPhantom().prevalence.get(name, 1.0)
            error = math.sqrt(declared * (1 - declared) / len(draws))
            assert counts[name] / len(draws) == pytest.approx(declared, abs=4 * error)
    assert all(0.1 <= OrganPhantom().prevalence[name] <= 0.3 for name in LESIONS)


def test_few_classes_hold_nearly_all_the_volume(cases):
    for case in cases:
        voxels = np.sort(np.bincount(case.label.ravel(), minlength=len(NAMES))[1:])[::-1]
        present = voxels[voxels > 0]
        assert len(present) >= 23
        assert present[:5].sum() > 0.75 * present.sum()  # measured: 0.83
        assert present[-9:].sum() < 0.03 * present.sum()  # measured: 0.01
        assert present[0] > 200 * present[-1]  # measured: 900


def test_voxels_have_the_volume_that_the_truth_says(cases):
    for case in cases:
        assert {organ["class"] for organ in case.truth["organs"]} == {
            NAMES[value] for value in np.unique(case.label) if value
        }
        for organ in case.truth["organs"]:
            voxels = int((case.label == organ["id"]).sum())
            assert voxels == organ["voxels"]
            assert NAMES[organ["id"]] == organ["class"]
            # Thin bodies lose voxels of which they fill less than a half.
            tolerance = 0.05 if organ["volume_ml"] > 100 else 0.45
            assert voxels * 0.064 == pytest.approx(organ["volume_ml"], rel=tolerance)


def test_organs_have_the_volume_that_was_drawn():
    phantom = OrganPhantom(COARSE.shape, COARSE.spacing, prevalence=dict.fromkeys(LESIONS, 0.0))
    rng = np.random.default_rng([4, 5, 0])  # seed, stream of training cases, index
    wanted = phantom.draw_volumes(rng)
    case = phantom.training_case(4, 0)
    assert len(wanted) == len(case.truth["organs"]) == 25
    for organ in case.truth["organs"]:
        assert organ["volume_ml"] == pytest.approx(wanted[organ["class"]], abs=0.5 * 0.027 + 1e-9)


def test_sides_are_classes_of_their_own_and_lie_on_their_side(cases):
    pairs = paired_labels(OrganPhantom.labels)
    assert len(pairs) == 6
    for case in cases:
        for pair in pairs:
            right, left = sorted(pair, key=lambda value: NAMES[value].endswith("left"))
            right_x, left_x = (np.argwhere(case.label == value)[:, 0].mean() for value in (right, left))
            assert right_x > 44.5 > left_x  # X grows to the patient's right; the body is in the middle


def touching(label):
    pairs = set()
    for axis in range(3):
        rows = np.moveaxis(label, axis, 0)
        both = np.stack([rows[:-1].ravel(), rows[1:].ravel()])
        pairs |= set(map(tuple, np.unique(both[:, both[0] != both[1]], axis=1).T.tolist()))
    return {frozenset(NAMES[value] for value in pair) for pair in pairs}


def test_neighbours_touch(cases):
    contacts = Counter(pair for case in cases for pair in touching(case.label))
    assert all(contacts[frozenset(pair)] >= 2 for pair in NEIGHBOURS)


def test_neighbours_overlap_in_grey_value(cases):
    inner = {name: [] for name in ("liver", "spleen")}
    for case in cases:
        for name, values in inner.items():
            values.append(case.image[binary_erosion(case.label == OrganPhantom.labels[name])])
    liver, spleen = (np.concatenate(values) for values in inner.values())
    assert liver.mean() == pytest.approx(89, abs=8)
    assert spleen.mean() == pytest.approx(80, abs=8)
    assert 15 < liver.std() < 25
    assert abs(liver.mean() - spleen.mean()) < liver.std()


def test_surfaces_show_partial_volume():
    case = OrganPhantom(COARSE.shape, COARSE.spacing, noise=0.0).training_case(0, 0)
    kidney = case.label == OrganPhantom.labels["kidney_right"]
    core, rim = case.image[binary_erosion(kidney)], case.image[kidney & ~binary_erosion(kidney)]
    assert (rim < core.min() - 20).mean() > 0.2  # the fat around it has -100
    assert np.percentile(core, 5) > 100


def test_lesions_lie_in_the_organ_that_the_truth_names():
    phantom = OrganPhantom(FINE.shape, FINE.spacing, prevalence=dict.fromkeys(LESIONS, 1.0))
    case = phantom.training_case(2, 0)
    assert set(case.truth["lesions"]) == set(LESIONS)
    for name, host in case.truth["lesions"].items():
        assert host in LESIONS[name].hosts
        lesion = case.label == OrganPhantom.labels[name]
        around = case.label[binary_dilation(lesion) & ~lesion]
        assert lesion.any()
        assert np.bincount(around).argmax() == OrganPhantom.labels[host]


def test_classes_can_be_left_out():
    phantom = OrganPhantom(COARSE.shape, COARSE.spacing, prevalence={"liver": 0.0, "colon": 0.0, "kidney_cyst": 0.0})
    case = phantom.training_case(0, 0)
    assert {"liver", "colon", "liver_tumour", "kidney_cyst"} <= set(case.truth["absent"])
    assert not np.isin(case.label, [OrganPhantom.labels[name] for name in case.truth["absent"]]).any()


def test_same_seed_same_voxels():
    one, same = COARSE.training_case(5, 2), COARSE.training_case(5, 2)
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.label, same.label)
    assert one.truth == same.truth
    for other in (COARSE.training_case(5, 3), COARSE.training_case(6, 2), COARSE.test_case(5, 2)):
        assert (other.image != one.image).mean() > 0.5


def test_axes_of_the_file_are_x_y_z():
    case = OrganPhantom(shape=(42, 52, 60), spacing=(8.0, 5.0, 6.0)).training_case(0, 0)
    assert case.image.shape == case.label.shape == case.instances.shape == (60, 52, 42)
    assert np.diag(case.affine).tolist() == [6.0, 5.0, 8.0, 1.0]
    np.testing.assert_array_equal(case.instances, case.label)


def test_dataset_is_one_for_nnunet(tmp_path):
    everything = OrganPhantom(COARSE.shape, COARSE.spacing, prevalence={})
    folder = write_dataset(everything, tmp_path, cases=5, test_cases=1)
    assert folder.name == "Dataset900_PhantomOrgans"
    assert check_dataset(folder) == []
    declared = json.loads((folder / "dataset.json").read_text())
    assert declared["channel_names"] == {"0": "CT"}
    assert len(declared["labels"]) == 28


def test_level_is_the_nearest_ellipsoid():
    axes = tuple(np.linspace(-10, 10, n) for n in (11, 14, 9))
    body = Ellipsoids(np.array([[0.0, 1, 2], [3, -2, 0]]), np.array([3.0, 4.0]), (1.0, 0.5, 2.0))
    box, level = body.level(axes, reach=1.5)
    for place in np.ndindex(11, 14, 9):
        point = np.array([axis[i] for axis, i in zip(axes, place, strict=True)])
        wanted = min(
            math.sqrt(sum(((p - c) / (r * s)) ** 2 for p, c, s in zip(point, centre, body.shape, strict=True)))
            for centre, r in zip(body.centres, body.radii, strict=True)
        )
        within = all(part.start <= i < part.stop for part, i in zip(box, place, strict=True))
        if wanted <= 1.5:
            assert within
            got = level[tuple(i - part.start for part, i in zip(box, place, strict=True))]
            assert got == pytest.approx(wanted, abs=1e-5)


def test_only_free_voxels_are_taken_and_as_many_as_wanted():
    axes = tuple(np.linspace(-20, 20, 21) for _ in range(3))
    owner = np.zeros((21, 21, 21), np.uint8)
    owner[:, :, :10] = 7
    ball = Ellipsoids(np.zeros((1, 3)), np.array([10.0]))
    _take(owner, axes, ball, 3, 150.0, np.random.default_rng(0))
    assert (owner == 3).sum() == 150
    assert (owner[:, :, :10] == 7).all()
    _take(owner, axes, ball, 4, 40.0, np.random.default_rng(0), taken_from=7)
    assert (owner == 4).sum() == 40
    assert (owner[:, :, 10:] != 4).all()


def test_a_voxel_belongs_to_whom_most_of_it_belongs():
    rng = np.random.default_rng(0)
    owner = rng.choice(np.array([0, 1, 2, 27, 254, 255], np.uint8), size=(6, 8, 4))
    got = _largest_share(owner, 2)
    for z, y, x in np.ndindex(3, 4, 2):
        block = owner[2 * z : 2 * z + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        counts = Counter(0 if value >= 254 else int(value) for value in block)
        best = max(counts.values())
        assert got[z, y, x] == min(value for value, count in counts.items() if count == best)


@pytest.mark.parametrize(
    "numbers",
    [
        {"shape": (100, 88, 120)},
        {"spacing": (0.0, 3.0, 3.0)},
        {"prevalence": {"liver": 1.5}},
        {"prevalence": {"lung": 0.5}},
        {"noise": float("nan")},
        {"supersampling": 4},
    ],
)
def test_impossible_numbers_are_refused(numbers):
    with pytest.raises(ConfigError, match=next(iter(numbers))):
        OrganPhantom(**numbers)
