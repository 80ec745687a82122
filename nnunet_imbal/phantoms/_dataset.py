"""From a phantom to a complete nnU-Net raw dataset on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from nnunet_imbal._progress import track
from nnunet_imbal._version import __version__
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.phantoms._case import Case, Phantom
from nnunet_imbal.phantoms.lesions import LesionPhantom
from nnunet_imbal.phantoms.organs import OrganPhantom
from nnunet_imbal.phantoms.spine import SpinePhantom
from nnunet_imbal.phantoms.vessels import VesselPhantom
from nnunet_imbal.registry import unknown_name

__all__ = ["DATASETS", "write_dataset"]

DATASETS: MappingProxyType[str, Callable[[], Phantom]] = MappingProxyType(
    {
        "phantom-lesions": LesionPhantom,
        "phantom-organs": OrganPhantom,
        "phantom-vessels": VesselPhantom,
        "spine": SpinePhantom,
    }
)


def write_dataset(
    name: str | Phantom,
    out: Path,
    *,
    dataset_id: int = 900,
    cases: int = 16,
    test_cases: int = 4,
    seed: int = 0,
) -> Path:
    """Write a complete nnU-Net raw dataset to try things on.

    The folder holds what nnU-Net reads (``dataset.json``, ``imagesTr``, ``labelsTr``, ``imagesTs``), and beside
    it what only an evaluation may see: ``labelsTs``, the lesion, organ, segment or vertebra numbers (``instancesTr``,
    ``instancesTs``) and the exact truth of each case (``truth/CASE.json``). It appears complete or not at all.

    Args:
        name: ``"phantom-lesions"`` (artificial head scans with many small lesions), ``"phantom-organs"`` (artificial
            abdominal scans with 27 classes), ``"phantom-vessels"`` (artificial angiographies of the circle of Willis)
            or ``"spine"`` (virtual patients made from one real CT and one real MR scan; at most 2 test cases, the
            scans themselves), or a phantom with numbers of your own, for example
            ``LesionPhantom(shape=(128, 128, 128))``.
        out: The ``nnUNet_raw`` folder; made if it does not exist.
        dataset_id: nnU-Net's dataset number, 1 to 999.
        cases: Training cases, at least 1; nnU-Net's five folds need 5.
        test_cases: Test cases, 0 or more.
        seed: Whole number from 0 upwards. The same seed gives the same voxels.

    Returns:
        The dataset folder, for example ``out/Dataset900_PhantomLesions``.

    Raises:
        ConfigError: Unknown name, or a number out of range.
        DataError: A dataset with this number exists already, or ``out`` is not a folder.

    Example:
        >>> import tempfile
        >>> small = LesionPhantom(shape=(32, 32, 32))
        >>> folder = write_dataset(small, Path(tempfile.mkdtemp()), cases=1, test_cases=0)
        >>> sorted(path.name for path in (folder / "imagesTr").iterdir())
        ['lesions_000_0000.nii.gz']
    """
    _check_numbers(dataset_id, cases, test_cases)
    phantom = _phantom(name) if isinstance(name, str) else name
    target = _free_target(Path(out), dataset_id, phantom.title)
    partial = target.with_name(f".{target.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a run that was killed
    try:
        _write_all(phantom, partial, cases, test_cases, seed)
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return target


def _phantom(name: str) -> Phantom:
    if name not in DATASETS:
        raise ConfigError(unknown_name("dataset", name, DATASETS))
    return DATASETS[name]()


def _check_numbers(dataset_id: int, cases: int, test_cases: int) -> None:
    if not 1 <= dataset_id <= 999:
        raise ConfigError(f"The dataset number is {dataset_id}; nnU-Net takes 1 to 999.")
    if cases < 1 or test_cases < 0:
        raise ConfigError(f"{cases} training and {test_cases} test cases were asked for; at least 1 and 0 are needed.")


def _free_target(out: Path, dataset_id: int, title: str) -> Path:
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; expected the nnUNet_raw folder. Give another folder.")
    # nnU-Net cannot tell two datasets with one number apart, whatever their names.
    for other in out.glob(f"Dataset{dataset_id:03d}_*"):
        raise DataError(f"{other} exists already and stays as it is. Choose another dataset number or folder.")
    return out / f"Dataset{dataset_id:03d}_{title}"


def _write_all(phantom: Phantom, folder: Path, cases: int, test_cases: int, seed: int) -> None:
    for part in ("imagesTr", "labelsTr", "instancesTr", "imagesTs", "labelsTs", "instancesTs", "truth"):
        (folder / part).mkdir(parents=True)
    stem = phantom.title.removeprefix("Phantom").lower()
    jobs = [("Tr", i) for i in range(cases)] + [("Ts", i) for i in range(test_cases)]
    for split, index in track(jobs, len(jobs), "Writing cases"):
        make = phantom.training_case if split == "Tr" else phantom.test_case
        case = make(seed, index)
        if case is not None:
            _write_case(case, folder, split, f"{stem}_{index:03d}" if split == "Tr" else f"{stem}_test_{index:03d}")
    _write_texts(phantom, folder, cases, seed)


def _write_case(case: Case, folder: Path, split: str, name: str) -> None:
    _write_nifti(case.image, case.affine, folder / f"images{split}" / f"{name}_0000.nii.gz")
    _write_nifti(case.label, case.affine, folder / f"labels{split}" / f"{name}.nii.gz")
    _write_nifti(case.instances, case.affine, folder / f"instances{split}" / f"{name}.nii.gz")
    (folder / "truth" / f"{name}.json").write_text(json.dumps(case.truth, indent=1) + "\n", encoding="utf-8")


def _write_nifti(array: NDArray[Any], affine: NDArray[np.float64], path: Path) -> None:
    image = nib.Nifti1Image(array, affine)
    image.header.set_xyzt_units("mm")
    image.to_filename(path)


def _write_texts(phantom: Phantom, folder: Path, cases: int, seed: int) -> None:
    content = {
        "channel_names": {"0": phantom.channel},
        "labels": dict(phantom.labels),
        "numTraining": cases,
        "file_ending": ".nii.gz",
        "name": phantom.title,
        "description": phantom.description,
        "licence": phantom.licence,
        "release": f"nnunet-imbal {__version__}, seed {seed}",
    }
    (folder / "dataset.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    readme = f"# {phantom.title}\n\n{phantom.description}\n\nLicence: {phantom.licence}\n"
    (folder / "README.md").write_text(readme, encoding="utf-8")
