"""Few labels, real anatomy: what do a mean teacher, label proportions and SCDL add for rare structures?

Label maps of 14 brains, images made from them. Two or three brains of ten keep their labels, four others are for
testing. Every arm goes on from the same supervised start for the same number of iterations. The default budget is about
50 minutes of one free core: the numbers compare arms under one small budget and nothing else.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _brain_cases import CLASSES, TEST, TRAINING, Case, Patches, dice_per_class, load_cases, split
from _brain_page import page, summary
from _machine import describe_machine
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.networks.nets import DynUNet
from monai.networks.utils import pixelshuffle, pixelunshuffle
from torch import Tensor, nn

from nnunet_imbal.config import Distributions, Semi
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses.label_proportion import LabelProportion
from nnunet_imbal.losses.scdl import SCDL
from nnunet_imbal.proportions import collect_proportions
from nnunet_imbal.semi import FeatureTap, MeanTeacher, UnlabelledLoss, perturb_intensity, ramp_up

FILTERS, BLOCK = (32, 64, 96), 2
PROPORTION_WEIGHT = 0.1  # the published one
SEMI, DISTRIBUTIONS = Semi(), Distributions()  # the trainers' own weights and ramps
WARM_UP_RATE, RATE, WEIGHT_DECAY, LARGEST_GRADIENT = 3e-3, 1e-3, 1e-2, 12.0


@dataclass(frozen=True)
class Arm:
    """What an arm adds to Dice + cross-entropy on labelled patches; SCDL in one of its forms or not at all."""

    teacher: bool = True
    proportion: bool = False
    scdl: str | None = None


ARMS = {
    "supervised": Arm(teacher=False),
    "mean teacher": Arm(),
    "mean teacher + proportion": Arm(proportion=True),
    "mean teacher + SCDL (balanced)": Arm(scdl="balanced"),
    "mean teacher + SCDL (released)": Arm(scdl="released"),
}


@dataclass(frozen=True)
class Budget:
    """What all arms have in common.

    Attributes:
        warm_up: supervised iterations before the arms part.
        iterations: of each arm after that.
        patch: voxels along each axis.
        labelled: cases that keep their labels.
    """

    warm_up: int
    iterations: int
    patch: int
    labelled: int


class BlockUNet(nn.Module):
    """U-Net that works on blocks of 2x2x2 voxels: nothing is lost, and a step costs a processor a fifth."""

    def __init__(self) -> None:
        super().__init__()
        levels = len(FILTERS)
        self.body = DynUNet(
            3, 4 * BLOCK**3, len(CLASSES) * BLOCK**3, [3] * levels, [1] + [2] * (levels - 1), [2] * (levels - 1),
            filters=FILTERS, norm_name=("group", {"num_groups": 4, "affine": True}),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, C, Z, Y, X) of images (B, 4, Z, Y, X) with even sides, float32."""
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.body(pixelunshuffle(images, 3, BLOCK))
        return pixelshuffle(logits.float(), 3, BLOCK)

    @property
    def last_layer(self) -> nn.Module:
        """What turns features into logits."""
        layer: nn.Module = self.body.output_block
        return layer


class Extra(nn.Module):
    """What an arm adds to the supervised loss, with all that belongs to it.

    Args:
        arm: which terms.
        network: the student, as it is after the supervised start.
        bank: proportions of labelled patches, (N, C).
        seed: of the student's views.
    """

    def __init__(self, arm: Arm, network: BlockUNet, bank: Tensor, seed: int) -> None:
        super().__init__()
        self.teacher = MeanTeacher(network, SEMI.decay)
        self.unlabelled = UnlabelledLoss(len(CLASSES))  # its defaults are the trainer's
        self.proportion = LabelProportion(bank) if arm.proportion else None
        self.scdl = SCDL(FILTERS[0], len(CLASSES), token_size=2, form=arm.scdl) if arm.scdl else None
        self.tap = FeatureTap(network.last_layer)
        self.generator = torch.Generator().manual_seed(seed)

    def view(self, images: Tensor) -> Tensor:
        """The harder view that the student gets."""
        return perturb_intensity(images, channels=1, generator=self.generator)

    def forward(self, logits: Tensor, labels: Tensor, unlabelled_images: Tensor, progress: float) -> Tensor:
        """Loss beside the supervised one.

        Args:
            logits: of the labelled patches and then of the views of the unlabelled ones.
            labels: of the labelled patches.
            unlabelled_images: as the teacher sees them.
            progress: share of the iterations that are done, 0 to 1.
        """
        own, features = logits[len(labels) :], self.tap.take()
        say, everywhere = ramp_up(progress, SEMI.ramp), torch.ones_like(own[:, :1], dtype=torch.bool)
        loss = say * self.unlabelled(own, self.teacher(unlabelled_images), everywhere)
        if self.proportion is not None:
            loss = loss + PROPORTION_WEIGHT * say * self.proportion(own)
        if self.scdl is not None:
            nothing = torch.zeros(len(own), *labels.shape[1:], dtype=labels.dtype)
            mask = torch.cat([torch.ones_like(labels), nothing])
            weight = DISTRIBUTIONS.weight * ramp_up(progress, DISTRIBUTIONS.ramp)
            loss = loss + weight * self.scdl(features, torch.cat([labels, nothing]), mask, say)
        return loss


