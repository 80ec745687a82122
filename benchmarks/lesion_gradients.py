"""How much of the gradient do the smallest lesions get? Twenty real patients, one typical prediction, several losses.

The masks are real (open_ms_data, see README.md here); the prediction is made from them, so that every loss sees the
same one. With d the distance in mm to the border of the nearest lesion (positive inside) and n its size in voxels,

    probability = n / (n + 30) * sigmoid(d / 1 mm),   but nowhere below 4e-4:

outlines are blurred, large lesions are seen clearly, small ones faintly, and a thin haze of false alarm lies over
everything. A lesion's share is the sum over its voxels of the absolute gradient with respect to the logits, divided by
that of all lesions. Each patient is one sample, cropped to 10 voxels around the lesions.
"""

import argparse
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from _machine import describe_machine
from scipy import ndimage
from torch import Tensor

from nnunet_imbal import build_loss
from nnunet_imbal.ops import component_cells, component_labels

HALF_SEEN, HAZE, MARGIN = 30, 4e-4, 10
LOSSES = {
    "Dice": None,
    "blob_dice": {},
    "cc_dice": {},
    "cc_dice, balanced": {"weighting": "balanced"},
    "instance_ce": {},
}
HERE = Path(__file__).parent
RESULT = HERE / "results" / "lesion_gradients.json"
FIGURE = HERE.parent / "docs" / "figures" / "lesion_gradients.png"
COLOURS = {"Dice": "#888888", "blob_dice": "#d9822b", "cc_dice": "#1f6fb4"}


def lesion_mask(path: Path) -> np.ndarray:
    """Expert mask cropped to its lesions."""
    mask = sitk.GetArrayFromImage(sitk.ReadImage(str(path))) > 0.5
    (box,) = ndimage.find_objects(mask.astype(np.uint8))
    return mask[tuple(slice(max(s.start - MARGIN, 0), s.stop + MARGIN) for s in box)]


