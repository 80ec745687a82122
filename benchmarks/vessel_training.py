"""Thin vessels: which loss keeps them whole, on artificial angiographies of the circle of Willis?

Every arm gets the same patches, the same first weights and the same number of steps. Two processor cores cannot learn
13 classes in minutes, so the network is small and the large arteries share a class; the communicating arteries, which
break first, keep classes of their own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from _short_nnunet import Workspace, plan, working_folder
from _topology_study import BATCH, FEATURES, PATCH, Study, make_parser, markdown, run_study

from nnunet_imbal.phantoms import VesselPhantom, write_dataset
from nnunet_imbal.phantoms._case import Case

CASES, TEST_CASES = 20, 8
CLASSES: Mapping[str, int] = {"background": 0, "arteries": 1, "PCoA": 2, "ACoA": 3}
RARE: Mapping[str, str] = {"R-Pcom": "PCoA", "L-Pcom": "PCoA", "Acom": "ACoA"}


@dataclass(frozen=True)
class GroupedVessels(VesselPhantom):
    """`VesselPhantom` with three classes instead of 13: all arteries but the communicating ones share one."""

    title: ClassVar[str] = "GroupedVessels"
    labels: ClassVar[Mapping[str, int]] = CLASSES

    def training_case(self, seed: int, index: int) -> Case:
        """Return training case number ``index``."""
        return grouped(super().training_case(seed, index))

    def test_case(self, seed: int, index: int) -> Case:
        """Return test case number ``index``."""
        return grouped(super().test_case(seed, index))


PHANTOM = GroupedVessels(shape=(56, 60, 76), spacing=(1.2, 1.0, 1.0))


def grouped(case: Case) -> Case:
    """The same case with the three classes."""
    values = [CLASSES[RARE.get(name, "arteries")] for name in VesselPhantom.labels if name != "background"]
    table = np.array([0, *values], dtype=np.uint8)
    return replace(case, label=table[case.label])


def prepare(folder: Path) -> Workspace:
    """Make the dataset and plan it; done once."""
    workspace = Workspace(folder, 710, PHANTOM.title)
    if not workspace.planned.is_file():
        write_dataset(PHANTOM, workspace.raw.parent, dataset_id=710, cases=CASES, test_cases=TEST_CASES)
        plan(workspace, PATCH, BATCH, FEATURES)
    return workspace


STUDY = Study(
    name="vessel_training",
    title="Artificial circles of Willis, three classes",
    prepare=prepare,
    rare=tuple(dict.fromkeys(RARE.values())),
    test_cases=TEST_CASES,
    setting={"cases": CASES},
    notes=(
        f"`VesselPhantom`, {' x '.join(map(str, PHANTOM.shape))} voxels of {' x '.join(map(str, PHANTOM.spacing))} mm, "
        f"{CASES} training cases; a communicating artery is one voxel thin",
        "classes: PCoA, ACoA, and all other labelled arteries together; left and right are one class",
    ),
)


def parse_arguments(words: Sequence[str] | None = None) -> Any:
    """The command line."""
    return make_parser(__doc__, epochs=5, iterations=100).parse_args(words)


def main() -> None:
    """Run, then print the table."""
    arguments = parse_arguments()
    arguments.out = working_folder(arguments.out)
    print(markdown(STUDY, run_study(STUDY, arguments)))


if __name__ == "__main__":
    main()
