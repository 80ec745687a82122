"""The imbalance fingerprint of a dataset: what every label map says, added up, and kept beside nnU-Net's own."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from nnunet_imbal._progress import track
from nnunet_imbal._version import __version__
from nnunet_imbal.check import list_label_maps
from nnunet_imbal.errors import DataError, LabelError
from nnunet_imbal.evaluation import DatasetLabels, read_dataset_labels
from nnunet_imbal.fingerprint.case import CaseMeasures, ClassMeasures, measure_case
from nnunet_imbal.io import file_checksum, list_label_files, read_label, write_atomically
from nnunet_imbal.laterality import paired_labels

__all__ = [
    "FILE_NAME",
    "QUANTILES",
    "ClassFingerprint",
    "Fingerprint",
    "Together",
    "default_path",
    "find_fingerprint",
    "fingerprint_dataset",
    "load_fingerprint",
    "summarise",
]

FILE_NAME = "imbalance_fingerprint.json"
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)

_PREPROCESSED, _RAW = "nnUNet_preprocessed", "nnUNet_raw"
_COPIES = "gt_segmentations"  # of labelsTr, which nnU-Net makes when it preprocesses
_FORMAT = 3  # raise it whenever the same files give another fingerprint
_SMALL = 1 / 3  # of the components of a class


@dataclass(frozen=True)
class Together:
    """All classes of a dataset seen as one.

    Attributes:
        tubularity: see `ClassFingerprint`.
        radius_mm: see `ClassFingerprint`.
    """

    tubularity: float
    radius_mm: list[float]


@dataclass(frozen=True)
class ClassFingerprint:
    """One class of a dataset. Lists of five are the quantiles of `QUANTILES`; empty for a class that never occurs.

    Attributes:
        labels: label values that make the class.
        cases: labelled cases that show it.
        prevalence: share of the labelled cases that show it, in [0, 1].
        volume_share: share of all annotated voxels, by volume, in [0, 1].
        volume_mm3: volume per case that shows it.
        components: connected components in all cases together.
        components_per_case: how many in a case that shows it.
        component_mm3: their volumes.
        largest_share: of the volume in a case with several components, what the largest holds, in [0, 1]; median of
            these cases, 0 if there is none.
        tubularity: length of the centre lines over the cube roots of the volumes of all components, median of the
            cases. Balls have less than 1, however many; a tube ten times as long as wide about 5, a vessel tree more
            than 10.
        radius_mm: radii along the centre lines.
        no_centre: of the smallest third of its components the share that stock nnU-Net is expected never to put into
            the middle of a forced patch, in [0, 1].
        touches: other class -> share of the cases with both in which they touch.
        partner: the class that is its mirror image, or None.
        example: a case in which its volume is about the median, or None.
    """

    labels: list[int]
    cases: int
    prevalence: float
    volume_share: float
    volume_mm3: list[float]
    components: int
    components_per_case: list[float]
    component_mm3: list[float]
    largest_share: float
    tubularity: float
    radius_mm: list[float]
    no_centre: float
    touches: dict[str, float]
    partner: str | None
    example: str | None


@dataclass(frozen=True)
class Fingerprint:
    """What is imbalanced in a dataset.

    Attributes:
        dataset: name of its folder.
        cases: labelled cases.
        unlabelled: names of the cases of which nothing is annotated.
        ignored_share: share of the voxels of labelled cases that nobody annotated, in [0, 1].
        spacing_mm: median mm per voxel along Z, Y, X.
        shape: median number of voxels along Z, Y, X.
        classes: name -> class, in the order of dataset.json.
        together: all of them as one.
        origin: checksum of all that went in.
    """

    dataset: str
    cases: int
    unlabelled: list[str]
    ignored_share: float
    spacing_mm: list[float]
    shape: list[float]
    classes: dict[str, ClassFingerprint]
    together: Together
    origin: str

    def save(self, path: str | Path) -> None:
        """Write as JSON, whole or not at all."""
        content = {"format": _FORMAT, "made_by": f"nnunet-imbal {__version__}", "quantiles": QUANTILES, **asdict(self)}
        write_atomically(path, json.dumps(content, indent=1) + "\n")


def fingerprint_dataset(folder: str | Path, *, out: str | Path | None = None, workers: int = 4) -> Fingerprint:
    """Measure the imbalance of a raw nnU-Net dataset, or read it if it was measured before and no file changed.

    Args:
        folder: raw dataset: ``dataset.json`` and ``labelsTr``, or a ``dataset.json`` that lists its files; or a
            preprocessed one, which holds copies of the label maps.
        out: JSON file to keep it in, overwritten when it is out of date; None keeps nothing.
        workers: cases measured at the same time; each needs about ten bytes per voxel of its label map.

    Raises:
        DataError: no case, or a label map that cannot be read.
        LabelError: a label map holds a value that dataset.json does not declare.
    """
    found, is_new = _measure_or_read(Path(folder), None if out is None else Path(out), workers)
    if is_new and out is not None:
        found.save(out)
    return found


def find_fingerprint(preprocessed: str | Path, *, workers: int = 4, say: Callable[[str], None] = print) -> Fingerprint:
    """The fingerprint of a preprocessed dataset: kept beside nnU-Net's own, measured again if label maps changed.

    Label maps are looked for in the raw dataset of the same name, then among the copies that nnU-Net made. If there are
    none any more, what was kept counts. A folder that cannot be written costs the file, not the fingerprint.

    Args:
        preprocessed: folder of the dataset in nnUNet_preprocessed.
        workers: see `fingerprint_dataset`.
        say: takes the messages.

    Raises:
        DataError: there is no label map and no fingerprint, or a label map cannot be read.
        LabelError: a label map holds a value that dataset.json does not declare.
    """
    folder, raw = Path(preprocessed), os.environ.get(_RAW)
    kept = folder / FILE_NAME
    for source in [*([Path(raw, folder.name)] if raw else []), folder]:
        if _label_maps(source):
            found, is_new = _measure_or_read(source, kept, workers)
            if is_new:
                _keep(found, kept, say)
            return found
    if kept.is_file():
        return load_fingerprint(kept)
    raise DataError(
        f"what is imbalanced in {folder.name} cannot be measured: no label map in {_RAW} ({raw or 'not set'}), "
        f"and none in {folder / _COPIES}; export {_RAW}=<folder>, or preprocess again with nnUNetv2_preprocess"
    )


def default_path(folder: str | Path) -> Path | None:
    """Where the fingerprint of a raw dataset is kept: in its folder of nnUNet_preprocessed, or None without one."""
    preprocessed = os.environ.get(_PREPROCESSED)
    place = Path(preprocessed, Path(folder).resolve().name) if preprocessed else None
    return place / FILE_NAME if place is not None and place.is_dir() else None


def load_fingerprint(path: str | Path) -> Fingerprint:
    """Read what `Fingerprint.save` wrote.

    Raises:
        DataError: the file cannot be read, or is no fingerprint of this version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']} instead of {_FORMAT}")
        known = {name: content[name] for name in Fingerprint.__dataclass_fields__}
        known["classes"] = {name: ClassFingerprint(**each) for name, each in known["classes"].items()}
        known["together"] = Together(**known["together"])
        return Fingerprint(**known)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no imbalance fingerprint ({error}); measure the dataset again") from error


