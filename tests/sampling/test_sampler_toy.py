"""The toy experiment runs, goes on where it stopped, and writes its table."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def toy(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module("sampler_toy")
    for name in ("sampler_toy", "_machine"):
        sys.modules.pop(name, None)


def test_a_case_has_one_large_and_seven_small_balls(toy):
    image, labels = toy.make_case(toy.Settings(), np.random.default_rng(0))
    volumes = sorted(toy.component_stats(labels).sizes.tolist())
    assert len(volumes) == 8
    assert volumes[-2] < 60
    assert volumes[-1] > 10_000
    tubes = (ndimage.gaussian_filter(image, 1) > 0.5) & (labels == 0)
    assert 300 < tubes.sum() < 5000


def test_the_stock_arm_draws_voxels_and_ours_instances(toy):
    cases = [toy.make_case(toy.Settings(), np.random.default_rng(0))]
    rng, balls = np.random.default_rng(1), toy.connected_components(cases[0][1])[0]
    large = np.argmax(np.bincount(balls.ravel())[1:]) + 1
    shares = []
    for draw in (toy.stock_centers(cases), toy.balanced_centers(cases, 24, 0.0)):
        drawn = [balls[tuple(draw(rng)[1])] for _ in range(300)]
        shares.append(np.mean([number not in (0, large) for number in drawn]))
    assert shares[0] < 0.08
    assert 0.3 < shares[1] < 0.6


@pytest.mark.slow
def test_interrupted_runs_go_on_and_other_settings_are_refused(toy, tmp_path, monkeypatch):
    settings = toy.Settings(size=48, steps=2, training_cases=1, test_cases=1)
    output = tmp_path / "toy.json"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        toy.run(settings, [0], output)
        monkeypatch.setattr(toy, "train", None)  # nothing is trained twice
        result = toy.run(settings, [0], output)
    finally:
        torch.set_num_threads(threads)
    assert len(result["runs"]) == len(toy.ARMS)
    assert json.loads(output.read_text()) == result
    page = toy.table(result)
    assert all(f"| {name} | " in page for name in toy.ARMS)
    assert "recall of small balls" in page
    with pytest.raises(SystemExit, match="other settings"):
        toy.run(toy.Settings(), [0], output)
