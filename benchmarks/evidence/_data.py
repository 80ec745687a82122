"""The raw nnU-Net dataset of each study: training cases, and in ``imagesTs`` the calibration and the test cases.

Calibration cases come from the same source as the training cases; operating points are chosen on them. Their names
begin with ``calibration``, those of the test cases with ``test``.
"""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import nibabel as nib
import numpy as np
from _brain_cases import TEST, TRAINING
from _lesion_brains import AFFINE, read_brain, read_mask, read_scan, synthesise_flair
from _synthetic_contrast import STRUCTURES, draw_contrast, merged, read_labels, synthesise
from numpy.typing import NDArray
from vessel_training import PHANTOM as VESSELS

from nnunet_imbal.phantoms import OrganPhantom, Phantom

__all__ = ["SOURCES", "Cases", "write_raw"]

Item = tuple[str, str, NDArray[Any], NDArray[Any], NDArray[Any]]

MASKS = tuple(f"{n:02d}" for n in (*range(1, 7), *range(8, 19), 20))
REAL = ("07", "26")
CALIBRATION = 4


@dataclass(frozen=True)
class Cases:
    """What a study is made of.

    Attributes:
        channel: nnU-Net's name of the images.
        labels: class names and values, with ``background`` 0.
        make: yields part (``"Tr"`` or ``"Ts"``), name, image, label and affine of every case.
    """

    channel: str
    labels: Mapping[str, int]
    make: Callable[[Path | None], Iterator[Item]]


def write_raw(cases: Cases, folder: Path, data: Path | None) -> None:
    """Write the dataset ``folder``; it appears complete or not at all."""
    partial = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a run that was killed
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (partial / name).mkdir(parents=True)
    count = 0
    for part, name, image, label, affine in cases.make(data):
        nib.Nifti1Image(image.astype(np.float32), affine).to_filename(partial / f"images{part}/{name}_0000.nii.gz")
        nib.Nifti1Image(label.astype(np.uint8), affine).to_filename(partial / f"labels{part}/{name}.nii.gz")
        count += part == "Tr"
    content = {"channel_names": {"0": cases.channel}, "labels": dict(cases.labels)}
    content |= {"numTraining": count, "file_ending": ".nii.gz"}
    (partial / "dataset.json").write_text(json.dumps(content, indent=1) + "\n")
    partial.rename(folder)


def _lesion_cases(data: Path | None) -> Iterator[Item]:
    """18 real lesion masks, each in a synthesised brain; two real patients."""
    masks, brains = _folder(data, "open_ms_data"), _folder(data, "synthseg")
    first_calibration = len(MASKS) - CALIBRATION
    for index, patient in enumerate(MASKS):
        rng = np.random.default_rng([7, index])
        lesions = read_mask(masks / f"patient{patient}_gold.nii.gz")
        labels = read_brain(brains / f"training_seg_{index % 14 + 1:02d}.nii.gz")
        part = ("Tr", "training") if index < first_calibration else ("Ts", "calibration")
        yield part[0], f"{part[1]}_{patient}", synthesise_flair(rng, labels, lesions), lesions, AFFINE
    for patient in REAL:
        image = read_scan(masks / f"patient{patient}_FLAIR.nii.gz")
        yield "Ts", f"test_{patient}", image, read_mask(masks / f"patient{patient}_gold.nii.gz"), AFFINE


def _brain_cases(data: Path | None) -> Iterator[Item]:
    """SynthSeg's brains at 2 mm in one random contrast: 01 to 10 for training, 11 to 14 for testing."""
    folder, contrast = _folder(data, "synthseg"), draw_contrast(np.random.default_rng([0, 0]))
    for number in (*TRAINING, *TEST):
        labels = read_labels(folder / f"training_seg_{number:02d}.nii.gz")
        image = synthesise(np.random.default_rng([0, 0, number]), labels, contrast)
        part = ("Tr", "training") if number in TRAINING else ("Ts", "test")
        yield part[0], f"{part[1]}_{number:02d}", image.T, merged(labels).T, np.diag([2.0, 2.0, 2.0, 1.0])


def _phantom(phantom: Phantom, kept: Sequence[str], training: int, test: int) -> Cases:
    """Cases of a phantom; classes that are not ``kept`` become background."""
    table = np.zeros(256, np.uint8)
    for value, name in enumerate(kept, start=1):
        table[phantom.labels[name]] = value

    def make(data: Path | None) -> Iterator[Item]:
        for index in range(training):
            case = phantom.training_case(0, index)
            yield "Tr", f"training_{index:02d}", case.image, table[case.label], case.affine
        for index in range(test):
            case = phantom.test_case(0, index)
            assert case is not None  # these phantoms never run out
            yield "Ts", f"test_{index:02d}", case.image, table[case.label], case.affine

    return Cases(phantom.channel, _numbered(kept), make)


def _numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: value for value, name in enumerate(("background", *names))}


def _foreground(phantom: Phantom) -> list[str]:
    return [name for name, value in phantom.labels.items() if value]


def _folder(data: Path | None, name: str) -> Path:
    if data is None or not (data / name).is_dir():
        raise SystemExit(f"this study needs --data DIR with the folder {name}, see benchmarks/README.md; got {data}")
    return data / name


_ORGANS = OrganPhantom(shape=(75, 57, 80), spacing=(4.5, 4.5, 4.5))
_BIG_ORGANS = OrganPhantom(shape=(56, 44, 60), spacing=(6.0, 6.0, 6.0))

SOURCES: Mapping[str, Cases] = MappingProxyType(
    {
        "ms_sim2real": Cases("FLAIR", {"background": 0, "lesion": 1}, _lesion_cases),
        "brain_tail": Cases("MR", _numbered(STRUCTURES), _brain_cases),
        "vessels": _phantom(VESSELS, _foreground(VESSELS), training=20, test=8),
        "organs": _phantom(_ORGANS, _foreground(_ORGANS), training=16, test=6),
        "control": _phantom(_BIG_ORGANS, ("liver", "bladder"), training=12, test=6),
    }
)
