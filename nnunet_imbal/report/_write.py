"""From the evaluation file to the finished page."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from nnunet_imbal._progress import track
from nnunet_imbal.errors import DataError
from nnunet_imbal.evaluation import load_evaluation
from nnunet_imbal.io import write_atomically
from nnunet_imbal.report import _words
from nnunet_imbal.report._figures import ENOUGH_FOR_BOX, MAX_CLASSES, dice_figure, recall_figure, size_figure
from nnunet_imbal.report._slices import case_slices, find_images
from nnunet_imbal.report._vessels import vessel_pictures

__all__ = ["MAX_BYTES", "MAX_VIEWERS", "assets", "check_destination", "environment", "write_report"]

MAX_VIEWERS = 40
MAX_BYTES = 30_000_000
_NEEDED = (
    "version",
    "settings",
    "prediction_folder",
    "reference_folder",
    "classes",
    "cases",
    "summary",
    "mean_foreground_dice",
)
_NEEDED_OF_SETTINGS = ("connectivity", "tolerance_mm", "matcher", "matching_metric", "matching_threshold")
_NEEDED_OF_SUMMARY = (
    "dice",
    "surface_dice",
    "hd95_mm",
    "cc_dice",
    "panoptic",
    "recall",
    "recall_by_size",
    "false_positives_per_case",
)
_NEEDED_OF_CASE = ("case", "prediction", "reference", "shape", "spacing_mm", "classes")
_NEEDED_OF_CLASS = (
    "dice",
    "surface_dice",
    "hd95_mm",
    "lesions",
    "false_positives",
    "false_positive_count",
    "volume_reference_mm3",
    "volume_prediction_mm3",
)
_GENERATOR = b'<meta name="generator" content="nnunet-imbal report">'


def write_report(evaluation: Path, out: Path, *, images: Path | None = None, title: str | None = None) -> Path:
    """Write one HTML page that shows, without any server or network, what was found and what was missed.

    Args:
        evaluation: JSON file written by ``nnunet-imbal evaluate``; the label maps it names are read again.
        out: HTML file to write; an older report there is replaced only when the new one is complete.
        images: folder with ``CASE_0000`` images; None looks in ``imagesTr`` and ``imagesTs`` beside the
            reference folder. Without a readable image the marks are shown on black, and the page says why.
        title: heading of the page; None asks which lesions were found, or which pieces if vessels were measured.

    Returns:
        ``out``.

    Raises:
        DataError: the evaluation file is missing or incomplete, a label map cannot be read, ``images`` is not
            a folder, ``out`` is a file of another kind, or the page cannot be written.
        GeometryError: a label map has changed its shape since it was evaluated.
    """
    check_destination(out)
    result = load_evaluation(evaluation)
    _check_complete(result, evaluation)
    cases = _worst_first(result["cases"])
    page = environment().get_template("report.html.j2")
    noun = "piece" if result.get("topology") else "lesion"  # nobody calls a piece of a vessel a lesion
    html = page.render(
        title=title or f"Which {noun}s were found?",
        noun=noun,
        result=result,
        evaluation=evaluation.resolve(),
        box_from=ENOUGH_FOR_BOX,
        measured=datetime.fromtimestamp(evaluation.stat().st_mtime, tz=timezone.utc),
        cases=cases,
        viewers=_viewers(cases, result, find_images(result, images)),
        findings=_findings(result, noun),
        figures=_figures(result, noun),
        vessels=vessel_pictures(result),
        **assets(),
    )
    write_atomically(out, html.encode("utf-8", "replace"))
    return out


def check_destination(out: Path) -> None:
    """Replace an older report, but nothing else; and find out before the work, not after it."""
    if out.is_dir():
        raise DataError(f"{out} is a folder; expected the name of an HTML file to write.")
    try:
        if out.exists() and _GENERATOR not in out.read_bytes()[:4096]:
            raise DataError(f"{out} exists and is no report of ours; it is left as it is, choose another name.")
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot write {out}: {error.strerror}") from error


def _check_complete(result: dict[str, Any], path: Path) -> None:
    missing = _lacking(result, _NEEDED, "") or ([] if result["cases"] else ["cases"])
    if not missing:
        missing += _lacking(result["settings"], _NEEDED_OF_SETTINGS, "settings: ")
        missing += _lacking(result["summary"], result["classes"], "summary of ")
        if result.get("topcow"):
            missing += _lacking(result["topcow"], ("ranking", "vessels", "merged", "detection_f1"), "topcow: ")
        needed = (*_NEEDED_OF_SUMMARY, "topology") if result.get("topology") else _NEEDED_OF_SUMMARY
        for name, entry in result["summary"].items():
            missing += _lacking(entry, needed, f"summary of {name}: ")
        for number, case in enumerate(result["cases"], start=1):
            missing += _lacking_in_case(case, result["classes"], f"case {number}: ")
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing[:5])}; write it again with `nnunet-imbal evaluate`.")


def _lacking_in_case(case: Any, classes: Iterable[str], where: str) -> list[str]:
    missing = _lacking(case, _NEEDED_OF_CASE, where)
    if missing:
        return missing
    missing = _lacking(case["classes"], classes, f"{where}class ")
    for name, entry in case["classes"].items():
        missing += _lacking(entry, _NEEDED_OF_CLASS, f"{where}class {name}: ")
    return missing


def _lacking(content: Any, keys: Iterable[str], where: str) -> list[str]:
    """Keys that are absent, or null where null has no meaning."""
    if not isinstance(content, dict):
        return [f"{where}named values"]
    may_be_null = {"dice", "f1", "hd95_mm", "mean_foreground_dice", "precision", "recall", "surface_dice"}
    return [f"{where}{key}" for key in keys if content.get(key) is None and not (key in may_be_null and key in content)]


def _worst_first(cases: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Most missed lesions first; among equals the lowest Dice."""

    def badness(case: dict[str, Any]) -> tuple[int, float]:
        measured = case["classes"].values()
        dice = [entry["dice"] for entry in measured if entry["dice"] is not None]
        return -sum(len(_missed(entry)) for entry in measured), sum(dice) / len(dice) if dice else 2.0

    return sorted(cases, key=badness)


