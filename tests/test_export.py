"""Exported models load anywhere, carry no code, and nothing of the user's is lost on the way."""

import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunet_imbal.errors import DataError
from nnunet_imbal.export import export_model, load_checkpoint


class Harmful:
    """Leaves a file behind as soon as somebody unpickles it."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def checkpoint(**extra):
    torch.manual_seed(0)
    return {
        "network_weights": OrderedDict(weight=torch.randn(3, 2), bias=torch.randn(3)),
        "logging": {"ema_fg_dice": [np.float32(0.5), np.float64(0.25)], "train_losses": [np.float64(-0.5)]},
        "_best_ema": np.float64(0.1),
        "current_epoch": 2,
        "init_args": {"configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")},
        "trainer_name": "ImbalTrainerCC",
        "inference_allowed_mirroring_axes": (0, 1, 2),
        **extra,
    }


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "ImbalTrainerCC__nnUNetPlans__3d_fullres"
    (folder / "fold_0" / "validation").mkdir(parents=True)
    (folder / "plans.json").write_text(json.dumps({"configurations": {}}))
    (folder / "dataset.json").write_text("{}")
    (folder / "fold_0" / "progress.png").write_bytes(b"png")
    (folder / "fold_0" / "training_log_2026.txt").write_text("case_Smith")
    (folder / "fold_0" / "validation" / "case_Smith.nii.gz").write_bytes(b"voxels")
    torch.save(checkpoint(), folder / "fold_0" / "checkpoint_final.pth")
    return folder


def files_of(folder: Path):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_exported_checkpoint_is_stock_and_loads_weights_only(model, tmp_path):
    out = export_model(model, tmp_path / "new" / "shared")
    assert files_of(out) == {"plans.json", "dataset.json", "fold_0/checkpoint_final.pth", "fold_0/progress.png"}
    loaded = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert loaded["trainer_name"] == "nnUNetTrainer"
    assert loaded["logging"] == {"ema_fg_dice": [0.5, 0.25], "train_losses": [-0.5]}
    assert type(loaded["_best_ema"]) is float
    assert loaded["init_args"]["device"] == torch.device("cpu")
    for name, tensor in checkpoint()["network_weights"].items():
        assert torch.equal(loaded["network_weights"][name], tensor)


def test_source_is_left_as_it_was(model, tmp_path):
    before = {path: path.read_bytes() for path in model.rglob("*") if path.is_file()}
    export_model(model, tmp_path / "shared")
    assert {path: path.read_bytes() for path in model.rglob("*") if path.is_file()} == before


def test_every_fold_and_every_checkpoint_is_exported(model, tmp_path):
    (model / "fold_all").mkdir()
    torch.save(checkpoint(), model / "fold_all" / "checkpoint_best.pth")
    out = export_model(model, tmp_path / "shared")
    assert {path.parent.name for path in out.glob("fold_*/checkpoint_*.pth")} == {"fold_0", "fold_all"}


def test_nothing_is_overwritten(model, tmp_path):
    out = tmp_path / "shared"
    out.mkdir()
    with pytest.raises(DataError, match="exists already"):
        export_model(model, out)
    assert not list(out.iterdir())


def test_hidden_code_is_refused_and_does_not_run(model, tmp_path):
    trace = tmp_path / "code-ran"
    torch.save(checkpoint(extra=Harmful(trace)), model / "fold_0" / "checkpoint_best.pth")
    with pytest.raises(DataError, match=r"mkdir.*--trust"):
        export_model(model, tmp_path / "shared")
    assert not trace.exists()
    assert not (tmp_path / "shared").exists()
    assert [path.name for path in tmp_path.iterdir()] == [model.name]


@pytest.mark.parametrize("reader", [pickle.dumps, lambda value: b"", lambda value: b"PK\x03\x04 cut off"])
def test_foreign_or_damaged_files_are_named(model, tmp_path, reader):
    trace = tmp_path / "code-ran"
    bad = model / "fold_0" / "checkpoint_final.pth"
    bad.write_bytes(reader(Harmful(trace)))
    with pytest.raises(DataError, match=r"checkpoint_final\.pth"):
        export_model(model, tmp_path / "shared")
    assert not trace.exists()


def test_trust_loads_what_is_not_weights_only(model, tmp_path):
    torch.save(checkpoint(source=Path("here"), extra=np.arange(3)), model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(DataError, match="--trust"):
        export_model(model, tmp_path / "refused")
    out = export_model(model, tmp_path / "shared", trust=True)
    loaded = torch.load(out / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert (loaded["source"], loaded["extra"]) == ("here", [0, 1, 2])


def test_trust_does_not_pass_code_on(model, tmp_path):
    torch.save(checkpoint(extra=pytest.approx), model / "fold_0" / "checkpoint_final.pth")
    with pytest.raises(DataError, match=r"approx.*weights_only=True"):
        export_model(model, tmp_path / "shared", trust=True)
    assert not (tmp_path / "shared").exists()


def test_not_a_results_folder(tmp_path):
    with pytest.raises(DataError, match=r"lacks plans\.json, dataset\.json, fold_\*"):
        export_model(tmp_path, tmp_path / "shared")


def test_not_a_nnunet_checkpoint(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "checkpoint_final.pth")
    with pytest.raises(DataError, match="names no trainer"):
        load_checkpoint(tmp_path / "checkpoint_final.pth")


def test_numpy_numbers_of_older_releases_load(tmp_path):
    """NumPy 1 pickled its numbers under another module name."""
    new, old = tmp_path / "new.pth", tmp_path / "old.pth"
    torch.save(checkpoint(), new)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(old, "w") as target:
        for name in source.namelist():
            content = source.read(name).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            target.writestr(name, content)
    assert load_checkpoint(old)["_best_ema"] == 0.1
