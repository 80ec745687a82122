"""The evidence suite: settings are complete, data as said, numbers follow from counts and pages from results."""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from nnunet_imbal.config import ImbalConfig, Term
from nnunet_imbal.recipe import Choice, Recipe

EVIDENCE = Path(__file__).parents[1] / "benchmarks" / "evidence"
RESULTS = EVIDENCE.parent / "results"
STUDIES = ("ms_sim2real", "brain_tail", "vessels", "organs", "control")
COMMITTED = [study for study in STUDIES if (RESULTS / f"evidence_{study}.json").is_file()]


@pytest.fixture
def load(monkeypatch):
    """Function name -> module of the suite, imported as its scripts do."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [str(EVIDENCE), str(EVIDENCE.parent), *sys.path])
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(EVIDENCE.parent) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("study", STUDIES)
@pytest.mark.parametrize("budget", ["short", "full"])
def test_settings_are_complete(load, study, budget):
    settings = load("run").read_settings(study, budget)
    assert {"stock", "stock_oversampling", "ImbalTrainer"} <= settings["arms"].keys()
    assert len(settings["seeds"]) >= 3
    for choice in settings["arms"].values():
        assert choice.keys() <= {"forced_patches", "trainer", "imbal"}
        ImbalConfig.from_dict(choice.get("imbal", {}))
    full, own = settings["budget"], {"patch", "batch", "features", "learning_rate"}
    assert all((full[key] is None) == (budget == "full") for key in own)


def test_numbers_of_datasets_differ():
    numbers = [json.loads((EVIDENCE / f"{study}.json").read_text())["number"] for study in STUDIES]
    assert len(set(numbers)) == len(STUDIES)


def test_targets_name_measures(load):
    numbers, run = load("_numbers"), load("run")
    for study in STUDIES:
        settings = run.read_settings(study, "short")
        voxels = {f"class {n}": 1.0 for n in range(len(load("_data").SOURCES[study].labels) - 1)}
        known = numbers.measures({"settings": settings, "voxels": voxels})
        assert {name for name, _, _ in settings["targets"]} <= known.keys()
        assert {kind for _, kind, _ in settings["targets"]} <= {"at least", "within", "ratio"}


# --------------------------------------------------------------------------------------------------------- data


@pytest.fixture
def brain():
    """White matter with a ventricle inside and cortex around it, in air."""
    labels = np.zeros((24, 26, 22), np.int16)
    labels[3:-3, 3:-3, 3:-3] = 3
    labels[5:-5, 5:-5, 5:-5] = 2
    labels[10:14, 10:16, 9:13] = 4
    return labels


def test_lesions_are_bright_and_fluid_is_dark(load, brain):
    lesions = np.zeros(brain.shape, bool)
    lesions[6:9, 6:9, 6:9] = lesions[17, 17, 15] = True
    image = load("_lesion_brains").synthesise_flair(np.random.default_rng(0), brain, lesions)
    assert image.dtype == np.float32
    assert (image[0] == 0).all()
    white = (brain == 2) & ~lesions
    assert image[11:13, 12:14, 10:12].mean() < 0.6 * image[white].mean() < 0.9 * image[7, 7, 7]
    again = load("_lesion_brains").synthesise_flair(np.random.default_rng(0), brain, lesions)
    np.testing.assert_array_equal(image, again)


def test_a_lesion_in_a_ventricle_lies_in_white_matter(load, brain):
    lesions = np.zeros(brain.shape, bool)
    lesions[12, 13, 11] = True
    image = load("_lesion_brains").synthesise_flair(np.random.default_rng(0), brain, lesions)
    dark = load("_lesion_brains").synthesise_flair(np.random.default_rng(0), brain, np.zeros_like(lesions))
    assert image[12, 13, 11] > 90 > dark[12, 13, 11]
    assert image[12, 13, 12] > 70 > dark[12, 13, 12]


def test_a_brain_is_scaled_to_the_extent_of_the_box(load, tmp_path):
    script = load("_lesion_brains")
    labels = np.zeros((64, 64, 64), np.int16)
    labels[8:56, 4:60, 12:52] = 2
    labels[8:32][labels[8:32] > 0] = 41  # X to the right: this is the left half of the array
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "brain.nii.gz")
    found = script.read_brain(tmp_path / "brain.nii.gz")
    assert found.shape == (110, 130, 96)
    assert found[:50].max() == 2, "X to the left in MNI space: the sides are exchanged"
    assert (found > 0).mean() > 0.95


def test_a_mask_on_another_grid_is_refused(load, tmp_path):
    nib.save(nib.Nifti1Image(np.zeros((8, 8, 8), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(ValueError, match=r"mask.nii.gz has \(8, 8, 8\) voxels; expected an image in MNI space"):
        load("_lesion_brains").read_mask(tmp_path / "mask.nii.gz")


def test_data_that_are_missing_are_named(load, tmp_path):
    with pytest.raises(SystemExit, match="open_ms_data"):
        next(load("_data").SOURCES["ms_sim2real"].make(tmp_path))


def test_brains_have_an_image_and_all_classes(load, tmp_path):
    (tmp_path / "synthseg").mkdir()
    labels = np.zeros((40, 44, 48), np.int16)
    labels[8:32, 8:36, 8:40] = 2
    labels[20:28, 12:20, 30:38] = 17  # right, behind, above
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "synthseg" / "training_seg_01.nii.gz")
    cases = load("_data").SOURCES["brain_tail"]
    part, name, image, label, affine = next(cases.make(tmp_path))
    assert (part, name) == ("Tr", "training_01")
    assert image.shape == label.shape == (20, 22, 24)
    assert np.argwhere(label == cases.labels["hippocampus"]).tolist() == [
        [x, y, z] for x in range(10, 14) for y in range(6, 10) for z in range(15, 19)
    ]
    np.testing.assert_array_equal(np.diag(affine), [2, 2, 2, 1])


def test_a_raw_dataset_keeps_the_named_classes(load, tmp_path):
    data = load("_data")
    phantom = data.OrganPhantom(shape=(56, 44, 60), spacing=(6.0, 6.0, 6.0))
    cases = data._phantom(phantom, ("bladder", "liver"), training=1, test=1)
    data.write_raw(cases, tmp_path / "Dataset001_X", None)
    label = np.asarray(nib.load(tmp_path / "Dataset001_X/labelsTr/training_00.nii.gz").dataobj)
    full = phantom.training_case(0, 0).label
    for value, name in enumerate(("bladder", "liver"), start=1):
        np.testing.assert_array_equal(label == value, full == phantom.labels[name])
    content = json.loads((tmp_path / "Dataset001_X/dataset.json").read_text())
    assert content["labels"] == {"background": 0, "bladder": 1, "liver": 2}
    assert content["numTraining"] == 1


# ------------------------------------------------------------------------------------------------------ numbers


def test_counts_by_size(load):
    truth = np.zeros((6, 6, 24), bool)
    truth[0, 0, [0, 4]] = truth[2:4, 2, 8:10] = truth[2:5, 2:5, 16:20] = True  # 1, 1, 4 and 36 mm³
    probs = np.where(truth, 0.6, 0.0)
    probs[0, 0, 4] = 0.3
    probs[5, 5, 12:15] = 0.9
    counts = load("_scores").case_counts(probs, truth, (1.0, 1.0, 1.0), (2.0, 10.0))
    half = load("_scores").THRESHOLDS.index(0.5)
    assert counts["lesions"] == [2, 1, 1]
    assert [counts["found"][third][half][0] for third in range(3)] == [1, 1, 1]
    assert [counts["found"][third][half][3] for third in range(3)] == [0, 0, 1]  # components of at least 8 mm³
    assert counts["false_positives"][half][:3] == [1, 1, 0]
    assert counts["dice"][half][0] == pytest.approx(2 * 41 / (42 + 44), abs=1e-4)


def counts(found, false_positives, lesions):
    """What a case shows at one threshold and two volumes; only the smallest third has lesions."""
    nothing = [[0, 0]]
    return {
        "found": [[found], nothing, nothing],
        "false_positives": [false_positives],
        "lesions": [lesions, 0, 0],
        "dice": [[0.5, 0.25]],
    }


@pytest.fixture
def result():
    """Two arms, two seeds, two test cases of one class and a calibration case."""

    def run(arm, seed, dice, found):
        cases = {name: {"lesion": {"dice": dice, "pq": 0.5, "false_positives": 3}} for name in ("test_1", "test_2")}
        cases["calibration_1"] = {"lesion": {"dice": 0.9, "pq": 0.8, "false_positives": 1}}
        froc = {"test_1": counts([found, 1], [3, 0], 4), "test_2": counts([found, 2], [9, 1], 4)}
        froc["calibration_1"] = counts([3, 2], [9, 1], 4)
        place = {"thresholds": [0.5], "volumes_mm3": [0.0, 2.0], "size_edges_mm3": [2.0, 9.0]}
        end = {"epochs_s": 60.0, "commit": "abc"}
        return {"arm": arm, "seed": seed, "cases": cases, "froc": froc, **place, **end}

    settings = json.loads((EVIDENCE / "ms_sim2real.json").read_text())
    settings |= {"budget": {"name": "short", **settings["budgets"]["short"]}, "seeds": [0, 1]}
    settings["arms"] = {arm: settings["arms"][arm] for arm in ("stock", "stock_oversampling", "ImbalTrainer")}
    runs = [run("stock", 0, 0.5, 2), run("stock", 1, 0.5, 2), run("ImbalTrainer", 0, 0.75, 4)]
    machine = {"processor": "X", "versions": {"torch": "2"}}
    return {"study": "ms_sim2real", "settings": settings, "runs": runs, "voxels": {"lesion": 9.0}, "machine": machine}


def test_recall_at_equal_false_positives(load, result):
    numbers = load("_numbers")
    measure = numbers.measures(result)["recall at equal false positives"]
    # test_1: at 2 false positives one lesion of four, from 4 on two; test_2: always two
    assert measure(result["runs"][0], "test_1") == pytest.approx((1 + 2 + 2 + 2 + 2) / 4 / 5)
    assert measure(result["runs"][0], "test_2") == pytest.approx(2 / 4)
    np.testing.assert_allclose(
        numbers.stair(result["runs"][0], ["test_1", "test_2"], np.array([0.1, 1, 6])), [0, 3 / 8, 4 / 8]
    )


def test_nothing_is_affordable(load, result):
    entry = counts([4, 3], [99, 50], 4)
    assert load("_numbers")._at_equal_price(entry, (0,)) == 0
    assert np.isnan(load("_numbers")._at_equal_price(entry, (1,)))


def test_test_cases_have_no_say_in_the_operating_point(load, result):
    numbers, run = load("_numbers"), result["runs"][0]
    assert numbers.operating_point(run) == (0, 1)  # nine false positives would be too many
    run["froc"]["test_1"] = counts([4, 0], [0, 0], 4)
    assert numbers.operating_point(run) == (0, 1)
    run["froc"]["calibration_1"] = counts([3, 2], [99, 98], 4)
    assert numbers.operating_point(run) == (0, 1)  # none is affordable: the cheapest
    known = numbers.measures(result)
    assert known["operating point: false positives"](run, "test_2") == 1
    assert known["operating point: Dice"](run, "test_2") == 0.25


def test_differences_use_seeds_that_both_arms_have(load, result):
    numbers = load("_numbers")
    found = numbers.compare(result, "ImbalTrainer", "stock", numbers.measures(result)["Dice"])
    assert (found.mean, found.other) == (0.25, 0.5)
    assert np.isnan(found.low), "one seed"
    result["runs"].append({**result["runs"][-1], "seed": 1})
    found = numbers.compare(result, "ImbalTrainer", "stock", numbers.measures(result)["Dice"])
    assert found == (0.25, 0.25, 0.25, 0.5)
    assert numbers.compare(result, "ImbalTrainer", "stock_oversampling", numbers.measures(result)["Dice"]) is None


def test_intervals_equal_a_naive_bootstrap(load):
    differences = np.array([[0.1, -0.2, 0.3], [0.0, 0.4, 0.2]])
    low, high = load("_numbers").bootstrap_interval(differences)
    rng, means = np.random.default_rng(1), []
    for _ in range(4000):
        seeds, cases = rng.choice(2, 2), rng.choice(3, 3)
        means.append(np.mean([differences[seed, case] for seed in seeds for case in cases]))
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]), atol=0.02)


@pytest.mark.parametrize(
    ("kind", "bound", "mean", "met"),
    [("at least", 0.1, 0.1, True), ("at least", -0.01, -0.02, False), ("within", 0.01, -0.005, True),
     ("within", 0.01, -0.01, False), ("ratio", -0.3, -0.6, True), ("ratio", -0.3, -0.5, False)],
)  # fmt: skip
def test_verdicts(load, kind, bound, mean, met):
    numbers = load("_numbers")
    assert numbers.verdict(numbers.Difference(mean, mean, mean, 2.0), kind, bound) is met


# -------------------------------------------------------------------------------------------------------- pages


def test_calibration_cases_have_a_table_of_their_own(load, result):
    lines = load("page").calibration_lines(result)
    assert "| stock | 0.900 | 0.800 | 1.000 |" in "\n".join(lines)
    assert "| ImbalTrainer - stock | +0.000 (one seed) |" in "\n".join(lines)
    assert load("page").calibration_lines(result | {"settings": result["settings"] | {"probabilities": False}}) == []


def test_pages_say_what_is_missing(load, result):
    page = load("page")
    text = page.study_page(result)
    assert "**runs that are missing: stock_oversampling (0 of 2), ImbalTrainer (1 of 2)**" in text
    assert "| Dice | stock | at least -0.01 | +0.250 (one seed) | met |" in text
    assert "| Dice | stock_oversampling | at least -0.01 | - | not run |" in text
    overview = page.overview({"ms_sim2real": result})
    assert "**control**: not run." in overview
    assert "- `vessels`" in overview


def test_a_warm_up_counts_as_epochs(load):
    run = load("run")
    terms = [{"loss": "cldice", "from_epoch": start, "ramp_epochs": 4} for start in (0, 5, 9, 20)]
    left = [(term["from_epoch"], term["ramp_epochs"]) for term in run.begun({"terms": terms}, 8)["terms"]]
    assert left == [(0, 0), (0, 1), (1, 4), (12, 4)]


def test_the_recipe_knows_the_whole_training(load, monkeypatch):
    run, asked = load("run"), {}

    def choose_recipe(fingerprint, **words):
        asked.update(words)
        term = Term("cldice", from_epoch=25, ramp_epochs=5)
        return Recipe(ImbalConfig(terms=(term,)), (Choice("cldice", "because"),))

    monkeypatch.setattr(run, "choose_recipe", choose_recipe)
    monkeypatch.setattr(run, "fingerprint_dataset", lambda folder, out: None)
    budget = {"warm_up": {"epochs": 30}, "epochs": 20, "patch": [8, 8, 8]}
    entry = run.imbal_entry(run.Workspace(Path("x"), 1, "X"), {"trainer": "ImbalTrainer"}, budget)
    assert asked == {"epochs": 50, "patch_size": [8, 8, 8]}
    assert (entry["terms"][0]["from_epoch"], entry["terms"][0]["ramp_epochs"]) == (0, 0)
    assert run.imbal_entry(None, {"imbal": {"terms": []}}, budget) == {"terms": []}
    assert run.imbal_entry(None, {"trainer": "ImbalTrainer"}, budget | {"warm_up": None}) is None


def test_a_study_refuses_to_mix_settings(load, result, tmp_path):
    run = load("run")
    result["settings"]["seeds"] = [9]
    (tmp_path / "evidence_ms_sim2real.json").write_text(json.dumps(result))
    arguments = run.parse_arguments(["ms_sim2real", str(tmp_path)])
    with pytest.raises(SystemExit, match="use another folder"):
        run.run_study("ms_sim2real", arguments)


@pytest.mark.parametrize("study", COMMITTED)
def test_committed_pages_equal_the_results(load, study):
    result = json.loads((RESULTS / f"evidence_{study}.json").read_text())
    assert load("page").study_page(result) == (RESULTS / f"evidence_{study}.md").read_text()


def test_committed_overview_equals_the_results(load):
    page = load("page")
    assert page.overview(page.load_results(RESULTS)) == (page.DOCS / "evidence.md").read_text()


@pytest.mark.parametrize("study", COMMITTED)
def test_committed_results_were_made_with_these_settings(load, study):
    result = json.loads((RESULTS / f"evidence_{study}.json").read_text())
    budget = result["settings"]["budget"]["name"]
    assert result["settings"] == load("run").read_settings(study, budget)


# ----------------------------------------------------------------------------------------------------- end to end


@pytest.mark.slow
@pytest.mark.e2e
def test_a_study_from_its_first_voxel_to_its_page(load, tmp_path, monkeypatch):
    """A training of two steps through nnU-Net's own commands; started again, nothing is done twice."""
    run, data = load("run"), load("_data")
    phantom = data.OrganPhantom(shape=(42, 33, 45), spacing=(8.0, 8.0, 8.0))
    monkeypatch.setenv("PYTHONPATH", "")  # the study sets it; this puts it back
    monkeypatch.setattr(run, "SOURCES", {"control": data._phantom(phantom, ("liver", "bladder"), 2, 1)})
    settings = run.read_settings("control", "short")
    settings["budget"] |= {"epochs": 1, "iterations": 2, "patch": [16, 16, 16], "features": [4, 8, 8]}
    monkeypatch.setattr(run, "read_settings", lambda *words: json.loads(json.dumps(settings)))
    words = ["control", str(tmp_path), "--seeds", "0", "--arms", "ImbalTrainer"]
    result = run.run_study("control", run.parse_arguments(words))
    assert [(done["arm"], done["seed"]) for done in result["runs"]] == [("ImbalTrainer", 0)]
    assert result["runs"][0]["cases"]["test_00"].keys() == {"liver", "bladder"}
    assert "ImbalTrainer (1 of 3)" in load("page").study_page(result)
    monkeypatch.setattr(run, "run_arm", None)
    assert run.run_study("control", run.parse_arguments(words))["runs"] == result["runs"]
