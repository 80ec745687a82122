"""The page on what is imbalanced: what it holds, what it refuses to overwrite."""

import json
import re

import nibabel
import numpy as np
import pytest

from nnunet_imbal.errors import DataError
from nnunet_imbal.fingerprint import fingerprint_dataset
from nnunet_imbal.report import write_fingerprint_page


@pytest.fixture
def folder(tmp_path):
    """Two cases with a large organ; one of them with a small <lesion>."""
    folder = tmp_path / "Dataset007_X"
    labels = {"background": 0, "organ": 1, "<lesion>": 2, "never": 3}
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    description = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 2, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    array = np.zeros((10, 30, 40), np.uint8)
    array[2:8, 5:20, 5:30] = 1
    write(folder, "a", array)
    array[7, 25:27, 33:36] = 2
    write(folder, "b", array)
    return folder


def write(folder, case, array):
    image = nibabel.Nifti1Image(array.transpose(), np.diag([-1.0, -1.0, 2.0, 1.0]))  # of LPS, with patient axes
    nibabel.save(image, folder / "labelsTr" / f"{case}.nii.gz")
    nibabel.save(image, folder / "imagesTr" / f"{case}_0000.nii.gz")


def test_page(folder, tmp_path):
    html = write_fingerprint_page(fingerprint_dataset(folder), folder, tmp_path / "new" / "page.html").read_text()
    assert "&lt;lesion&gt;</span> in b, slice 7; left edge R, top edge A" in html
    assert "<lesion>" not in html
    assert '<path d="M33 25h3v1h-3zM33 26h3v1h-3z"/>' in html
    assert "<th>organ</th><td>2</td>" in html
    assert "<th>never</th><td>0</td><td>\N{EN DASH}</td>" in html
    assert "<th>no change</th><td>less than a thousandth of the volume: &lt;lesion&gt;" in html
    assert html.count("data:image/jpeg") == 2
    assert not re.search(r'(src|href)="(?!data:|#)', html)  # nothing from elsewhere
    assert str(tmp_path) not in html


def test_without_images_the_marks_are_on_black(folder, tmp_path):
    for image in (folder / "imagesTr").iterdir():
        image.unlink()
    html = write_fingerprint_page(fingerprint_dataset(folder), folder, tmp_path / "page.html").read_text()
    assert "data:image" not in html
    assert "No image was found for this case" in html


def test_nothing_imbalanced_and_nothing_at_all(folder, tmp_path):
    (folder / "labelsTr" / "b.nii.gz").unlink()
    write(folder, "a", np.zeros((10, 30, 40), np.uint8))
    html = write_fingerprint_page(fingerprint_dataset(folder), folder, tmp_path / "page.html").read_text()
    assert "No labelled case shows" in html
    assert "The rarest" not in html


def test_other_files_are_left_alone(folder, tmp_path):
    mine = tmp_path / "thesis.html"
    mine.write_text("<p>mine</p>")
    with pytest.raises(DataError, match="no report of ours"):
        write_fingerprint_page(fingerprint_dataset(folder), folder, mine)
    assert mine.read_text() == "<p>mine</p>"


def test_a_case_that_went_away(folder, tmp_path):
    found = fingerprint_dataset(folder)
    (folder / "labelsTr" / "b.nii.gz").unlink()
    with pytest.raises(DataError, match="case b is no longer there; measure the dataset again"):
        write_fingerprint_page(found, folder, tmp_path / "page.html")