def _missed(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [lesion for lesion in entry["lesions"] if not lesion["detected"]]


def _findings(result: dict[str, Any], noun: str) -> list[dict[str, Any]]:
    """One entry per class, lowest recall first: its name and two sentences."""
    summary = result["summary"]
    names = sorted(result["classes"], key=lambda name: (summary[name]["recall"] is None, summary[name]["recall"] or 0))
    return [_finding(name, result["cases"], noun) for name in names]


def _finding(name: str, cases: Sequence[dict[str, Any]], noun: str) -> dict[str, Any]:
    measured = [case["classes"][name] for case in cases]
    false_alarms = sum(entry["false_positive_count"] for entry in measured)
    silent = sum(entry["volume_prediction_mm3"] == 0 for entry in measured)
    return {
        "name": name,
        "lesions": _words.lesion_sentence([lesion for entry in measured for lesion in entry["lesions"]], noun),
        "false_alarms": _words.false_alarm_sentence(false_alarms, len(cases), silent),
        "count": false_alarms,
        "silent": silent == len(cases),
    }


def _figures(result: dict[str, Any], noun: str) -> dict[str, Markup | None]:
    names = [finding["name"] for finding in _findings(result, noun)][:MAX_CLASSES]
    summary = {name: result["summary"][name] for name in names}
    some = any(entry["recall_by_size"] for entry in summary.values())
    several = {name: entry for name, entry in summary.items() if len(entry["recall_by_size"]) > 1}
    return {
        "recall": recall_figure(several, noun) if several else None,
        "size": size_figure(result["cases"], names, noun) if some else None,
        "dice": dice_figure(result["cases"], names) if len(result["cases"]) > 1 else None,
    }


def _viewers(cases: Sequence[dict[str, Any]], result: dict[str, Any], images: dict[str, Path]) -> list[dict[str, Any]]:
    """Pack the slices of the worst cases until the page holds as much as a browser opens at ease."""
    packed: list[dict[str, Any]] = []
    size = 0
    for case in track(cases[:MAX_VIEWERS], min(len(cases), MAX_VIEWERS), "Packing slices"):
        slices = case_slices(case, result["classes"], images.get(case["case"]), result["settings"])
        marks = _marks(case, slices)
        data = htmlsafe_json_dumps(slices, separators=(",", ":"))
        size += len(data)
        if packed and size > MAX_BYTES:
            break
        packed.append({"case": case, "slices": slices, "data": data, "first": _first_class(case), "marks": marks})
    return packed


def _first_class(case: dict[str, Any]) -> int:
    """Index of the class with the most missed lesions."""
    missed = [len(_missed(entry)) for entry in case["classes"].values()]
    return missed.index(max(missed))


def _marks(case: dict[str, Any], slices: dict[str, Any]) -> list[dict[str, Any]]:
    """Places to jump to, moved out of the packed slices: missed lesions and false alarms of each class."""
    width_mm, factor = case["spacing_mm"][2], slices["factor"]
    return [
        {kind: [_mark(place, width_mm, factor) for place in packed.pop(kind)] for kind in ("missed", "false_alarms")}
        for packed in slices["classes"]
    ]


def _mark(place: dict[str, Any], width_mm: float, factor: int) -> dict[str, Any]:
    radius_mm = (place["volume_mm3"] * 0.2387) ** (1 / 3)  # of a ball: V = 4/3 pi r^3
    return {
        "volume": _words.volume(place["volume_mm3"]),
        "slice": place["slice"],
        "row": (place["row"] + 0.5) / factor,
        "column": (place["column"] + 0.5) / factor,
        "radius": radius_mm / width_mm / factor,
    }


def environment() -> Environment:
    """Templates, and the words they may use."""
    templates = Environment(
        loader=PackageLoader("nnunet_imbal.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    words = (_words.code, _words.keep_together, _words.number, _words.percent, _words.short_path, _words.volume)
    templates.filters |= {word.__name__: word for word in words}
    templates.globals |= {"count": _words.count, "volume_range": _words.volume_range}
    return templates


def assets() -> dict[str, Markup | str]:
    """Our own style and script, and the hash by which the page's security policy knows the script."""
    package = resources.files("nnunet_imbal.report")
    style, script = (package.joinpath(name).read_text("utf-8") for name in ("style.css", "viewer.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return {"style": Markup(style), "script": Markup(script), "script_hash": digest}  # noqa: S704 - package files