def _measure_or_read(folder: Path, kept: Path | None, workers: int) -> tuple[Fingerprint, bool]:
    """The fingerprint, and whether it had to be measured."""
    labels = read_dataset_labels(folder / "dataset.json")
    files = _label_maps(folder)
    if not files:
        raise DataError(f"{folder} has no training case with a label map; expected them in labelsTr")
    with ThreadPoolExecutor(workers) as pool:  # unpacking and kernels run beside each other
        sums = list(track(pool.map(file_checksum, files.values()), len(files), "Reading label maps"))
        origin = _origin(labels, dict(zip(files, sums, strict=True)))
        if kept is not None and (known := _still_valid(kept, origin)) is not None:
            return known, False
        work = partial(_measure_file, labels)
        cases = dict(zip(files, track(pool.map(work, files.values()), len(files), "Measuring"), strict=True))
    return summarise(folder.name, cases, labels, origin), True


def _keep(found: Fingerprint, path: Path, say: Callable[[str], None]) -> None:
    try:
        found.save(path)
    except DataError as error:
        say(f"The imbalance fingerprint could not be kept for the next time: {error}")


def summarise(name: str, cases: Mapping[str, CaseMeasures], labels: DatasetLabels, origin: str = "") -> Fingerprint:
    """Add up the measures of all cases.

    Args:
        name: of the dataset.
        cases: name -> measures.
        labels: classes and ignore label of the dataset.
        origin: see `Fingerprint`.
    """
    labelled = {case: measures for case, measures in cases.items() if not measures.unlabelled}
    partners = _partners(labels)
    classes = {
        each: _summarise_class(each, list(values), labelled, partners.get(each))
        for each, values in labels.classes.items()
    }
    return Fingerprint(
        dataset=name,
        cases=len(labelled),
        unlabelled=[case for case, measures in cases.items() if measures.unlabelled],
        ignored_share=_share(
            sum(case.ignored for case in labelled.values()), sum(case.voxels for case in labelled.values())
        ),
        spacing_mm=np.median([case.spacing_mm for case in cases.values()], axis=0).tolist(),
        shape=np.median([case.shape for case in cases.values()], axis=0).tolist(),
        classes=classes,
        together=_shape_of([case.together for case in labelled.values() if case.together is not None]),
        origin=origin,
    )


