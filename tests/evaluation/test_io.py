import errno
import gzip
import os
import stat

import numpy as np
import pytest
import SimpleITK

from nnunet_imbal.errors import DataError, GeometryError, LabelError
from nnunet_imbal.io import (
    case_name,
    check_same_geometry,
    list_label_files,
    read_image,
    read_label,
    write_atomically,
)

EYE = np.eye(4)


@pytest.fixture
def labels(rng):
    return rng.integers(0, 4, (5, 6, 7)).astype(np.uint8)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd"])
def test_reads_voxels_and_geometry(tmp_path, labels, ending):
    image = SimpleITK.GetImageFromArray(labels)
    image.SetSpacing((0.5, 0.75, 3.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    image.SetDirection((0, 1, 0, -1, 0, 0, 0, 0, 1))
    path = tmp_path / f"case{ending}"
    SimpleITK.WriteImage(image, str(path))
    volume = read_label(path)
    np.testing.assert_array_equal(volume.array, labels)
    assert volume.array.dtype == np.uint8
    assert volume.spacing == (3.0, 0.75, 0.5)
    assert volume.origin == (10.0, -20.0, 30.0)
    np.testing.assert_allclose(volume.direction, (0, 1, 0, -1, 0, 0, 0, 0, 1), atol=1e-6)
    assert volume.path == path


def test_flat_picture_is_one_slice(tmp_path, labels):
    path = tmp_path / "case.png"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(labels[0]), str(path))
    volume = read_label(path)
    assert volume.array.shape == (1, 6, 7)
    assert volume.spacing == (1.0, 1.0, 1.0)
    np.testing.assert_array_equal(volume.array[0], labels[0])


def test_large_labels_need_16_bits(tmp_path, labels, save_nifti):
    volume = read_label(save_nifti(tmp_path / "a.nii.gz", labels.astype(np.float32) * 200))
    assert volume.array.dtype == np.uint16
    assert volume.array.max() == 600


def test_scaled_integers_are_still_whole(tmp_path, labels, save_nifti):
    wobbling = labels.astype(np.float32) * np.float32(1 + 1e-6)
    np.testing.assert_array_equal(read_label(save_nifti(tmp_path / "a.nii", wobbling)).array, labels)


def test_image_keeps_its_dtype(tmp_path, save_nifti):
    volume = read_image(save_nifti(tmp_path / "a.nii.gz", np.full((2, 2, 2), -1000, np.int16)))
    assert volume.array.dtype == np.int16
    assert volume.array.min() == -1000


def _half(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".mha", ".nrrd", ".png"])
def test_cut_off_file(tmp_path, rng, ending):
    path = tmp_path / f"cut{ending}"
    voxels = rng.integers(0, 200, (40, 40) if ending == ".png" else (20, 40, 40)).astype(np.uint8)
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(voxels), str(path))
    _half(path)
    with pytest.raises(DataError, match=rf"cut{ending}.*cut off"):
        read_label(path)


def test_gzip_that_ends_before_its_checksum(tmp_path, labels, save_nifti):
    path = save_nifti(tmp_path / "a.nii.gz", labels)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(DataError, match=r"a\.nii\.gz cannot be read, it may be damaged or cut off"):
        read_label(path)


def test_gzip_with_a_flipped_bit(tmp_path, rng, save_nifti):
    path = save_nifti(tmp_path / "a.nii.gz", rng.integers(0, 200, (20, 40, 40)).astype(np.uint8))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        read_label(path)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.mha", "a.nrrd", "a.png"])
def test_empty_and_junk_files(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{name} is empty \(0 bytes\)"):
        read_label(path)
    path.write_bytes(b"this is no image" * 100)
    with pytest.raises(DataError, match=name):
        read_label(path)
    with pytest.raises(DataError, match="no such file"):
        read_label(tmp_path / "missing.nii.gz")


def test_gzip_of_something_else(tmp_path):
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(b"hello" * 200))
    with pytest.raises(DataError, match=r"a\.nii\.gz"):
        read_label(path)


def test_image_without_voxels(tmp_path, save_nifti):
    with pytest.raises(DataError, match=r"a\.nii has no voxels: its shape is \(0, 4, 4\)"):
        read_label(save_nifti(tmp_path / "a.nii", np.zeros((4, 4, 0), np.uint8)))


@pytest.mark.parametrize("read", [read_image, read_label])
def test_nan_voxel_is_named(tmp_path, save_nifti, read):
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[1, 2, 3] = np.nan
    with pytest.raises(DataError, match=r"a\.nii\.gz: voxel \(1, 2, 3\) \(Z, Y, X\) is nan, one of 1"):
        read(save_nifti(tmp_path / "a.nii.gz", voxels))


def test_label_that_is_not_whole(tmp_path, save_nifti):
    voxels = np.zeros((3, 4, 5), np.float32)
    voxels[2, 0, 1:] = 0.5
    with pytest.raises(DataError, match=r"a\.nii: voxel \(2, 0, 1\) \(Z, Y, X\) is 0\.5, one of 4"):
        read_label(save_nifti(tmp_path / "a.nii", voxels))


@pytest.mark.parametrize("value", [-1, 70000, 3e30])
def test_label_out_of_range(tmp_path, save_nifti, value):
    dtype = np.float32 if value > 1e9 else np.int32
    with pytest.raises(LabelError, match=r"a\.nii: voxels range from .* 0\.\.65535"):
        read_label(save_nifti(tmp_path / "a.nii", np.full((2, 2, 2), value, dtype)))


