"""Which classes have a side, and which axis runs from one side to the other."""

import numpy as np
import pytest

from nnunet_imbal.errors import LabelError
from nnunet_imbal.laterality import lateral_axes, paired_labels, swap_table

TOPCOW = {
    "background": 0,
    "BA": 1,
    "R-PCA": 2,
    "L-PCA": 3,
    "R-ICA": 4,
    "R-MCA": 5,
    "L-ICA": 6,
    "L-MCA": 7,
    "R-Pcom": 8,
    "L-Pcom": 9,
    "Acom": 10,
    "R-ACA": 11,
    "L-ACA": 12,
    "3rd-A2": 13,
}


def test_circle_of_willis():
    assert paired_labels(TOPCOW) == [(2, 3), (4, 6), (5, 7), (8, 9), (11, 12)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("kidney_left", "kidney_right"),
        ("Left Kidney", "Right kidney"),
        ("leftKidney", "rightKidney"),
        ("lPCA", "rPCA"),
        ("ctx-lh-insula", "ctx-rh-insula"),
        ("Lt. lung", "Rt. lung"),
        ("Niere links", "Niere rechts"),
        ("left lateral ventricle", "right lateral ventricle"),
    ],
)
def test_ways_to_write_a_side(left, right):
    assert paired_labels({"background": 0, left: 7, right: 2}) == [(2, 7)]


@pytest.mark.parametrize(
    "names",
    [
        ["vertebra L1", "vertebra L2", "rib R1"],
        ["liver", "spleen"],
        ["left ventricle", "right ventricle", "left atrium", "right atrium", "myocardium of the left heart"],
        ["bright spot", "cleft", "lesion"],
        [],
    ],
)
def test_names_without_a_side(names):
    assert paired_labels({name: i + 1 for i, name in enumerate(names)}) == []


def test_missing_partner_is_named():
    with pytest.raises(LabelError, match="'lung_middle_lobe_right' has no partner"):
        paired_labels({"lung_upper_lobe_left": 1, "lung_upper_lobe_right": 2, "lung_middle_lobe_right": 3})


def test_regions_made_of_pairs():
    labels = {"left kidney": [1], "right kidney": [2], "left side": [1, 3], "right side": [2, 3], "tumour": [3]}
    assert paired_labels(labels) == [(1, 2)]
    with pytest.raises(LabelError, match="'left side' is not the mirror image"):
        paired_labels({**labels, "right side": [2, 4]})


def test_swapping_twice_changes_nothing():
    table = np.array(swap_table([(2, 3), (5, 1)], 6))
    assert table.tolist() == [0, 5, 3, 2, 4, 1, 6]
    assert (table[table] == np.arange(7)).all()


def test_axes_follow_the_orientation():
    sagittal = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], dtype=float)  # index k runs from right to left
    assert lateral_axes([np.eye(3), np.diag([-1, -1, 1])]) == {2}
    assert lateral_axes([sagittal]) == {0}
    assert lateral_axes([np.eye(3), sagittal]) == {0, 2}
    assert lateral_axes([]) == set()


def test_voxel_size_does_not_hide_the_axis():
    """An affine carries spacing; thick slices, a little tilted, must not win."""
    affine = np.array([[0.4, 0, 3.0], [0, 0.4, 0], [0, 0, 5.0]])
    assert lateral_axes([affine]) == {2}
