"""The benchmark scripts start, build their data and write their tables; the measuring itself is left to people."""

import importlib
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import torch

import trainers

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.*"))
NAMES = ("iteration_time", "ms_two_patients", "bench_kernels")
HELPERS = (
    "_machine",
    "_short_nnunet",
    "_vessel_classes",
    "_kernel_inputs",
    "_kernel_loops",
    "_kernel_page",
    "_kernel_rows",
)


@pytest.fixture
def load(monkeypatch):
    """Function name -> script as a module, imported as Python would start it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    yield importlib.import_module
    for name in (*NAMES, *HELPERS):
        sys.modules.pop(name, None)


@pytest.fixture
def patients(tmp_path):
    """Two tiny patients; the gold standard of one is a probability, as in public data."""
    folder, rng = tmp_path / "data", np.random.default_rng(0)
    folder.mkdir()
    for patient in ("07", "26"):
        gold = np.zeros((20, 18, 16), np.float32)
        gold[3:5, 3:5, 3:5], gold[12:16, 12:16, 10:13] = 0.4, 0.9
        arrays = {"FLAIR": rng.normal(size=gold.shape), "T1": rng.normal(size=gold.shape), "gold": gold}
        if patient == "26":
            arrays["gold"] = (gold > 0).astype(np.uint8)
        for name, array in arrays.items():
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.5, 2.0))
            image.SetOrigin((-90.0, 126.0, -72.0))
            sitk.WriteImage(image, str(folder / f"patient{patient}_{name}.nii.gz"))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_help(load, name, capsys):
    with pytest.raises(SystemExit) as end:
        load(name).parse_arguments(["--help"])
    assert end.value.code == 0
    assert "usage" in capsys.readouterr().out


def test_raw_dataset(load, patients, tmp_path):
    ms = load("ms_two_patients")
    folder = ms.write_raw_dataset(patients, ms.Workspace(tmp_path / "out", 701, "MSPatient07"), "07", "26")
    assert sorted(path.name for path in (folder / "imagesTr").iterdir()) == [
        "patient07_0000.nii.gz",
        "patient07_0001.nii.gz",
    ]
    train, test = (
        sitk.ReadImage(str(folder / name)) for name in ("labelsTr/patient07.nii.gz", "labelsTs/patient26.nii.gz")
    )
    assert train.GetSpacing() == test.GetSpacing() == (1.0, 1.5, 2.0)
    assert sitk.GetArrayFromImage(train).sum() == 48  # 0.4 is no lesion
    assert sitk.GetArrayFromImage(test).sum() == 56
    declared = json.loads((folder / "dataset.json").read_text())
    assert declared["channel_names"] == {"0": "FLAIR", "1": "T1"}
    assert declared["numTraining"] == 1


def test_short_configuration_keeps_the_plan(load):
    full = {"architecture": {"network_class_name": "net", "arch_kwargs": {"conv_bias": True, "n_stages": 6}}}
    short = load("_short_nnunet").short_configuration(full, (8, 8, 8), 2, (4, 8))
    assert short["inherits_from"] == "3d_fullres"
    assert short["architecture"]["arch_kwargs"]["conv_bias"]
    assert short["architecture"]["arch_kwargs"]["n_stages"] == len(short["architecture"]["arch_kwargs"]["strides"])
    assert full["architecture"]["arch_kwargs"]["n_stages"] == 6


def _run(trainer, checksum):
    return {
        **{"train": "07", "test": "26", "trainer": trainer, "patches_checksum": checksum, "epochs_s": 60.0},
        **{"dice": 0.5, "lesions": 19, "detected": 1, "recall": 0.05, "precision": None, "f1": 0.0},
        **{"false_positives_per_case": 2.0, "volume_reference_mm3": 8227.0, "volume_prediction_mm3": 10.0},
        "last_train_loss": 0.25,
        "by_size_mm3": [{"lesions": 5, "found": 1}, {"lesions": 4, "found": 0}, {"lesions": 10, "found": 0}],
    }


@pytest.mark.parametrize(("checksum", "same"), [("a", "same patches: yes"), ("b", "same patches: NO")])
def test_table_of_patients(load, tmp_path, checksum, same):
    settings = {"epochs": 1, "iterations": 2, "seed": 0, "patch": [48] * 3, "batch": 2, "features": [16, 32]}
    runs = [_run("nnUNetTrainer", "a"), _run("ImbalTrainer", checksum)]
    machine = load("_machine").describe_machine()
    result = {"runs": runs, "machine": machine, "settings": settings}
    load("ms_two_patients").write_results(result, tmp_path)
    page = (tmp_path / "ms_two_patients.md").read_text()
    assert "no statistical claim" in page
    assert same in page
    assert "| 07 → 26 | ImbalTrainer | 0.500 | 1/19 | 1/5 | 0/4 | 0/10 | 0.050 | - | 0.000 | 2 | 10 (8227) |" in page
    assert json.loads((tmp_path / "ms_two_patients.json").read_text()) == result


def test_labels_and_batch_of_iteration_time(load, patients):
    script = load("iteration_time")
    labels = script.patient_labels(patients, 16, 3)
    assert labels.shape == (3, 16, 16, 16)
    assert labels.sum((1, 2, 3)).tolist() == [48, 56, 48]
    np.testing.assert_array_equal(labels[0], labels[2])
    batch = script.make_batch(labels, [[1, 1, 1], [0.5, 0.5, 0.5]], seed=0)
    assert [tuple(level.shape) for level in batch["target"]] == [(3, 1, 16, 16, 16), (3, 1, 8, 8, 8)]
    assert torch.equal(batch["target"][0][:, 0], torch.from_numpy(labels).float())


def test_phantoms_of_iteration_time(load):
    script = load("iteration_time")
    components = [script.numba_kernels.connected_components(patch > 0, 26)[1] for patch in script.lesion_labels(64, 2)]
    assert all(25 <= count <= 35 for count in components)
    vessels = script.vessel_labels(64, 2)
    assert vessels.shape == (2, 64, 64, 64)
    assert len(np.unique(vessels)) > 8
    assert list(script.describe_dataset(vessels)["labels"].values()) == list(range(int(vessels.max()) + 1))


def test_trainers_of_iteration_time_exist(load):
    for names in load("iteration_time").TRAINERS.values():
        assert not set(names) - set(trainers.__all__)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # nnU-Net's own
def test_iteration_time_of_two_trainers(load, monkeypatch):
    for part in ("raw", "preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{part}", "")  # the script points them at a folder that vanishes
    script = load("iteration_time")
    times = script.measure(script.lesion_labels(32, 1), ["ImbalTrainerCC"], 1, 0, "cpu", 0)["ms"]
    assert {name: len(values) for name, values in times.items()} == {"nnUNetTrainer": 1, "ImbalTrainerCC": 1}


def test_page_of_iteration_time(load):
    process = {"components": [30, 29], "ms": {"nnUNetTrainer": [100.0] * 4, "ImbalTrainerCC": [110.0] * 4}}
    rows = [{"patch": 64, "labels": "lesions", "classes": 1, "batch": 2, "processes": [process]}]
    settings = {"iterations": 4, "warm_up": 1, "processes": 1, "device": "cpu"}
    script = load("iteration_time")
    page = script.markdown({"machine": script.describe_machine(), "settings": settings, "rows": rows})
    assert "| 2 x 64³ | lesions, 1 class | 30 + 29 | ImbalTrainerCC | **1.100** | 1.100 | 110 [110, 110] |" in page


@pytest.fixture
def kernel_result(load):
    """Numbers as bench_kernels.py keeps them; the peer ran for a quarter of its job."""
    row = {"job": "distance", "input": "lesions", "size": 128, "note": "ours knows more", "targets": {"peer": 3}}
    row |= {"times": {"peer": 4}, "milliseconds": {"ours": [2.0, 3.0, 4.0], "peer": [1.0, 2.0, 3.0]}}
    row["milliseconds_again"] = {"ours": [1.0, 1.0, 3.0], "peer": [1.0, 2.0, 3.0]}
    threads = {"operator": "component_cells", "items": 8, "size": 128, "milliseconds": {"1": [6.0], "2": [4.0]}}
    settings = {"sizes": [128], "rounds": 3, "few_rounds": 3, "slow_ms": 1000.0}
    return {
        "machine": load("_machine").describe_machine(),
        **{"peers": {"edt": "3"}, "settings": settings, "rows": [row], "threads": [threads]},
        "memory": {"size": 64, "iterations": 50, "target": 20, "bytes": {"ours": 10**7, "MONAI": 10**8}},
        "patients": {"patients": 2, "lesions": 9, "skimage": 7, "ours": 9},
    }


def test_page_of_kernels(load, kernel_result):
    page = load("_kernel_page").page(kernel_result)
    assert "| distance | lesions | 128³ | peer | 3x | 2.67x | **no** | 8x |" in page
    assert "| lesions | 128³ | 3 [2.5, 3.5] | ≈ 8 [6, 10] (2.67x) |" in page
    assert "| component_cells | 8 of 128³ | 6 | 4 | 1.50x |" in page
    assert "10x less (at least 20x: **no**)" in page
    assert "skeleton has 7 pieces, ours 9" in page
    assert "Nowhere in this run." in page


def test_page_of_kernels_tells_where_we_lose(load, kernel_result):
    kernel_result["rows"][0]["times"] = {}
    assert "- distance, lesions, 128³: peer takes 0.67 of our time" in load("_kernel_page").page(kernel_result)


def test_page_of_kernels_has_no_second_time_of_those_that_ran_once(load, kernel_result):
    del kernel_result["rows"][0]["milliseconds_again"]["peer"]
    assert "| peer | 3x | 2.67x | **no** | - |" in load("_kernel_page").page(kernel_result)


def test_lesions_of_patients_that_lose_their_skeleton(load, tmp_path):
    mask = np.zeros((12, 12, 12), np.uint8)
    mask[2:4, 2:4, 2:4], mask[7:10, 7:10, 7:10] = 1, 1
    sitk.WriteImage(sitk.GetImageFromArray(mask), str(tmp_path / "patient01_gold.nii.gz"))
    counts = load("bench_kernels").count_skeletons(tmp_path)
    assert counts == {"patients": 1, "lesions": 2, "skimage": 1, "ours": 2}


@pytest.mark.slow
def test_kernels_and_their_peers_run_and_agree(load, tmp_path, capsys):
    """All answers are compared before the clock starts."""
    for folder in ("benchmarks/results", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    load("bench_kernels").main(["--quick", "--output", str(tmp_path)])
    assert "soft skeleton" in capsys.readouterr().out
    (numbers,) = (tmp_path / "benchmarks" / "results").iterdir()
    result = json.loads(numbers.read_text())
    assert sum(len(row["targets"]) for row in result["rows"]) == 22
    assert (tmp_path / "docs" / "benchmarks.md").read_text() == load("_kernel_page").page(result)


def test_committed_pages_come_from_the_committed_numbers(load, tmp_path):
    for path in RESULTS:
        if path.name.startswith("iteration_time") and path.suffix == ".json":
            assert load("iteration_time").markdown(json.loads(path.read_text())) == path.with_suffix(".md").read_text()
        if path.name == "ms_two_patients.json":
            load("ms_two_patients").write_results(json.loads(path.read_text()), tmp_path)
            assert (tmp_path / "ms_two_patients.md").read_text() == path.with_suffix(".md").read_text()
        if path.name.startswith("kernels-") and path.suffix == ".json":
            committed = (BENCHMARKS.parent / "docs" / "benchmarks.md").read_text()
            assert load("_kernel_page").page(json.loads(path.read_text())) == committed


def test_results_tell_no_private_path():
    for path in RESULTS:
        found = re.findall(r"(?<![\w.])/(?:work|home|tmp|root|Users)\b", path.read_text())
        assert not found, f"{path.name} names a folder of somebody's machine: {found}"