def train(
    network: BlockUNet, labelled: Patches, unlabelled: Patches, extra: Extra | None, iterations: int, rate: float
) -> None:
    """Train ``network`` in place; a labelled patch an iteration, and with ``extra`` an unlabelled one."""
    supervised = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    groups: list[Any] = [{"params": network.parameters(), "weight_decay": WEIGHT_DECAY}]
    if extra is not None and extra.scdl is not None:
        groups += extra.scdl.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, iterations, pct_start=0.1)
    network.train()
    for step in range(iterations):
        images, labels = labelled.draw()
        if extra is None:
            loss = supervised(network(images), labels)
        else:
            others, _ = unlabelled.draw()
            logits = network(torch.cat([images, extra.view(others)]))
            loss = supervised(logits[:1], labels) + extra(logits, labels, others, step / iterations)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), LARGEST_GRADIENT)
        optimizer.step()
        schedule.step()
        if extra is not None:
            extra.teacher.update_parameters(network)


def fresh_network(labelled: Sequence[Case]) -> BlockUNet:
    """A network that begins by saying how frequent each class is: the first hundred iterations learn nothing else."""
    network = BlockUNet()
    counts = sum(np.bincount(case.label.flatten(), minlength=len(CLASSES)) for case in labelled)
    prior = torch.as_tensor(counts / np.sum(counts), dtype=torch.float32).clamp(min=1e-4).log()
    network.body.output_block.conv.conv.bias.data.copy_(prior.repeat_interleave(BLOCK**3))
    return network


@torch.inference_mode()
def evaluate(network: BlockUNet, cases: Sequence[Case], patch: int) -> dict[str, dict[str, float | None]]:
    """Dice of each class in each case; None where neither the case nor the prediction has the class."""
    network.eval()
    inferer = SlidingWindowInferer(patch, 4, overlap=0.25, mode="gaussian")
    predictions = {case.number: inferer(case.image[None], network)[0].argmax(0) for case in cases}
    return {str(case.number): dice_per_class(predictions[case.number], case.label) for case in cases}


