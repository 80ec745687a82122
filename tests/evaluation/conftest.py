"""Small label maps on disk."""

import nibabel
import numpy as np
import pytest


@pytest.fixture
def save_nifti():
    """Function (path, array (Z, Y, X), spacing (Z, Y, X) or affine) -> path."""

    def save(path, array, spacing=(1.0, 1.0, 1.0), affine=None):
        if affine is None:
            affine = np.diag([-spacing[2], -spacing[1], spacing[0], 1.0])
        path.parent.mkdir(parents=True, exist_ok=True)
        nibabel.save(nibabel.Nifti1Image(np.asarray(array).T, affine), path)
        return path

    return save
