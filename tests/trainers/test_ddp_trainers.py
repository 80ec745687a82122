"""Every trainer in two processes that talk over gloo: real data, real steps, and the gradient of the whole batch.

nnU-Net's own ``-num_gpus 2`` asks for CUDA and NCCL. Here its functions run as they are with three things exchanged:
gloo for NCCL, the CPU for the device of a rank, and a `DistributedDataParallel` without device numbers.
"""

import copy
import json
import shutil
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as host
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import trainers
from nnunet_imbal.semi import unwrap

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ddp,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings(r"error:::(trainers|nnunet_imbal|numba_kernels)\..*"),
]
CPU = torch.device("cpu")
NAMES = [name for name in trainers.__all__ if not name.endswith(("_5epochs", "_demo"))]
LATE = 900  # an epoch in which each term has its full weight


def mode_of(name):
    """The labelling a trainer needs."""
    return "ignore" if "semi" in (getattr(trainers, name).imbal or {}) else "labels"


def on_cpu(trainer):
    """Send a trainer to the CPU, because nnU-Net takes it for granted that each rank has a GPU."""
    trainer.device, trainer.grad_scaler = CPU, None
    return trainer


@contextmanager
def gloo(rank, store):
    """A group of two processes, in which nnU-Net wraps its network without naming GPUs."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    with patch.object(host, "DDP", lambda network, device_ids: DistributedDataParallel(network)):
        yield
    dist.destroy_process_group()


def start(name, dataset):
    """A trainer in a late epoch, without random noise in its own networks."""
    folder = Path(nnUNet_preprocessed, dataset)
    plans, description = (json.loads((folder / file).read_text()) for file in ("nnUNetPlans.json", "dataset.json"))
    trainer = getattr(trainers, name)({**plans, "continue_training": False}, "3d_fullres", 0, description, CPU)
    on_cpu(trainer).on_train_start()
    if (scdl := getattr(trainer, "_scdl", None)) is not None:
        scdl.module.embed.apply(lambda layer: setattr(layer, "p", 0.0))  # of its dropout
    trainer.current_epoch = LATE
    trainer.on_train_epoch_start()
    return trainer


def learned(trainer):
    """Everything with parameters: the network, and the class distributions of SCDL."""
    scdl = getattr(trainer, "_scdl", None)
    return nn.ModuleList([unwrap(trainer.network), *([] if scdl is None else [scdl.module])])


def two_patches(trainer):
    """Images and targets of two patches with the same classes and labels everywhere."""
    size = tuple(trainer.configuration_manager.patch_size)
    labels = torch.zeros(2, 1, *size)
    labels[:, :, 4:14, 4:14, 4:14] = 1
    labels[:, :, 20:24, 20:24, 20:30] = 2
    labels[1, :, 20:24, 8:12, 20:30] = 2
    images = torch.randn(2, 1, *size, generator=torch.Generator().manual_seed(1)) + labels
    steps = [tuple(round(1 / each) for each in scale) for scale in trainer._get_deep_supervision_scales()]
    return images, [labels[:, :, ::z, ::y, ::x] for z, y, x in steps]


def rows(patches, part, labels=None):
    """A batch of some of the patches, with one label everywhere if it is given."""
    images, target = patches
    target = [level[part] if labels is None else torch.full_like(level[part], labels) for level in target]
    return {"data": images[part], "target": target, "keys": ["case"] * len(images[part])}


def step(trainer, batch):
    """Loss of a training step and the gradient it leaves behind."""
    torch.manual_seed(2)  # SCDL draws samples, on each rank the same
    loss = trainer.train_step(batch)["loss"]
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    # In one process nnU-Net gives the coarsest output no weight; with several it gets 1e-6, so that none is unused.
    gradients = [torch.zeros_like(p) if p.grad is None and not trainer.is_ddp else p.grad for p in parameters]
    return float(loss), torch.cat([gradient.flatten() for gradient in gradients])


def same_on_all_ranks(tensor):
    others = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(others, tensor)
    return torch.equal(*others)


def examine(name, rank, dataset, folder):
    """Steps on one of two patches, on those of the loader, and with a rank that sees only background, or no labels."""
    trainer = start(name, dataset)
    begin, patches, part = copy.deepcopy(learned(trainer).state_dict()), two_patches(trainer), slice(rank, rank + 1)
    batches = [rows(patches, part), next(trainer.dataloader_train), rows(patches, part, None if rank else 0)]
    if trainer.label_manager.has_ignore_label:
        batches.append(rows(patches, part, trainer.label_manager.ignore_label if rank else None))
    results = []
    for batch in batches:
        loss, gradient = step(trainer, batch)
        assert np.isfinite(loss), name
        assert gradient.any(), name
        assert same_on_all_ranks(gradient), name
        results.append((loss, gradient))
    assert same_on_all_ranks(torch.cat([p.detach().flatten() for p in learned(trainer).parameters()])), name
    torch.save((begin, *results[0]), folder / f"{name}_{rank}.pt")


def _steps_of_all(rank, folder, datasets):
    with gloo(rank, folder / "store"):
        for name in NAMES:
            examine(name, rank, datasets[mode_of(name)], folder)


@pytest.fixture
def datasets(workspaces, tmp_path, monkeypatch):
    """Mode -> dataset, as nnU-Net has planned it: nothing that a trainer measures or keeps is there yet."""
    datasets = {}
    for mode in ("labels", "ignore"):
        workspace = workspaces(mode)
        shutil.copytree(workspace.folder / "raw", tmp_path / "raw", dirs_exist_ok=True)
        kept = shutil.ignore_patterns("imbal*", "splits_final.json")
        shutil.copytree(workspace.preprocessed, tmp_path / "preprocessed" / workspace.dataset, ignore=kept)
        datasets[mode] = workspace.dataset
        for key, value in replace(workspace, folder=tmp_path).environment.items():
            monkeypatch.setenv(key, value)
    return datasets


def test_two_ranks_have_the_gradient_of_the_whole_batch(datasets, tmp_path):
    mp.spawn(_steps_of_all, args=(tmp_path, datasets), nprocs=2, join=True)
    for name in NAMES:
        (begin, first, gradient), (_, second, _) = (torch.load(tmp_path / f"{name}_{rank}.pt") for rank in range(2))
        trainer = start(name, datasets[mode_of(name)])
        learned(trainer).load_state_dict(begin)
        loss, expected = step(trainer, rows(two_patches(trainer), slice(2)))
        assert loss == pytest.approx((first + second) / 2, rel=1e-5), name
        assert (gradient - expected).norm() < 1e-3 * expected.norm(), name


def _train(rank, folder, dataset, resume, epochs):
    """nnU-Net's own function for one of several GPUs, from the process group to the validation of the fold."""

    def trainer(*words, **named):
        trainer = on_cpu(make_trainer(*words, **named))
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = epochs, 2, 1
        return trainer

    make_trainer = run_training.get_trainer_from_args
    words = ("3d_fullres", 0, "ImbalTrainer", "nnUNetPlans", False, resume, False, None, False, False, 2)
    with (
        gloo(rank, folder / f"store_{epochs}"),
        patch.multiple(
            run_training, get_trainer_from_args=trainer, setup_ddp=lambda *_: None, cleanup_ddp=lambda: None
        ),
        patch("torch.cuda.set_device"),
    ):
        run_training.run_ddp(rank, dataset, *words)


def test_nnunets_own_function_trains_resumes_and_validates(datasets, tmp_path):
    dataset = datasets["labels"]
    mp.spawn(_train, args=(tmp_path, dataset, False, 1), nprocs=2, join=True)
    mp.spawn(_train, args=(tmp_path, dataset, True, 2), nprocs=2, join=True)
    fold = tmp_path / "results" / dataset / "ImbalTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    began, went_on = (path.read_text() for path in sorted(fold.glob("training_log*.txt")))
    assert began.count("Chosen by what is imbalanced in") == 1  # one rank measures and speaks
    assert "Going on as this training began:" in went_on
    assert "Epoch 1" in went_on
    assert torch.load(fold / "checkpoint_final.pth", weights_only=False)["current_epoch"] == 2
    assert len(list((fold / "validation").glob("*.nii.gz"))) == 2
    assert (fold / "validation" / "summary.json").is_file()