class Study:
    """All runs of one budget, in a folder that remembers which of them are done."""

    def __init__(self, data: Path, out: Path, budget: Budget, seeds: Sequence[int], arms: Sequence[str]) -> None:
        self.data, self.out, self.budget = data, out, budget
        self.seeds, self.arms = list(seeds), list(arms)
        self.lines = out / "runs.jsonl"

    def run(self) -> None:
        """Do what is missing, seed by seed, and write the results after every run."""
        for seed, arm in product(self.seeds, self.arms):
            if not any(run["seed"] == seed and run["arm"] == arm for run in self.runs()):
                print(f"seed {seed}, {arm}", flush=True)
                record = {"seed": seed, "arm": arm, **asdict(self.budget), **self._run(seed, arm)}
                with self.lines.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(record) + "\n")
                self.write()

    def runs(self) -> list[dict[str, Any]]:
        """Runs of this budget that are done."""
        lines = self.lines.read_text(encoding="utf-8").splitlines() if self.lines.is_file() else []
        budget = asdict(self.budget)
        return [run for run in map(json.loads, lines) if {key: run[key] for key in budget} == budget]

    def write(self) -> None:
        """Write ``brain_semi.json`` and, as soon as an arm has all seeds, ``brain_semi.md``."""
        runs = [run for run in self.runs() if run["seed"] in self.seeds and run["arm"] in self.arms]
        settings = {
            **asdict(self.budget),
            "seeds": self.seeds,
            "arms": self.arms,
            "network": f"MONAI DynUNet {FILTERS}, group norm, on blocks of {BLOCK}x{BLOCK}x{BLOCK} voxels, bfloat16",
            "optimiser": f"AdamW, one cycle to {WARM_UP_RATE:g} in the start and {RATE:g} after it",
        }
        result = {"settings": settings, "machine": describe_machine(), "voxels": self._voxels(), "runs": runs}
        found = summary(result)
        (self.out / "brain_semi.json").write_text(json.dumps({**result, "summary": found}, indent=1) + "\n")
        if found["arms"]:
            (self.out / "brain_semi.md").write_text(page(result))

    def _run(self, seed: int, arm: str) -> dict[str, Any]:
        cases = load_cases(self.data, self.out / "cases", seed)
        with_labels, without = split(seed, self.budget.labelled)
        labelled, unlabelled = [cases[n] for n in with_labels], [cases[n] for n in without]
        network = self._start(seed, labelled)
        begin = time.process_time()
        torch.manual_seed(seed)
        known, others = self._patches(labelled, seed, 1), self._patches(unlabelled, seed, 2)
        extra = None
        if ARMS[arm].teacher:
            bank = collect_proportions(_labels(self._patches(labelled, seed, 3)), LabelSpec(), len(CLASSES), 500)
            extra = Extra(ARMS[arm], network, bank, seed)
        train(network, known, others, extra, self.budget.iterations, RATE)
        trained = time.process_time()
        dice = evaluate(network, [cases[n] for n in TEST], self.budget.patch)
        return {"labelled_cases": with_labels, "training_cpu_s": round(trained - begin, 1), "dice": dice}

    def _start(self, seed: int, labelled: Sequence[Case]) -> BlockUNet:
        """Network after the supervised start, which is made once per seed."""
        budget = self.budget
        path = self.out / f"start_seed{seed}_{budget.warm_up}_{budget.patch}_{budget.labelled}.pt"
        torch.manual_seed(seed)
        network = fresh_network(labelled)
        if not path.is_file():
            patches = self._patches(labelled, seed, 0)
            train(network, patches, patches, None, budget.warm_up, WARM_UP_RATE)
            partial = path.with_suffix(".part")
            torch.save(network.state_dict(), partial)
            partial.rename(path)
        network.load_state_dict(torch.load(path, weights_only=True))
        return network

    def _patches(self, cases: Sequence[Case], seed: int, stream: int) -> Patches:
        # Where nobody labelled there is no class to look for, so proportions are measured without looking for one.
        return Patches(cases, self.budget.patch, seed, stream, foreground=stream in (0, 1))

    def _voxels(self) -> dict[str, float]:
        """Mean voxels of each class in the ten training cases, whether or not they keep their labels."""
        cases = load_cases(self.data, self.out / "cases", self.seeds[0])
        counts = [np.bincount(cases[n].label.flatten(), minlength=len(CLASSES)) for n in TRAINING]
        return dict(zip(CLASSES[1:], np.mean(counts, axis=0)[1:].tolist(), strict=True))


def _labels(patches: Patches) -> Iterator[Tensor]:
    while True:
        yield patches.draw()[1]


def parse_arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with SynthSeg's training_seg_01.nii.gz to _14.nii.gz")
    parser.add_argument("out", type=Path, help="folder for everything the benchmark makes; started again it goes on")
    parser.add_argument("--warm-up", type=int, default=4000, help="supervised iterations that all arms share")
    parser.add_argument("--iterations", type=int, default=480, help="iterations of each arm after them")
    parser.add_argument("--patch", type=int, default=32, help="voxels of 2 mm along each axis, a multiple of 8")
    parser.add_argument("--labelled", type=int, default=3, help="cases of ten that keep their labels")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    return parser.parse_args(words)


def main() -> None:
    """Run what is missing, with one thread."""
    arguments = parse_arguments()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    budget = Budget(arguments.warm_up, arguments.iterations, arguments.patch, arguments.labelled)
    study = Study(arguments.data, arguments.out, budget, arguments.seeds, arguments.arms)
    study.run()
    study.write()


if __name__ == "__main__":
    main()