def _label_maps(folder: Path) -> dict[str, Path]:
    copies = folder / _COPIES
    return list_label_files(copies) if copies.is_dir() and any(copies.iterdir()) else list_label_maps(folder)


def _summarise_class(
    name: str, values: list[int], labelled: Mapping[str, CaseMeasures], partner: str | None
) -> ClassFingerprint:
    cases = list(labelled.values())
    shown = [case for case in cases if name in case.classes]
    here = [case.classes[name] for case in shown]
    annotated = sum((case.voxels - case.ignored) * float(np.prod(case.spacing_mm)) for case in cases)
    volumes = [each.volume_mm3 for each in here]
    several = [each.components_mm3 for each in here if len(each.components_mm3) > 1]
    both = Counter(chain.from_iterable(case.classes for case in shown))
    touching = Counter(other for case in shown for other in _neighbours(name, case))
    return ClassFingerprint(
        labels=values,
        cases=len(here),
        prevalence=_share(len(here), len(cases)),
        volume_share=_share(sum(volumes), annotated),
        volume_mm3=_quantiles(volumes),
        components=sum(len(each.components_mm3) for each in here),
        components_per_case=_quantiles([len(each.components_mm3) for each in here]),
        component_mm3=_quantiles(list(chain.from_iterable(each.components_mm3 for each in here))),
        largest_share=_median([max(sizes) / sum(sizes) for sizes in several]),
        **asdict(_shape_of(here)),
        no_centre=_small_without_centre(here),
        touches={other: count / both[other] for other, count in sorted(touching.items())},
        partner=partner,
        example=_example(name, labelled),
    )


def _shape_of(cases: Sequence[ClassMeasures]) -> Together:
    return Together(
        tubularity=_median([_tubularity(each) for each in cases]),
        radius_mm=_quantiles(list(chain.from_iterable(each.radii_mm for each in cases))),
    )


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if values else 0.0


def _tubularity(found: ClassMeasures) -> float:
    return found.skeleton_mm / float(np.cbrt(found.components_mm3).sum())


def _example(name: str, cases: Mapping[str, CaseMeasures]) -> str | None:
    """The upper of two middle cases, so that an example always exists."""
    volumes = sorted((each.classes[name].volume_mm3, case) for case, each in cases.items() if name in each.classes)
    return volumes[len(volumes) // 2][1] if volumes else None


def _neighbours(name: str, case: CaseMeasures) -> Iterator[str]:
    return (b if a == name else a for a, b in case.touching if name in (a, b))


def _small_without_centre(cases: Sequence[ClassMeasures]) -> float:
    sizes = np.array(list(chain.from_iterable(each.components_mm3 for each in cases)))
    chances = np.array(list(chain.from_iterable(each.no_centre for each in cases)))
    smallest = np.argsort(sizes, kind="stable")[: int(np.ceil(len(sizes) * _SMALL))]
    return float(chances[smallest].mean()) if len(smallest) else 0.0


def _partners(labels: DatasetLabels) -> dict[str, str]:
    """Mirror images by name. Names that tell a side but have no partner are said where it matters: at training."""
    names = {values[0]: name for name, values in labels.classes.items() if len(values) == 1}
    try:
        pairs = paired_labels({name: value for value, name in names.items()})
    except LabelError:
        return {}
    return {names[a]: names[b] for pair in pairs for a, b in (pair, pair[::-1])}


def _quantiles(values: Sequence[float]) -> list[float]:
    return np.quantile(values, QUANTILES).tolist() if len(values) else []


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _measure_file(labels: DatasetLabels, path: Path) -> CaseMeasures:
    volume = read_label(path)
    unknown = sorted(set(np.unique(volume.array).tolist()) - labels.values)
    if unknown:
        raise LabelError(f"{path} holds the labels {unknown}, dataset.json declares {sorted(labels.values)}")
    return measure_case(volume.array, volume.spacing, labels.classes, labels.ignore)


def _origin(labels: DatasetLabels, sums: Mapping[str, str]) -> str:
    content = [_FORMAT, sorted(labels.classes.items()), labels.ignore, sorted(sums.items())]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _still_valid(path: Path, origin: str) -> Fingerprint | None:
    try:
        known = load_fingerprint(path)
    except DataError:
        return None
    return known if known.origin == origin else None