def typical_prediction(mask: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, component ids and cells, each (1, 1, *S)."""
    target = torch.from_numpy(mask)[None, None]
    labels, cells = component_labels(target), component_cells(target)
    sizes = torch.bincount(labels.flatten())
    seen = sizes / (sizes + HALF_SEEN)
    depth = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
    probs = seen[cells.long()] * torch.sigmoid(torch.from_numpy(depth)[None, None])
    return torch.logit(probs.clamp(min=HAZE)), labels, cells


def plain_dice(logits: Tensor, target: Tensor) -> Tensor:
    probs = torch.sigmoid(logits)
    return 1 - 2 * (probs * target).sum() / (probs.sum() + target.sum())


def gradient_shares(logits: Tensor, labels: Tensor, name: str) -> np.ndarray:
    """Share of each lesion in the gradient of all of them."""
    logits, target = logits.clone().requires_grad_(), labels > 0
    options = LOSSES[name]
    loss = plain_dice if options is None else build_loss(name.split(",")[0], sigmoid=True, **options)
    loss(logits, target).backward()
    assert logits.grad is not None
    pull = torch.bincount(labels.flatten(), weights=logits.grad.abs().flatten())[1:]
    return (pull / pull.sum()).numpy()


def patient(path: Path) -> dict[str, Any]:
    """Sizes in voxels (1 mm³), smallest first, and the shares in the same order."""
    logits, labels, _ = typical_prediction(lesion_mask(path))
    sizes = torch.bincount(labels.flatten())[1:].numpy()
    order = np.argsort(sizes, kind="stable")
    shares = {name: gradient_shares(logits, labels, name)[order].round(8).tolist() for name in LOSSES}
    number = re.findall(r"\d+", path.name)[0]
    return {"patient": number, "sizes": sizes[order].tolist(), "shares": shares}


def smallest_quartile(patient: dict[str, Any]) -> dict[str, float]:
    """Share of the smallest quarter of the lesions in number, voxels and gradients."""
    sizes = patient["sizes"]
    count = max(round(len(sizes) / 4), 1)
    parts = {"lesions": count / len(sizes), "voxels": sum(sizes[:count]) / sum(sizes)}
    return parts | {name: sum(values[:count]) for name, values in patient["shares"].items()}


def markdown(result: dict[str, Any]) -> str:
    """Page of the results."""
    columns = ["lesions", "voxels", *LOSSES]
    rows = [smallest_quartile(p) for p in result["patients"]]
    lines = [
        "| patient | lesions | median size | largest | " + " | ".join(f"{c} %" for c in columns[1:]) + " |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for p, row in zip(result["patients"], rows, strict=True):
        numbers = [p["patient"], len(p["sizes"]), f"{statistics.median(p['sizes']):g}", p["sizes"][-1]]
        lines.append(f"| {' | '.join(map(str, numbers))} | " + " | ".join(_percent(row[c]) for c in columns[1:]) + " |")
    medians = {c: statistics.median(row[c] for row in rows) for c in columns}
    lines.append("| **median** | | | | " + " | ".join(f"**{_percent(medians[c])}**" for c in columns[1:]) + " |")
    return "\n".join(
        [
            "# Share of the smallest quarter of the lesions in the gradient",
            "",
            "Made by `python benchmarks/lesion_gradients.py open_ms_data`; do not edit. Real masks of patients with",
            "multiple sclerosis (Lesjak et al. 2017, CC-BY), sizes in voxels of 1 mm³, 26 neighbours. The prediction",
            "is made by a formula, see the script; another prediction gives other numbers. If every lesion had one",
            "vote, the smallest quarter would get 25 %.",
            "",
            *lines,
            "",
            f"- {result['machine']['system']}, versions: {result['machine']['versions']}",
            "",
        ]
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g}"


def draw(result: dict[str, Any], example: Path, output: Path) -> None:
    """Left: what a cell is, on one real slice. Right: share of each lesion in the gradient over its size."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 4.2), width_ratios=(1, 1.25))
    _draw_cells(left, lesion_mask(example))
    for name, colour in COLOURS.items():
        sizes = np.concatenate([p["sizes"] for p in result["patients"]])
        votes = np.concatenate([np.array(p["shares"][name]) * len(p["sizes"]) for p in result["patients"]])
        right.loglog(sizes, votes.clip(1e-6), ".", ms=3, alpha=0.35, color=colour)
        right.plot([], [], "o", color=colour, label=name)
    right.axhline(1, color="black", lw=0.8, ls="--")
    right.text(sizes.max(), 1.25, "one vote per lesion", ha="right", fontsize=8)
    right.set(xlabel="size of the lesion (voxels of 1 mm³)", ylabel="gradient of the lesion / mean over its patient")
    right.legend(frameon=False, fontsize=8, loc="lower right")
    right.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    output.parent.mkdir(exist_ok=True)
    figure.savefig(output, dpi=100, metadata={"Software": None})
    plt.close(figure)


def _draw_cells(axes: Any, mask: np.ndarray) -> None:
    target = torch.from_numpy(mask)[None, None]
    z = int(mask.sum((1, 2)).argmax())
    cells, slice_ = component_cells(target)[0, 0, z].numpy(), mask[z]
    border = np.zeros(cells.shape, bool)
    border[:-1] |= cells[:-1] != cells[1:]
    border[:, :-1] |= cells[:, :-1] != cells[:, 1:]
    picture = np.ones((*cells.shape, 3))
    picture[border] = 0.75
    picture[slice_] = (0.12, 0.44, 0.71)
    axes.imshow(picture, interpolation="nearest", origin="lower")
    axes.set_axis_off()
    axes.set_title("lesions, and the cell of each (one slice)", fontsize=9)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with patientNN_gold.nii.gz")
    parser.add_argument("--example", default="09", help="patient of the picture (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=RESULT, help="JSON to write, Markdown beside it")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="picture to write")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse_arguments()
    paths = sorted(arguments.data.glob("patient*_gold.nii.gz"))
    if not paths:
        raise SystemExit(f"no patientNN_gold.nii.gz in {arguments.data}")
    result: dict[str, Any] = {"machine": describe_machine(), "patients": []}
    for path in paths:
        result["patients"].append(patient(path))
        print(path.name, {k: round(v, 4) for k, v in smallest_quartile(result["patients"][-1]).items()}, flush=True)
    for target, text in (
        (arguments.output, json.dumps(result) + "\n"),
        (arguments.output.with_suffix(".md"), markdown(result)),
    ):
        part = target.with_suffix(target.suffix + ".part")
        part.write_text(text, encoding="utf-8")
        part.replace(target)
    draw(result, arguments.data / f"patient{arguments.example}_gold.nii.gz", arguments.figure)


if __name__ == "__main__":
    main()
