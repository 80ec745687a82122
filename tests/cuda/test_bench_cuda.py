import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

from nnunet_imbal import _cuda_backend, ops

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
    row = {"operator": "tube", "size": 16, "classes": 3, "way": "GPU kernels"}
    text = script.table([row | {"milliseconds": [1.0, 2.0, 3.0]}, row | {"milliseconds": []}])
    assert "| tube | 16³ | 3 | GPU kernels | 2.00 | 1.50 to 2.50 |" in text
    assert "| tube | 16³ | 3 | GPU kernels | out of memory | |" in text


def test_the_other_ways_do_the_same(script):
    mask = torch.rand(2, 1, 5, 6, 7, generator=torch.Generator().manual_seed(0)) < 0.1
    assert torch.equal(script.dilate(mask, 2), ops.tube(mask, 2))
    labels = torch.randint(0, 4, mask.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(script.count_contacts(labels, 4), ops.class_contacts(labels, 4))


def test_a_way_without_enough_memory_is_left_out(script, monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)

    def greedy():
        raise torch.OutOfMemoryError

    times = script.measure({"modest": lambda: None, "greedy": greedy}, 2)
    assert [len(each) for each in times.values()] == [2, 0]


def test_every_way_is_timed(script, monkeypatch, tmp_path, capsys):
    """The script itself, with the CPU in the part of the GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(_cuda_backend, "find_obstacle", lambda operator, device: "")
    operators = set(_cuda_backend.__all__) - {"TorchDevice", "find_obstacle"}
    for name in operators:
        monkeypatch.setattr(_cuda_backend, name, getattr(torch.ops.imbal, name))
    results = tmp_path / "times.json"
    script.main(["--size", "12", "--classes", "2", "--repeats", "2", "--device", "cpu", "--json", str(results)])
    rows = json.loads(results.read_text())["rows"]
    assert all(len(row["milliseconds"]) == 2 for row in rows)
    assert len({row["operator"] for row in rows if row["way"] == "GPU kernels"}) == 12
    assert capsys.readouterr().out.count("12³") == len(rows)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_it_runs(script, capsys):
    script.main(["--size", "32", "--classes", "2", "--repeats", "2"])
    assert capsys.readouterr().out.count("GPU kernels") == 12
