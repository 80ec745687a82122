"""A tiny nnU-Net dataset in four labelling modes, planned and preprocessed once by nnU-Net's own commands."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from filelock import FileLock

HERE = Path(__file__).parent
SIZE = 32
LABELS = {
    "labels": {"background": 0, "organ": 1, "lesion": 2},
    "regions": {"background": 0, "whole": [1, 2], "lesion": 2},
    "ignore": {"background": 0, "organ": 1, "lesion": 2, "ignore": 3},
    "regions_ignore": {"background": 0, "whole": [1, 2], "lesion": 2, "ignore": 3},
}
AFFINE = {"spacing": (1.0, 1.2, 1.5), "origin": (5.0, -7.0, 11.0), "direction": (-1, 0, 0, 0, -1, 0, 0, 0, 1)}


@dataclass(frozen=True)
class Workspace:
    """The three nnU-Net folders of one dataset."""

    folder: Path
    dataset: str

    @property
    def environment(self):
        return {
            **{f"nnUNet_{name}": str(self.folder / name) for name in ("raw", "preprocessed", "results")},
            "nnUNet_n_proc_DA": "0",
            "nnUNet_def_n_proc": "1",
            "nnUNet_compile": "f",
            "MPLBACKEND": "agg",
            "nnUNet_extTrainer": str(HERE / "ext"),
        }

    @property
    def preprocessed(self):
        return self.folder / "preprocessed" / self.dataset

    def shrink_networks(self):
        """Give the planned networks few features: nnU-Net's own widths, from 32 to 256, learn no more in two steps."""
        path = self.preprocessed / "nnUNetPlans.json"
        plans = json.loads(path.read_text())
        for configuration in plans["configurations"].values():
            if "architecture" in configuration:
                configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8]
        path.write_text(json.dumps(plans, indent=4))

    def run(self, command, *arguments, check=True, **environment):
        """One of nnU-Net's console commands, as a user would type it."""
        words = [str(Path(sys.executable).parent / command), *map(str, arguments)]
        environment = {**os.environ, **self.environment, **environment}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)  # pytest-timeout ends it
        if check and done.returncode:
            raise AssertionError(f"{' '.join(words)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}")
        return done


def _image(array):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(AFFINE["spacing"])
    image.SetOrigin(AFFINE["origin"])
    image.SetDirection(AFFINE["direction"])
    return image


def _case(rng, ignore):
    z, y, x = np.indices((SIZE,) * 3)
    center = rng.uniform(12, 20, 3)
    labels = (((z - center[0]) ** 2 + (y - center[1]) ** 2 + (x - center[2]) ** 2) < 81).astype(np.uint8)
    for _ in range(3):
        a, b, c = rng.integers(2, SIZE - 5, 3)
        labels[a : a + 3, b : b + 3, c : c + 3] = 2
    image = labels * 100.0 + rng.normal(0, 15, labels.shape)
    if ignore:
        labels[:, : SIZE // 4] = 3
    return image.astype(np.float32), labels


def write_raw_dataset(raw, dataset, mode, cases=6):
    folder, rng = raw / dataset, np.random.default_rng(7)
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for number in range(cases):
        image, labels = _case(rng, "ignore" in mode)
        sitk.WriteImage(_image(image), str(folder / "imagesTr" / f"case{number}_0000.nii.gz"))
        sitk.WriteImage(_image(labels), str(folder / "labelsTr" / f"case{number}.nii.gz"))
    sitk.WriteImage(_image(_case(rng, False)[0]), str(folder / "imagesTs" / "test0_0000.nii.gz"))
    description = {
        "channel_names": {"0": "MR"},
        "labels": LABELS[mode],
        "numTraining": cases,
        "file_ending": ".nii.gz",
    }
    if "regions" in mode:
        description["regions_class_order"] = [1, 2]
    (folder / "dataset.json").write_text(json.dumps(description))


def _plan(folder, mode):
    workspace = Workspace(folder, f"Dataset{500 + list(LABELS).index(mode)}_Tiny")
    write_raw_dataset(folder / "raw", workspace.dataset, mode)
    configurations = ["2d", "3d_fullres"] if mode == "labels" else ["3d_fullres"]
    workspace.run(
        "nnUNetv2_plan_and_preprocess",
        *("-d", workspace.dataset[7:10], "-c", *configurations, "-np", *["1"] * len(configurations), "-npfp", "1"),
        "--verify_dataset_integrity",
        nnUNet_n_proc_DA="1",  # nnU-Net 2.8 cannot plan with 0 workers
    )
    workspace.shrink_networks()


@pytest.fixture(scope="session")
def workspaces(tmp_path_factory, shared_folder):
    """Function mode -> Workspace: planned once, a copy for each test process, made at its first call."""
    made = {}

    def get(mode):
        if mode not in made:
            original = shared_folder / mode
            with FileLock(f"{original}.lock"):
                if not original.exists():
                    work = tmp_path_factory.mktemp("planning")
                    _plan(work, mode)
                    work.rename(original)
            copy = shutil.copytree(original, tmp_path_factory.mktemp("workspaces") / mode)
            made[mode] = Workspace(copy, next((copy / "raw").iterdir()).name)
        return made[mode]

    return get


@pytest.fixture
def in_process(workspaces, monkeypatch):
    """Workspace of plain labels, with its folders in this process's environment."""
    workspace = workspaces("labels")
    for key, value in workspace.environment.items():
        monkeypatch.setenv(key, value)
    return workspace
