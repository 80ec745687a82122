"""The benchmarks of the losses for vessels: data are as said, plans hold what an arm names, pages show the numbers."""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
HELPERS = ("_machine", "_short_nnunet", "_topology_study", "_vessel_classes", "bench_losses")
RESULTS = BENCHMARKS / "results"
PAGES = {
    "vessel_training.md": "vessel_training",
    "chest_ct.md": "chest_ct",
    "losses_vessels.md": "bench_vessel_losses",
}
SCRIPTS = tuple(PAGES.values())


@pytest.fixture
def load(monkeypatch):
    """Function name -> script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # a script sets it; this puts it back
    yield importlib.import_module
    for name in (*HELPERS, *SCRIPTS):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(load, name, capsys):
    with pytest.raises(SystemExit) as end:
        load(name).parse_arguments(["--help"])
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [3, 20])
def test_patches_have_as_many_classes_as_asked(load, classes):
    patch = load("_vessel_classes").vessel_patch((40, 48, 40), 0, classes)
    assert patch.shape == (40, 48, 40)
    assert np.unique(patch).tolist() == list(range(classes + 1))


def test_classes_share_names_or_are_cut_in_halves(load):
    with_classes = load("_vessel_classes").with_classes
    line = np.repeat(np.array([0, 5, 7, 9], np.uint8), 4)[:, None, None]
    assert with_classes(line, 2).ravel().tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [1] * 4
    assert with_classes(line, 4).ravel().tolist() == [0] * 4 + [1, 1, 4, 4] + [2] * 4 + [3] * 4


def test_too_few_voxels_for_so_many_classes(load):
    with pytest.raises(ValueError, match="use a larger one"):
        load("_vessel_classes").with_classes(np.eye(2, dtype=np.uint8), 3)


def test_vessels_of_three_classes(load):
    script = load("vessel_training")
    stock, case = script.VesselPhantom(), script.GroupedVessels().test_case(0, 1)
    thirteen = stock.test_case(0, 1).label
    acom = stock.labels["Acom"]
    pcom = [stock.labels[name] for name in ("R-Pcom", "L-Pcom")]
    expected = np.select([thirteen == acom, np.isin(thirteen, pcom), thirteen > 0], [3, 2, 1], 0)
    np.testing.assert_array_equal(case.label, expected)
    assert {*np.unique(case.label)} <= {*script.PHANTOM.labels.values()}


def test_plans_hold_the_terms_of_the_arm_from_the_first_step(load, tmp_path):
    study, stock = load("_topology_study"), tmp_path / "nnUNetPlans.json"
    stock.write_text(json.dumps({"plans_name": "nnUNetPlans", "configurations": {"3d_short": {}}}))
    for arm, imbal in study.ARMS.items():
        plans = json.loads((tmp_path / f"{study.write_plans(stock, arm, study.at_once(imbal))}.json").read_text())
        entry = plans["configurations"]["3d_short"].get("imbal")
        assert (entry is None) == (arm == study.STOCK)
        assert not any(term["from_epoch"] for term in (entry or {"terms": []})["terms"])
        if entry:
            assert [term["loss"] for term in entry["terms"]] == [term["loss"] for term in imbal["terms"]]


@pytest.fixture
def run():
    """One finished training as a study keeps it; the truth of one class is empty in all cases."""
    scores = {"arteries": 0.5, "PCoA": 0.25, "ACoA": None}
    run = {"arm": "clDice", "seed": 0, "patches_checksum": "a", "epochs_s": 9.0, "dice": scores, "cldice": scores}
    return run | {"b0_error": scores, "cldice_merged": 0.5, "b0_error_merged": 2.0, "b1_error_merged": 0.0}


def test_page_of_a_study(load, run):
    study, vessels = load("_topology_study"), load("vessel_training").STUDY
    result = {"machine": load("_machine").describe_machine(), "setting": {**study.SETTING, "steps": [4, 50]}}
    runs = [run, {**run, "seed": 1, "cldice_merged": 0.75}]
    page = study.markdown(vessels, {**result, "runs": runs})
    assert "| clDice | 2 | 0.375 [0.375, 0.375] | 0.250 [0.250, 0.250] | - | 0.375 [0.375, 0.375] | 0.625" in page
    assert "from there every arm takes 200 steps" in page
    assert "same patches: yes" in page
    other = {**run, "arm": "AG-TAL-R", "patches_checksum": "b"}
    assert "same patches: NO" in study.markdown(vessels, {**result, "runs": [run, other]})


def test_a_study_refuses_to_mix_settings(load, run, tmp_path):
    study, vessels = load("_topology_study"), load("vessel_training")
    stored = {"machine": {}, "setting": {"patch": [8, 8, 8]}, "runs": [run]}
    (tmp_path / "vessel_training.json").write_text(json.dumps(stored))
    arguments = vessels.parse_arguments([str(tmp_path)])
    with pytest.raises(SystemExit, match="use another folder"):
        study.run_study(vessels.STUDY, arguments)
    assert json.loads((tmp_path / "vessel_training.json").read_text()) == stored


@pytest.fixture
def archive(load, tmp_path):
    """A source archive with a small scan; the masks lie on a cropped grid, each one voxel further."""
    script, rng = load("chest_ct"), np.random.default_rng(0)
    affine = np.diag([-1.5, -1.5, 1.5, 1.0])
    affine[:3, 3] = 100, 200, 500
    shifted = affine.copy()
    shifted[:3, 3] += affine[:3, :3] @ (4, 5, 6)
    files = {script.IMAGE: (rng.integers(-100, 400, (24, 26, 28)), affine)}
    for n, (name, folder) in enumerate(script.SOURCES.items()):
        mask = np.zeros((14, 12, 12))
        mask[n + 1, 2:4, 2:4] = 1
        files[folder / f"{name}.nii.gz"] = mask, shifted
    for path, (array, at) in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(array.astype(np.int16), at), tmp_path / path)
    return tmp_path


def test_vessels_of_the_chest_lie_where_the_cropped_masks_say(load, archive):
    case = load("chest_ct").ChestCT(archive).test_case(0, 0)
    for value in range(1, 9):
        assert np.argwhere(case.label == value).tolist() == [[4 + value, y, z] for y in (7, 8) for z in (8, 9)]
    assert load("chest_ct").ChestCT(archive).test_case(0, 1) is None


def test_virtual_patients_differ_and_can_be_made_again(load, archive):
    source = load("chest_ct").ChestCT(archive)
    first, again, other = (source.training_case(0, index) for index in (0, 0, 1))
    np.testing.assert_array_equal(first.image, again.image)
    assert (first.image != other.image).any()
    assert first.image.shape == first.label.shape == (12, 13, 14)
    np.testing.assert_allclose(np.abs(np.diag(first.affine)), [3, 3, 3, 1])


def test_memory_of_a_chain_of_poolings(load):
    script = load("bench_vessel_losses")
    assert script.chain_gigabytes(script.LARGE, 13, 10) == pytest.approx(85.9, abs=0.05)


@pytest.mark.slow
def test_losses_of_vessels_are_measured_and_peers_scaled_up(load, monkeypatch):
    script = load("bench_vessel_losses")
    monkeypatch.setattr(script, "SMALL", (32, 32, 32))
    monkeypatch.setattr(script, "FITS_GB", 0)
    torch.set_num_threads(1)
    row = script.measure((40, 40, 40), 3, 1)
    assert set(row["seconds"]) == set(row["bytes"]) == {script.common.UNIT, *script.OURS, *script.PEERS}
    assert row["scaled"] == list(script.PEERS)
    assert row["bytes"]["MONAI SoftclDice"] > row["bytes"]["cldice"]
    large = {"shape": [32] * 3, "classes": 3, "bytes": row["bytes"], "classic_gb": 86.4}
    page = script.markdown({"machine": load("_machine").describe_machine(), "rows": [row], "large": large})
    assert "| MONAI SoftclDice | ~ " in page
    assert "less than 8 GB for each: met" in page


def study_page(load, script, numbers):
    study = load(script).STUDY if script == "vessel_training" else load(script).make_study(Path())
    return load("_topology_study").markdown(study, numbers)


@pytest.mark.parametrize("page", [page for page in sorted(PAGES) if (RESULTS / page).is_file()])
def test_committed_pages_come_from_the_committed_numbers(load, page):
    numbers, script = json.loads((RESULTS / page).with_suffix(".json").read_text()), PAGES[page]
    made = load(script).markdown(numbers) if page == "losses_vessels.md" else study_page(load, script, numbers)
    assert made == (RESULTS / page).read_text()
