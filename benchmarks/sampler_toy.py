"""What does the choice of training patches change? Small networks on volumes with one large and seven small balls.

Every arm of one seed gets the same volumes and the same first weights; only the forced patches differ.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _machine import describe_machine, machine_lines
from monai.inferers import sliding_window_inference
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F  # its customary name

from nnunet_imbal.io import write_atomically
from nnunet_imbal.sampling import InstanceBalancedSampler, find_instances, merge
from numba_kernels import component_stats, connected_components

RESULTS = Path(__file__).with_name("results") / "sampler_toy.json"
LARGE_SHARE = 1 / 7  # radius of the large ball, in sides of the volume
SMALL_RADII, SMALL_BALLS, TUBES = (1.5, 2.3), 7, 3  # voxels
COVERED = 0.25  # share of a ball's voxels that must be predicted for it to count as found
FALSE_VOXELS = 5  # smaller predicted components away from every ball are noise, not false positives
DECILES = 10

Volume = NDArray[np.float32]
Labels = NDArray[np.uint8]
Case = tuple[Volume, Labels]
Centers = Callable[[np.random.Generator], tuple[int, Sequence[int]]]
"""Draws the case and the middle voxel of one forced patch."""


@dataclass(frozen=True)
class Settings:
    """All that must agree before two runs may stand in one table."""

    size: int = 96
    patch: int = 24
    batch: int = 3
    steps: int = 300
    training_cases: int = 8
    test_cases: int = 4
    noise: float = 0.3


@dataclass(frozen=True)
class Arm:
    """One way to choose the forced patches."""

    forced: int
    rule: str
    offset: float = 0.0


ARMS = {
    "stock": Arm(forced=1, rule="stock"),
    "stock, 0.66 forced": Arm(forced=2, rule="stock"),
    "ours": Arm(forced=1, rule="instances", offset=0.7),
    "ours, no offset": Arm(forced=1, rule="instances"),
}


def make_case(settings: Settings, rng: np.random.Generator) -> Case:
    """One volume: balls that do not touch are the target, tubes of the same brightness are not."""
    size = settings.size
    taken: list[tuple[NDArray[np.float64], float]] = []
    for radius in (LARGE_SHARE * size, *rng.uniform(*SMALL_RADII, SMALL_BALLS)):
        taken.append((_free_place(taken, radius, size, rng), radius))
    grid = np.indices((size,) * 3, dtype=np.float32)
    tubes = np.zeros((size,) * 3, bool)
    for _ in range(TUBES):
        tubes |= _tube(grid, rng.uniform(0, size, 3), rng.normal(size=3), rng.uniform(1.2, 1.8))
    labels = np.zeros((size,) * 3, bool)
    for center, radius in taken:
        labels |= _distance2(grid, center) <= radius**2
        tubes &= _distance2(grid, center) > (radius + 2) ** 2
    image = (labels | tubes) + rng.normal(0, settings.noise, labels.shape)
    return image.astype(np.float32), labels.astype(np.uint8)


def _free_place(
    taken: list[tuple[NDArray[np.float64], float]], radius: float, size: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    while True:
        center = rng.uniform(radius + 1, size - radius - 2, 3)
        if all(np.linalg.norm(center - other) > radius + distance + 4 for other, distance in taken):
            return center


def _distance2(grid: NDArray[np.float32], center: NDArray[np.float64]) -> NDArray[Any]:
    return sum((axis - at) ** 2 for axis, at in zip(grid, center, strict=True))


def _tube(
    grid: NDArray[np.float32], point: NDArray[np.float64], direction: NDArray[np.float64], radius: float
) -> NDArray[np.bool_]:
    direction = direction / np.linalg.norm(direction)
    along = sum((axis - at) * d for axis, at, d in zip(grid, point, direction, strict=True))
    return _distance2(grid, point) - along**2 <= radius**2


class UNet(nn.Module):
    """Three resolutions of 8, 16 and 32 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList([_block(1, 8), _block(8, 16), _block(16, 32)])
        self.up = nn.ModuleList([_block(32 + 16, 16), _block(16 + 8, 8)])
        self.head = nn.Conv3d(8, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        """Logits of background and target."""
        features, skips = image, []
        for stage, block in enumerate(self.down):
            features = block(F.max_pool3d(features, 2) if stage else features)
            skips.append(features)
        for block, skip in zip(self.up, skips[-2::-1], strict=True):
            features = block(torch.cat([F.interpolate(features, scale_factor=2), skip], dim=1))
        return self.head(features)


def _block(inputs: int, outputs: int) -> nn.Sequential:
    layers = [nn.Conv3d(inputs, outputs, 3, padding=1), nn.InstanceNorm3d(outputs, affine=True), nn.LeakyReLU(0.01)]
    return nn.Sequential(*layers)


def dice_and_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """The usual pair; Dice over the whole batch."""
    probs = logits.softmax(1)[:, 1]
    dice = (2 * (probs * labels).sum() + 1e-5) / (probs.sum() + labels.sum() + 1e-5)
    return F.cross_entropy(logits, labels) + 1 - dice


def stock_centers(cases: Sequence[Case]) -> Centers:
    """nnU-Net's rule with nnU-Net's own list of positions: any case, then any of its stored voxels."""
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor

    stored = [DefaultPreprocessor._sample_foreground_locations(labels[None], [1])[1] for _, labels in cases]

    def draw(rng: np.random.Generator) -> tuple[int, Sequence[int]]:
        case = int(rng.integers(len(stored)))
        return case, stored[case][rng.integers(len(stored[case]))][1:]

    return draw


def balanced_centers(cases: Sequence[Case], patch: int, offset: float) -> Centers:
    """Our rule with its default share of instances."""
    index = merge([find_instances(labels, [1], case=str(number)) for number, (_, labels) in enumerate(cases)])
    sampler = InstanceBalancedSampler(index, offset=offset)

    def draw(rng: np.random.Generator) -> tuple[int, Sequence[int]]:
        found = sampler.draw((patch,) * 3, rng)
        return int(found.case), found.center

    return draw


def make_batch(
    cases: Sequence[Case], forced: int, centers: Centers, settings: Settings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random patches first, forced ones last, as nnU-Net has them; patches stay inside the volume."""
    highest, images, labels = settings.size - settings.patch, [], []
    for number in range(settings.batch):
        case, corner = int(rng.integers(len(cases))), rng.integers(0, highest + 1, 3)
        if number >= settings.batch - forced:
            case, center = centers(rng)
            corner = np.clip(np.asarray(center) - settings.patch // 2, 0, highest)
        box = tuple(slice(at, at + settings.patch) for at in corner)
        images.append(cases[case][0][box])
        labels.append(cases[case][1][box])
    return torch.from_numpy(np.stack(images))[:, None], torch.from_numpy(np.stack(labels)).long()


def train(arm: Arm, cases: Sequence[Case], settings: Settings, seed: int) -> UNet:
    """One training; SGD as in nnU-Net, with its schedule."""
    stock = arm.rule == "stock"
    centers = stock_centers(cases) if stock else balanced_centers(cases, settings.patch, arm.offset)
    torch.manual_seed(seed)
    network, rng = UNet(), np.random.default_rng([seed, 1])
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=3e-5)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, settings.steps, power=0.9)
    for _ in range(settings.steps):
        images, labels = make_batch(cases, arm.forced, centers, settings, rng)
        optimizer.zero_grad()
        dice_and_cross_entropy(network(images), labels).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 12)
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def measure(network: UNet, cases: Sequence[Case], patch: int) -> dict[str, Any]:
    """Dice, false positives per case, and for each ball its volume and whether it was found."""
    dice, false, balls = [], 0, []
    for image, labels in cases:
        # In patches, as in training: instance normalisation sees another volume otherwise.
        logits = sliding_window_inference(torch.from_numpy(image)[None, None], patch, 8, network, mode="gaussian")
        predicted = logits.argmax(1)[0].numpy().astype(np.uint8)
        dice.append(2 * int((predicted & labels).sum()) / max(1, int(predicted.sum()) + int(labels.sum())))
        touched = component_stats(predicted, fields=[labels])
        false += int(((touched.sums[0] == 0) & (touched.sizes >= FALSE_VOXELS)).sum())
        found = component_stats(connected_components(labels)[0], fields=[predicted])
        balls += [[int(v), bool(s >= COVERED * v)] for v, s in zip(found.sizes, found.sums[0], strict=True)]
    return {"dice": float(np.mean(dice)), "false_positives_per_case": false / len(cases), "balls": balls}


def run(settings: Settings, seeds: Sequence[int], output: Path) -> dict[str, Any]:
    """Every arm of every seed that the file does not hold yet; the file is written after each."""
    result = _load(output, settings)
    for seed in seeds:
        missing = [name for name in ARMS if f"{name} / {seed}" not in result["runs"]]
        if not missing:
            continue
        rng = np.random.default_rng([seed, 0])
        cases = [make_case(settings, rng) for _ in range(settings.training_cases + settings.test_cases)]
        for name in missing:
            begin = time.process_time()
            network = train(ARMS[name], cases[: settings.training_cases], settings, seed)
            run_result = {
                "arm": name,
                "seed": seed,
                **measure(network, cases[settings.training_cases :], settings.patch),
            }
            result["runs"][f"{name} / {seed}"] = {**run_result, "cpu_seconds": round(time.process_time() - begin, 1)}
            write_atomically(output, json.dumps(result) + "\n")
    return result


def _load(output: Path, settings: Settings) -> dict[str, Any]:
    if output.is_file():
        stored: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
        if stored["settings"] == asdict(settings):
            return stored
        raise SystemExit(f"{output} holds results of other settings ({stored['settings']}); move it away first")
    return {"settings": asdict(settings), "machine": describe_machine(), "runs": {}}


def _small(runs: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    """Volume and found or not, of the small balls of some runs: ``(N, 2)``."""
    limit = 4 / 3 * np.pi * (SMALL_RADII[1] + 1) ** 3
    return np.array([ball for each in runs for ball in each["balls"] if ball[0] < limit], dtype=int)


def table(result: dict[str, Any]) -> str:
    """Markdown: mean and standard deviation over seeds, then recall by decile of volume."""
    arms = {name: [each for each in result["runs"].values() if each["arm"] == name] for name in ARMS}
    arms = {name: runs for name, runs in arms.items() if runs}
    seeds = max(map(len, arms.values()))
    settings = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in result["settings"].items())
    lines = [
        f"# Choice of training patches on artificial volumes, {seeds} seeds",
        "",
        "`python benchmarks/sampler_toy.py`; mean ± standard deviation over seeds. A ball is found if 25 % of it is",
        "predicted; a false positive is a predicted component of at least 5 voxels that touches no ball.",
        "",
        "| forced patches | Dice | recall of small balls | false positives per case |",
        "|---|---|---|---|",
        *(_row(name, _summary(runs)) for name, runs in arms.items()),
        "",
        "Recall of small balls by volume in voxels (deciles, all seeds together):",
        "",
        *_by_volume(arms),
        "",
        f"- {settings}",
        *machine_lines(result["machine"]),
    ]
    return "\n".join(lines) + "\n"


def _summary(runs: Sequence[dict[str, Any]]) -> list[str]:
    recall = [float(_small([each])[:, 1].mean()) for each in runs]
    false = [each["false_positives_per_case"] for each in runs]
    return [_spread([each["dice"] for each in runs], 3), _spread(recall, 2), _spread(false, 1)]


def _by_volume(arms: dict[str, list[dict[str, Any]]]) -> list[str]:
    volumes = np.concatenate([_small(runs)[:, 0] for runs in arms.values()])
    edges = np.unique(np.quantile(volumes, np.linspace(0, 1, DECILES + 1), method="nearest"))
    spans = list(pairwise(edges))
    heads = [f"{low}-{high - (n < len(spans) - 1)}" for n, (low, high) in enumerate(spans)]
    lines = [_row("forced patches", heads), "|---" * (len(spans) + 1) + "|"]
    for name, runs in arms.items():
        small = _small(runs)
        place = np.clip(np.searchsorted(edges, small[:, 0], side="right") - 1, 0, len(spans) - 1)
        lines.append(_row(name, [f"{small[place == n, 1].mean():.2f}" for n in range(len(spans))]))
    return lines


def _row(name: str, columns: Sequence[str]) -> str:
    return f"| {name} | " + " | ".join(columns) + " |"


def _spread(values: Sequence[float], digits: int) -> str:
    return f"{np.mean(values):.{digits}f} ± {np.std(values, ddof=min(1, len(values) - 1)):.{digits}f}"


def parse_arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON file; a table is written beside it")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing and write the table."""
    arguments = parse_arguments(words)
    torch.set_num_threads(1)
    result = run(Settings(steps=arguments.steps), arguments.seeds, arguments.output)
    write_atomically(arguments.output.with_suffix(".md"), table(result))


if __name__ == "__main__":
    main()
