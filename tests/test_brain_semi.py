"""The study of brains with few labels: images from labels, patches, runs that go on, numbers that are right."""

import importlib
import json
import sys

import nibabel as nib
import numpy as np
import pytest
import torch

BENCHMARKS = "benchmarks"
MODULES = ("_brain_cases", "_brain_page", "_machine", "_synthetic_contrast", "brain_semi")
LABELS = [2, 41, 3, 42, 4, 43, 16, 26, 58, 85, 507]


@pytest.fixture
def load(monkeypatch, request):
    """Function name -> script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(request.config.rootpath / BENCHMARKS))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def data(tmp_path):
    """Fourteen little heads: boxes of labels, left and right, in an orientation that must be turned."""
    folder = tmp_path / "synthseg"
    folder.mkdir()
    for number in range(1, 15):
        rng = np.random.default_rng(number)
        coarse = rng.choice(np.array(LABELS, np.int16), size=(5, 5, 5))
        labels = np.zeros((56, 56, 60), np.int16)
        labels[8:48, 8:48, 10:50] = coarse.repeat(8, 0).repeat(8, 1).repeat(8, 2)
        image = nib.Nifti1Image(labels, np.diag([-1.0, -1.0, 1.0, 1.0]))
        image.to_filename(folder / f"training_seg_{number:02d}.nii.gz")
    return folder


def test_labels_are_turned_cut_and_merged(load, data):
    contrast = load("_synthetic_contrast")
    stored = np.asarray(nib.load(data / "training_seg_03.nii.gz").dataobj)
    labels = contrast.read_labels(data / "training_seg_03.nii.gz")
    turned = stored[::-1, ::-1].T
    brain = np.argwhere((turned > 0) & (turned < 500))
    low = np.maximum(brain.min(0) - 8, 0)
    np.testing.assert_array_equal(labels, turned[tuple(map(slice, low, low + labels.shape))])
    assert all(n % 2 == 0 for n in labels.shape)
    assert (low + labels.shape >= brain.max(0)).all()
    values = {name: number for number, name in enumerate(contrast.STRUCTURES, start=1)}
    at_2_mm = contrast.merged(labels)  # blocks of 8 mm may begin anywhere, so only what no block shares is certain
    for place in np.ndindex(at_2_mm.shape):
        block = labels[tuple(slice(2 * i, 2 * i + 2) for i in place)]
        if (block == block.flat[0]).all():
            names = [name for name, own in contrast.STRUCTURES.items() if block.flat[0] in own]
            assert at_2_mm[place] == (values[names[0]] if names else 0)


def test_both_sides_look_alike_and_structures_differ(load):
    contrast = load("_synthetic_contrast")
    drawn = contrast.draw_contrast(np.random.default_rng(0))
    for left, right in ((2, 41), (4, 43), (26, 58), (136, 163), (137, 164)):
        assert drawn.means[left] == drawn.means[right]
        assert drawn.spreads[left] == drawn.spreads[right]
    assert len(set(drawn.means[[2, 3, 4, 16, 85]])) == 5
    assert drawn.means[0] == 5


def test_an_image_shows_its_labels(load, data):
    contrast = load("_synthetic_contrast")
    labels = contrast.read_labels(data / "training_seg_01.nii.gz")
    drawn = contrast.draw_contrast(np.random.default_rng(3))
    image = contrast.synthesise(np.random.default_rng(4), labels, drawn)
    assert image.shape == tuple(n // 2 for n in labels.shape)
    assert image.mean() == pytest.approx(0, abs=1e-4)
    assert image.std() == pytest.approx(1, abs=1e-4)
    wanted = drawn.means[labels].reshape(*(part for n in image.shape for part in (n, 2))).mean((1, 3, 5))
    assert np.corrcoef(image.ravel(), wanted.ravel())[0, 1] > 0.85
    again = contrast.synthesise(np.random.default_rng(4), labels, drawn)
    np.testing.assert_array_equal(image, again)


def test_other_label_maps_are_refused(load, tmp_path):
    contrast = load("_synthetic_contrast")
    for name, labels, spacing, message in (
        ("thick", np.ones((8, 8, 8), np.int16), 2.0, "1 mm label maps"),
        ("empty", np.full((8, 8, 8), 507, np.int16), 1.0, "no label from 1 to 499"),
    ):
        path = tmp_path / f"{name}.nii.gz"
        nib.Nifti1Image(labels, np.diag([spacing, spacing, spacing, 1])).to_filename(path)
        with pytest.raises(ValueError, match=message):
            contrast.read_labels(path)


def test_patches_depend_on_nothing_but_seed_and_stream(load, data, tmp_path):
    module = load("_brain_cases")
    cases = list(module.load_cases(data, tmp_path / "cache", 0).values())[:3]
    one, same, other = (module.Patches(cases, 16, 5, stream, foreground=True) for stream in (1, 1, 2))
    drawn = [one.draw() for _ in range(20)]
    for image, label in drawn:
        twin = same.draw()
        torch.testing.assert_close(image, twin[0], rtol=0, atol=0)
        assert torch.equal(label, twin[1])
        assert image.shape == (1, 4, 16, 16, 16)
        assert label.shape == (1, 1, 16, 16, 16)
    assert not torch.equal(drawn[0][0], other.draw()[0])


def test_rare_classes_are_looked_for(load, data, tmp_path):
    module = load("_brain_cases")
    case = module.load_cases(data, tmp_path / "cache", 0)[1]
    label = torch.zeros_like(case.label)
    label[4, 4, 4], label[8:14, 8:14, 8:14] = 5, 2
    rare = module.Case(1, case.image, label)
    shares = []
    for foreground in (True, False):
        patches = module.Patches([rare], 8, 0, 0, foreground=foreground)
        shares.append(np.mean([(patches.draw()[1] == 5).any().item() for _ in range(300)]))
    assert shares[0] > 1 / 3 > shares[1]


def test_splits_are_disjoint_and_keep_the_test_brains_out(load):
    module = load("_brain_cases")
    for seed in range(5):
        labelled, unlabelled = module.split(seed, 3)
        assert len(labelled) == 3
        assert sorted(labelled + unlabelled) == list(range(1, 11))
    assert len({tuple(module.split(seed, 3)[0]) for seed in range(5)}) > 1
    assert not set(module.TEST) & set(module.TRAINING)


def test_dice_counts_each_class(load):
    module = load("_brain_cases")
    rng = np.random.default_rng(0)
    prediction, label = (torch.from_numpy(rng.integers(0, 5, (6, 7, 8))) for _ in range(2))
    found = module.dice_per_class(prediction, label)
    for number, name in enumerate(module.CLASSES):
        if number:
            one, other = prediction == number, label == number
            total = int(one.sum() + other.sum())
            wanted = 2 * int((one & other).sum()) / total if total else None
            assert found[name] == (pytest.approx(wanted) if total else None)


def test_interval_draws_seeds_and_cases(load):
    page = load("_brain_page")
    assert page.bootstrap_interval(np.full((3, 4), 0.2)) == pytest.approx((0.2, 0.2))
    differences = np.random.default_rng(1).normal(0.1, 0.05, (6, 8))
    low, high = page.bootstrap_interval(differences)
    rng, means = np.random.default_rng(2), []
    for _ in range(4000):
        seeds, cases = rng.integers(6, size=6), rng.integers(8, size=8)
        means.append(np.mean([differences[seed, case] for seed in seeds for case in cases]))
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.002)
    by_seed = np.repeat([[0.0], [0.3]], 4, axis=1)  # seeds disagree, cases do not
    assert page.bootstrap_interval(by_seed) == pytest.approx((0.0, 0.3))


def test_tail_is_the_rarest_third(load):
    page = load("_brain_page")
    assert page.rarest_third({"a": 9, "b": 1, "c": 5, "d": 2, "e": 7, "f": 8}) == ["b", "d"]


def study_result(effect):
    """Two arms, three seeds, four brains, three classes; the second arm is better by ``effect``."""
    runs = [
        {"seed": seed, "arm": arm, "training_cpu_s": 1.0, "dice": {
            str(case): {"large": 0.8, "small": 0.4 + 0.01 * seed + (arm != "supervised") * effect, "tiny": 0.02}
            for case in range(11, 15)}}
        for arm in ("supervised", "mean teacher") for seed in range(3)
    ]  # fmt: skip
    settings = {"seeds": [0, 1, 2], "arms": ["supervised", "mean teacher"], "labelled": 3, "warm_up": 1}
    settings |= {"iterations": 1, "patch": 32, "network": "net", "optimiser": "it"}
    machine = {"device": "cpu", "versions": {"torch": "2"}}
    voxels = {"large": 900.0, "small": 90.0, "tiny": 9.0}
    return {"settings": settings, "machine": machine, "voxels": voxels, "runs": runs}


@pytest.mark.parametrize("effect", [0.1, 0.0, -0.1])
def test_page_says_what_the_numbers_say(load, effect):
    module = load("_brain_page")
    result = study_result(effect)
    found = module.summary(result)
    assert found["tail"] == ["tiny"]
    against = found["arms"]["mean teacher"]["against"]
    assert list(against) == ["supervised"]
    assert against["supervised"]["others"]["mean"] == pytest.approx(effect / 2)
    assert found["arms"]["supervised"]["per_class"]["small"] == pytest.approx(0.41)
    text = module.page(result)
    assert ("mean teacher against supervised, others: better" in text) == (effect > 0)
    assert ("mean teacher against supervised, others: worse" in text) == (effect < 0)
    assert "No arm learned the tail in this budget (mean Dice at most 0.020)" in text


def test_page_leaves_out_arms_that_are_not_done(load):
    module = load("_brain_page")
    result = study_result(0.1)
    result["runs"].pop()
    assert list(module.summary(result)["arms"]) == ["supervised"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MONAI's and torch's own
def test_a_study_goes_on_where_it_stopped(load, data, tmp_path):
    study = load("brain_semi")
    out, budget = tmp_path / "out", study.Budget(warm_up=2, iterations=2, patch=16, labelled=3)
    out.mkdir()
    first = study.Study(data, out, budget, [0], list(study.ARMS)[:2])
    first.run()
    lines = (out / "runs.jsonl").read_text()
    assert len(lines.splitlines()) == 2
    study.Study(data, out, budget, [0], list(study.ARMS)).run()
    after = (out / "runs.jsonl").read_text()
    assert after.startswith(lines)
    assert [json.loads(line)["arm"] for line in after.splitlines()] == list(study.ARMS)
    result = json.loads((out / "brain_semi.json").read_text())
    assert list(result["summary"]["arms"]) == list(study.ARMS)
    assert "| mean teacher + SCDL (released) | mean teacher |" in (out / "brain_semi.md").read_text()
