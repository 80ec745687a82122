"""The spine phantom: two real scans, and virtual patients that look like them."""

import numpy as np
import pytest

from nnunet_imbal.phantoms import SpinePhantom

# Counted in the original files; a damaged or exchanged file shows here.
ORIGINALS = {
    0: ((73, 47, 73), [5034, 2087, 1822, 2602, 2454, 22349, 0, 0, 0, 0]),
    1: ((68, 52, 67), [3333, 1442, 1118, 1928, 2053, 22772, 345, 4137, 1891, 8597]),
}


@pytest.mark.parametrize("index", ORIGINALS)
def test_originals_are_whole(index):
    case = SpinePhantom().test_case(0, index)
    shape, voxels = ORIGINALS[index]
    assert case.image.shape == case.label.shape == case.instances.shape == shape
    assert np.bincount(case.label.ravel(), minlength=11)[1:].tolist() == voxels
    np.testing.assert_allclose(np.linalg.norm(case.affine[:3, :3], axis=0), 1.5, rtol=1e-3)


def test_there_are_two_test_cases():
    assert SpinePhantom().test_case(0, 2) is None


def test_class_values_are_consecutive():
    assert list(SpinePhantom.labels.values()) == list(range(11))


@pytest.mark.parametrize("index", [0, 1])
def test_virtual_patient_is_the_scan_bent_a_little(index):
    phantom = SpinePhantom()
    original, patient = phantom.test_case(0, index), phantom.training_case(0, index)
    assert patient.image.shape == original.image.shape
    np.testing.assert_array_equal(np.unique(patient.label), np.unique(original.label))
    assert 4 <= patient.truth["largest_shift_voxels"] <= 6
    moved = (patient.label != original.label).mean()
    assert 0.02 < moved < 0.3
    assert np.corrcoef(patient.image.ravel(), original.image.ravel())[0, 1] > 0.5


def test_labels_move_with_the_image():
    original, patient = SpinePhantom().test_case(0, 1), SpinePhantom().training_case(0, 1)
    for value in range(1, 11):
        before, after = (np.median(case.image[case.label == value]) for case in (original, patient))
        assert after == pytest.approx(before, abs=0.3 * float(original.image.max()))


def test_same_seed_same_patient():
    one, same, other = (SpinePhantom().training_case(seed, 3) for seed in (4, 4, 5))
    np.testing.assert_array_equal(one.image, same.image)
    np.testing.assert_array_equal(one.label, same.label)
    assert (one.image != other.image).any()
