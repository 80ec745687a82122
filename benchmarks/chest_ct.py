"""One real chest CT with a dissected aorta: which loss keeps its branches whole?

Training cases are virtual patients: the one scan moved, turned, scaled, bent smoothly, and with another contrast. The
test case is the scan as it is. So this shows whether a loss finds thin vessels in real images. It does not measure
generalisation, because every training case was made from the test case.

The scan and its label maps, made by a network and not by an expert, lie in the source archive of TotalSegmentator:
``pip download --no-deps --no-binary totalsegmentator totalsegmentator==2.18.0``, then unpack it. Apache-2.0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import nibabel as nib
import numpy as np
from _short_nnunet import Workspace, plan, working_folder
from _topology_study import BATCH, FEATURES, PATCH, Study, make_parser, markdown, run_study
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from nnunet_imbal.phantoms import write_dataset
from nnunet_imbal.phantoms._case import Case, generator

REFERENCE = Path("tests") / "reference_files"
IMAGE = REFERENCE / "aorta_report" / "example_ct.nii.gz"
AORTA, LUNG = REFERENCE / "aorta_report" / "test_result" / "models", REFERENCE / "pulmonary_report" / "models"
SOURCES: Mapping[str, Path] = {
    "pulmonary_artery": LUNG,
    "aorta_true_lumen": AORTA,
    "aorta_false_lumen": AORTA,
    "brachiocephalic_trunk": AORTA,
    "common_carotid_artery_left": AORTA,
    "subclavian_artery_left": AORTA,
    "celiac_trunk": AORTA,
    "superior_mesenteric_artery": AORTA,
}
RARE = ("brachiocephalic_trunk", "common_carotid_artery_left", "celiac_trunk", "superior_mesenteric_artery")
CASES, COARSER = 12, 2  # virtual patients have half the resolution: 3 mm instead of 1.5 mm


@dataclass(frozen=True)
class ChestCT:
    """The scan as test case, virtual patients made from it as training cases.

    Attributes:
        archive: folder of the unpacked source archive.
    """

    archive: Path

    title: ClassVar[str] = "ChestCT"
    channel: ClassVar[str] = "CT"
    licence: ClassVar[str] = "Apache-2.0; scan and label maps from TotalSegmentator 2.18.0"
    labels: ClassVar[Mapping[str, int]] = {"background": 0, **{name: n for n, name in enumerate(SOURCES, start=1)}}
    description: ClassVar[str] = "Virtual patients made from one real CT with a dissected aorta, and the CT itself."

    @cached_property
    def original(self) -> Case:
        """The scan and its vessels; where label maps overlap, the later class counts."""
        scan = nib.load(self.archive / IMAGE)
        label = np.zeros(scan.shape, np.uint8)
        for name, folder in SOURCES.items():
            label[_voxels(self.archive / folder / f"{name}.nii.gz", scan.affine)] = self.labels[name]
        return _case(np.asarray(scan.dataobj), label, scan.affine)

    def training_case(self, seed: int, index: int) -> Case:
        """Return virtual patient number ``index``."""
        rng, original = generator(seed, 5, index), self.original
        places = _bent_grid(rng, original.image.shape)
        smooth = gaussian_filter(original.image.astype(np.float32), 0.7)  # against aliasing
        image = map_coordinates(smooth, places, order=1, mode="nearest")
        label = map_coordinates(original.label, places, order=0, mode="constant")
        affine = original.affine @ np.diag([COARSER, COARSER, COARSER, 1])
        return _case(_other_contrast(rng, image), label, affine)

    def test_case(self, seed: int, index: int) -> Case | None:
        """Return the scan itself (0) or None: there is only one."""
        return self.original if index == 0 else None


def _voxels(path: Path, affine: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
    """Where a mask on a cropped grid lies in the grid of the scan."""
    mask = nib.load(path)
    inside = np.argwhere(np.asarray(mask.dataobj) > 0)
    places = nib.affines.apply_affine(np.linalg.inv(affine) @ mask.affine, inside)
    return tuple(np.rint(places).astype(np.int64).T)


def _case(image: NDArray[Any], label: NDArray[np.uint8], affine: NDArray[np.float64]) -> Case:
    return Case(image=image.astype(np.int16), label=label, instances=label.astype(np.uint16), affine=affine)


def _bent_grid(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Where each voxel of a coarser grid comes from: turned, scaled, moved, and bent by 6 to 9 mm at most."""
    coarse = tuple(n // COARSER for n in shape)
    middle = (np.array(shape) - 1) / 2
    matrix = Rotation.from_rotvec(rng.normal(0, 5, 3), degrees=True).as_matrix() * rng.uniform(0.9, 1.1)
    places = np.indices(coarse).reshape(3, -1) * COARSER + (COARSER - 1) / 2 - middle[:, None]
    places = matrix @ places + (middle + rng.normal(0, 3, 3))[:, None]
    bend = np.stack([gaussian_filter(rng.normal(size=coarse), rng.uniform(4, 6)) for _ in range(3)])
    return places.reshape(3, *coarse) + bend * (rng.uniform(4, 6) / np.abs(bend).max())


def _other_contrast(rng: np.random.Generator, image: NDArray[np.float32]) -> NDArray[np.float32]:
    """More or less contrast medium, another noise."""
    brighter = np.where(image > 0, image * rng.uniform(0.8, 1.2), image)
    return np.rint(brighter + rng.normal(0, rng.uniform(5, 25), image.shape))


def prepare(folder: Path, archive: Path) -> Workspace:
    """Make the dataset and plan it; done once."""
    workspace = Workspace(folder, 711, ChestCT.title)
    if not workspace.planned.is_file():
        write_dataset(ChestCT(archive), workspace.raw.parent, dataset_id=711, cases=CASES, test_cases=1)
        plan(workspace, PATCH, BATCH, FEATURES)
    return workspace


def make_study(archive: Path) -> Study:
    """The study on the scan in ``archive``."""
    return Study(
        name="chest_ct",
        title="One chest CT with a dissected aorta, eight vessels",
        prepare=partial(prepare, archive=archive),
        rare=RARE,
        test_cases=1,
        setting={"cases": CASES, "warm_up": [6, 100]},
        notes=(
            f"{CASES} virtual patients of 3 mm for training, all made from the scan that is the test case (1.5 mm, as "
            "it is): whether thin vessels are found, **not** generalisation",
            "the truth was made by a network (TotalSegmentator), not by an expert",
        ),
    )


def parse_arguments(words: Sequence[str] | None = None) -> Any:
    """The command line."""
    parser = make_parser(__doc__, epochs=4, iterations=50)
    parser.add_argument("--data", type=Path, required=True, help="folder of the unpacked source archive")
    return parser.parse_args(words)


def main() -> None:
    """Run, then print the table."""
    arguments = parse_arguments()
    arguments.out = working_folder(arguments.out)
    study = make_study(arguments.data.resolve())
    print(markdown(study, run_study(study, arguments)))


if __name__ == "__main__":
    main()
