import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from nnunet_imbal import _cuda_backend

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("bench_cuda")
    for name in ("bench_cuda", "_machine"):
        sys.modules.pop(name, None)


def test_help_needs_no_gpu(script, capsys):
    with pytest.raises(SystemExit) as end:
        script.parse_arguments(["--help"])
    assert end.value.code == 0
    assert "--repeats" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.filterwarnings("ignore:CUDA initialization")
def test_without_gpu_it_says_so(script):
    with pytest.raises(SystemExit, match="torch sees none here"):
        script.main([])


def test_batch_and_table(script):
    probs, mask = script.make_batch(2, 3, 16)
    assert probs.shape == mask.shape == (2, 3, 16, 16, 16)
    volumes = mask.sum((0, 2, 3, 4))
    assert (volumes > 0).all()
    assert (volumes.diff() < 0).all()
    rows = [{"operator": "component_cells", "size": 16, "way": "GPU kernels", "milliseconds": [1.0, 2.0, 3.0]}]
    assert "| component_cells | 16³ | GPU kernels | 2.00 | 1.50 to 2.50 |" in script.table(rows)


def test_every_way_is_timed(script, monkeypatch, tmp_path, capsys):
    """The script itself, with the CPU in the part of the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(_cuda_backend, "find_obstacle", lambda device: "")
    for name in ("component_cells", "cell_overlap", "cell_overlap_backward"):
        monkeypatch.setattr(_cuda_backend, name, getattr(torch.ops.imbal, name))
    script.main(["--size", "12", "--repeats", "2", "--device", "cpu", "--json", str(tmp_path / "times.json")])
    rows = json.loads((tmp_path / "times.json").read_text())["rows"]
    assert len(rows) == 6
    assert all(len(row["milliseconds"]) == 2 for row in rows)
    assert capsys.readouterr().out.count("12³") == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_runs(script, capsys):
    script.main(["--size", "32", "--repeats", "2"])
    assert capsys.readouterr().out.count("GPU kernels") == 3