def test_more_than_three_dimensions(tmp_path, save_nifti):
    with pytest.raises(DataError, match=r"a\.nii is 4-D with shape \(4, 3, 2, 2\)"):
        read_label(save_nifti(tmp_path / "a.nii", np.zeros((2, 2, 3, 4), np.uint8)))
    assert read_label(save_nifti(tmp_path / "b.nii", np.zeros((1, 2, 3, 4), np.uint8))).array.shape == (2, 3, 4)


def test_colour_picture(tmp_path):
    path = tmp_path / "a.png"
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(np.zeros((4, 5, 3), np.uint8), isVector=True), str(path))
    with pytest.raises(DataError, match=r"a\.png has 3 channels"):
        read_label(path)


def test_oblique_axes_are_refused(tmp_path, labels, save_nifti):
    affine = EYE.copy()
    affine[0, 1] = 0.2
    with pytest.raises(GeometryError, match=r"a\.nii: the axes X and Y have the scalar product 0\.196\d*, expected 0"):
        read_label(save_nifti(tmp_path / "a.nii", labels, affine=affine))


def _moved(entry, by):
    affine = EYE.copy()
    affine[entry] += by
    return affine


def _rotated(angle):
    affine = EYE.copy()
    affine[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    return affine


@pytest.fixture
def compare(tmp_path, labels, save_nifti):
    def run(affine, voxels=labels):
        one = read_label(save_nifti(tmp_path / "one.nii", labels, affine=EYE))
        check_same_geometry(one, read_label(save_nifti(tmp_path / "two.nii", voxels, affine=affine)))

    return run


@pytest.mark.parametrize("entry", [(0, 0), (1, 1), (2, 2), (0, 3), (1, 3), (2, 3), (0, 1), (2, 0)])
def test_tiny_affine_difference_is_accepted(compare, entry):
    compare(_moved(entry, 1e-8))


@pytest.mark.parametrize(
    ("affine", "message"),
    [
        (_moved((0, 0), 1e-2), r"spacing in mm along axis X is 1\.0 and 1\.00999\d*"),
        (_moved((1, 1), 1e-2), r"spacing in mm along axis Y is 1\.0 and 1\.00999\d*"),
        (_moved((2, 2), 1e-2), r"spacing in mm along axis Z is 1\.0 and 1\.00999\d*"),
        (_moved((0, 3), 1e-2), r"origin in mm along patient axis x is -?0\.0 and -0\.00999\d*"),
        (_moved((2, 3), 1e-2), r"origin in mm along patient axis z is -?0\.0 and 0\.00999\d*"),
        (_rotated(1e-2), r"direction cosine of axis Y along patient x is .* and 0\.00999\d*"),
    ],
)
def test_affine_difference_names_files_axis_and_values(compare, affine, message):
    with pytest.raises(GeometryError, match=rf"one\.nii and .*two\.nii do not share one grid: {message}"):
        compare(affine)


def test_shape_difference(compare, labels):
    with pytest.raises(GeometryError, match="number of voxels along axis Z is 5 and 4"):
        compare(EYE, labels[:4])


def test_origin_far_away_may_round(tmp_path, labels, save_nifti):
    far = _moved((0, 3), 1234.5678)
    near = far.copy()
    near[0, 3] = np.nextafter(np.float32(far[0, 3]), np.float32(0))
    volumes = [read_label(save_nifti(tmp_path / f"{i}.nii", labels, affine=a)) for i, a in enumerate((far, near))]
    check_same_geometry(*volumes)


def test_lists_cases_sorted(tmp_path):
    for name in ("b.nii.gz", "a.png", ".hidden.nii.gz", "dataset.json", "c.v2.nrrd", "case.npz"):
        (tmp_path / name).touch()
    assert [(case, path.name) for case, path in list_label_files(tmp_path).items()] == [
        ("a", "a.png"),
        ("b", "b.nii.gz"),
        ("c.v2", "c.v2.nrrd"),
    ]


def test_list_refuses_twins_emptiness_and_absence(tmp_path):
    with pytest.raises(DataError, match=r"no label map; expected files ending in \.nii\.gz"):
        list_label_files(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        list_label_files(tmp_path / "nowhere")
    (tmp_path / "a.nii").touch()
    (tmp_path / "a.nii.gz").touch()
    with pytest.raises(DataError, match=r"a\.nii and a\.nii\.gz are both case a"):
        list_label_files(tmp_path)


def test_case_name_keeps_unknown_endings():
    assert case_name("x/b.tar") == "b.tar"
    assert case_name("A.NII.GZ") == "A"


def test_write_replaces_and_leaves_no_trace(tmp_path):
    path = tmp_path / "a.json"
    write_atomically(path, "grün")
    path.chmod(0o600)
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_write_follows_a_link(tmp_path):
    real, link = tmp_path / "real.json", tmp_path / "link.json"
    real.write_text("old")
    link.symlink_to(real)
    write_atomically(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch, call):
    path = tmp_path / "a.json"
    path.write_text("precious")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(DataError, match=r"cannot write .*a\.json: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]


def test_a_read_only_disk_is_named(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):  # there, even deleting a file that does not exist fails with this
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    with pytest.raises(DataError, match=r"cannot write .*a\.json: Read-only file system"):
        write_atomically(tmp_path / "a.json", "{}")


def test_folder_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="No such file or directory"):
        write_atomically(tmp_path / "no" / "a.json", "new")


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_every_cut_is_noticed(tmp_path, ending, save_nifti):
    path = save_nifti(tmp_path / f"a{ending}", np.eye(6, dtype=np.uint8)[None])
    content = path.read_bytes()
    for length in range(1, len(content), 5):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=r"a\.nii"):
            read_label(path)


def test_file_that_may_not_grow(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "a.json"
    path.write_text("precious")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write .*a\.json: File too large"):
            write_atomically(path, b"x" * 2000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_text() == "precious"
    assert list(tmp_path.iterdir()) == [path]
