"""The bundle trains, evaluates and predicts; what it is given wrongly, it refuses in words."""

import csv
import json
import shlex
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.bundle import ConfigWorkflow, verify_net_in_out

from monai_ext.bundle import ROOT, cases
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.phantoms import LesionPhantom, write_dataset

CONFIGS = ROOT / "configs"
TRAIN, EVALUATE, INFERENCE = (str(CONFIGS / f"{name}.json") for name in ("train", "evaluate", "inference"))
SMALL = {"patch_size": [16, 16, 16], "network_def#channels": [4, 8], "network_def#strides": [2]}
SHORT = {**SMALL, "epochs": 2, "val_interval": 1}
# Left to right, back to front, foot to head; the file's axes are in another order and point elsewhere.
AFFINE = np.array([[0, 0, -3.0, 40], [-4.0, 0, 0, 30], [0, 3.5, 0, -20], [0, 0, 0, 1]])
theirs = pytest.mark.filterwarnings("ignore")  # MONAI's and ignite's warnings are theirs


def workflow(config, kind, **changes):
    made = ConfigWorkflow(config, workflow_type=kind, logging_file=False, **changes)
    made.initialize()
    return made


def run(config, kind, **changes):
    made = workflow(config, kind, **changes)
    assert made.check_properties() == []  # MONAI finds what its specification of bundles asks for
    made.run()


def save(array, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def write_plain(folder, count=3, shape=(18, 20, 24)):
    """Folders ``images`` and ``labels`` with blocks of two classes."""
    rng = np.random.default_rng(1)
    for number in range(count):
        label = np.zeros(shape, dtype=np.uint8)
        label[3:8, 4:9, 5:11], label[12:14, 14:16, 15:17] = 1, 2
        save((label * 50 + rng.normal(0, 5, shape)).astype(np.float32), folder / "images" / f"scan{number}.nii.gz")
        save(label, folder / "labels" / f"scan{number}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    phantom = LesionPhantom(shape=(32, 28, 24), spacing=(3.0, 3.0, 4.0))
    return write_dataset(phantom, tmp_path_factory.mktemp("raw"), cases=5, test_cases=1)


def rows(path):
    with open(path, newline="") as stream:
        return list(csv.reader(stream))


@theirs
def test_train_evaluate_and_predict(raw, tmp_path):
    place = {"bundle_root": str(tmp_path), **SMALL}
    run(TRAIN, "train", dataset_dir=str(raw), **SHORT, bundle_root=str(tmp_path))
    run([TRAIN, EVALUATE], "train", dataset_dir=str(raw), **place)
    run(INFERENCE, "infer", images_dir=str(raw / "imagesTr"), **place)

    weights = torch.load(tmp_path / "models" / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())
    predictions = sorted(path.name for path in (tmp_path / "predictions").iterdir())
    assert predictions == [f"lesions_{number:03d}.nii.gz" for number in range(5)]
    header, row = rows(tmp_path / "eval" / "dice_raw.csv")
    assert header == ["filename", "class0", "mean"]
    truth, found = (nib.load(path) for path in (row[0], tmp_path / "predictions" / row[0].rpartition("/")[2]))
    np.testing.assert_allclose(found.affine, truth.affine, atol=1e-5)
    a, b = (np.asarray(each.dataobj) > 0 for each in (truth, found))
    assert float(row[1]) == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()), abs=1e-5)
    names = {name.name for name in (tmp_path / "eval").iterdir()}
    assert {f"{name}_raw.csv" for name in ("cc_dice", "lesion_recall", "lesion_precision", "panoptic_quality")} <= names


@theirs
def test_predictions_lie_on_the_grid_of_the_image(tmp_path):
    """Axes in another order, coarser voxels for the network than in the file, and labels of the right number."""
    data = write_plain(tmp_path / "data")
    place = {"bundle_root": str(tmp_path / "out"), **SMALL, "network_def#channels": [16, 32]}
    place["intensity"] = {"_target_": "ScaleIntensityRanged", "keys": "image", "a_min": 0, "a_max": 100}
    run(
        *(TRAIN, "train"),
        **{**place, "epochs": 40, "val_interval": 40, "learning_rate": 0.01},
        **{"dataset_dir": str(data), "spacing": [4.0, 4.0, 4.0], "batch_size": 1},
        **{"loss#losses#1#_target_": "monai_ext.losses.BlobDiceLoss", "instance_share": 1},
    )
    run(INFERENCE, "infer", images_dir=str(data / "images"), **place)
    for name in ("scan0", "scan1"):
        truth = nib.load(data / "labels" / f"{name}.nii.gz")
        found = nib.load(tmp_path / "out" / "predictions" / f"{name}.nii.gz")
        np.testing.assert_allclose(found.affine, AFFINE, atol=1e-5)
        labels, seen = (np.asarray(each.dataobj) for each in (truth, found))
        assert seen.dtype == np.uint8
        assert seen.shape == labels.shape
        assert (seen[labels == 1] == 1).mean() > 0.7


@theirs
def test_several_channels(tmp_path):
    """MONAI stacks the files of a case; nnU-Net's names tell which belong together."""
    raw, rng = tmp_path / "Dataset001_Two", np.random.default_rng(2)
    for number in range(2):
        label = np.zeros((18, 20, 24), dtype=np.uint8)
        label[4:9, 5:9, 6:12] = 1
        save(label, raw / "labelsTr" / f"case{number}.nii.gz")
        for channel in range(2):
            noise = rng.normal(size=label.shape).astype(np.float32)
            save(noise, raw / "imagesTr" / f"case{number}_{channel:04d}.nii.gz")
    description = {"channel_names": {"0": "T1", "1": "T2"}, "labels": {"background": 0, "lesion": 1}}
    (raw / "dataset.json").write_text(json.dumps({**description, "numTraining": 2, "file_ending": ".nii.gz"}))
    run(TRAIN, "train", dataset_dir=str(raw), bundle_root=str(tmp_path), **{**SHORT, "epochs": 1, "batch_size": 1})
    run(INFERENCE, "infer", images_dir=str(raw / "imagesTr"), bundle_root=str(tmp_path), **SMALL)
    found = sorted((tmp_path / "predictions").iterdir())
    assert [path.name for path in found] == ["case0.nii.gz", "case1.nii.gz"]
    np.testing.assert_allclose(nib.load(found[0]).affine, AFFINE, atol=1e-5)
    assert nib.load(found[0]).shape == (18, 20, 24)


def documented(path):
    return [line for line in path.read_text().splitlines() if line.startswith("python -m monai.bundle run")]


@pytest.mark.slow
@pytest.mark.e2e
def test_documented_commands_run(raw, tmp_path):
    lines = documented(ROOT / "docs" / "README.md")
    assert lines == documented(ROOT.parents[1] / "docs" / "monai.md")
    short = ["--epochs", "1", "--val_interval", "1", "--patch_size", "[16,16,16]"]
    small = ["--network_def#channels", "[4,8]", "--network_def#strides", "[2]"]
    for line in lines:
        line = line.replace("$BUNDLE", str(ROOT)).replace("nnUNet_raw/Dataset004_X", str(raw))
        command = [sys.executable, *shlex.split(line)[1:], *short, *small]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
    for file in ("models/model.pt", "eval/cc_dice_raw.csv", "predictions/lesions_test_000.nii.gz"):
        assert (tmp_path / file).is_file()


@theirs
def test_metadata_describe_the_network():
    channels = {"network_def#in_channels": 1, "network_def#out_channels": 2}
    verify_net_in_out("network", str(CONFIGS / "metadata.json"), TRAIN, device="cpu", n=1, **channels)


def test_training_and_inference_agree():
    """MONAI's bundles repeat these parts; a network must meet the same images in both."""
    train, inference = (json.loads((CONFIGS / f"{name}.json").read_text()) for name in ("train", "inference"))
    assert train["network_def"] == inference["network_def"]
    assert all(train[key] == inference[key] for key in ("patch_size", "intensity", "device"))
    assert train["validate"]["inferer"] == inference["inferer"]

    def for_images(text):
        text = text.replace("@validate#preprocessing", "@preprocessing")
        return json.loads(text.replace('["image", "label"]', '"image"'))

    validate = for_images(json.dumps(train["validate"]))
    assert validate["preprocessing"] == inference["preprocessing"]
    ours, others = (part["postprocessing"]["transforms"] for part in (validate, inference))
    assert ours == others[: len(ours)]


@theirs
def test_a_trained_model_and_older_results_stay(raw, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_text("precious")
    with pytest.raises(RuntimeError) as caught:
        run(TRAIN, "train", dataset_dir=str(raw), bundle_root=str(tmp_path), **SHORT)
    assert "holds a trained model, which stays as it is" in str(caught.value.__cause__)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "case.nii.gz").touch()
    with pytest.raises(ConfigError, match="old holds files, which stay as they are"):
        cases.require_empty(tmp_path / "old")
    cases.require_empty(tmp_path / "new")


@theirs
def test_an_interrupted_training_goes_on(raw, tmp_path):
    words = {"dataset_dir": str(raw), "bundle_root": str(tmp_path), **SHORT}
    first = workflow(TRAIN, "train", **words)
    trainer = first.parser.get_parsed_content("train#trainer")
    trainer.add_event_handler(Events.EPOCH_COMPLETED(once=1), trainer.terminate)
    first.run()
    (tmp_path / "models" / "training_checkpoint_epoch=2.pt").write_bytes(b"PK")  # killed while it was written
    (tmp_path / "models" / "model.pt").write_text("better")
    state = torch.load(cases.last_checkpoint(tmp_path / "models"), weights_only=True)
    state["best"]["_saved"] = [(1.0, "model.pt")]
    torch.save(state, tmp_path / "models" / "training_checkpoint_epoch=1.pt")

    second = workflow(TRAIN, "train", **words, resume=True)
    second.run()
    state = second.parser.get_parsed_content("train#state")
    assert (state["trainer"].state.epoch, state["lr_scheduler"].last_epoch) == (2, 2)
    steps = {int(each["step"]) for each in state["optimizer"].state.values()}
    assert steps == {state["trainer"].state.iteration}
    assert (tmp_path / "models" / "model.pt").read_text() == "better"  # the best so far is known


@theirs
def test_another_dataset_cannot_go_on(tmp_path):
    with pytest.raises(DataError, match="holds no training to go on with"):
        cases.last_checkpoint(tmp_path)
    one = cases.Description({"background": 0, "lesion": 1}, ("MRI",), (1.0, 1.0, 1.0))
    split = {"train": [{"label": "labelsTr/b.nii.gz"}], "validate": [{"label": "labelsTr/a.nii.gz"}]}
    one.save(tmp_path, split)
    one.save(tmp_path, split, resume=True)
    assert cases.load_description(tmp_path) == one
    with pytest.raises(ConfigError, match="began with other labels: it cannot go on"):
        cases.Description({"background": 0, "cyst": 1}, ("MRI",), (1.0, 1.0, 1.0)).save(tmp_path, split, resume=True)
    with pytest.raises(ConfigError, match="began with other cases"):
        one.save(tmp_path, {"train": split["validate"], "validate": split["train"]}, resume=True)


@theirs
@pytest.mark.parametrize(("labels", "chance"), [({"left lung": 1, "right lung": 2}, 0.0), ({"lesion": 1}, 0.5)])
def test_sides_are_not_exchanged(labels, chance):
    description = cases.Description({"background": 0, **labels}, ("CT",), (1.0, 1.0, 1.0))
    made = workflow(TRAIN, "train", description=description, initialize=[], dataset_dir="none", run=[])
    flip = made.parser.get_parsed_content("train#preprocessing#transforms#9")
    assert (flip.flipper.spatial_axis, flip.prob) == (0, chance)


def test_a_dataset_is_described(raw, tmp_path):
    found = cases.describe(raw)
    assert (found.labels, found.channels) == ({"background": 0, "lesion": 1}, ("MRI",))
    assert found.spacing == pytest.approx((4.0, 3.0, 3.0))
    found.save(tmp_path / "models", cases.split_cases(raw))
    assert cases.load_description(tmp_path / "models") == found
    plain = cases.describe(write_plain(tmp_path / "plain"))
    assert plain.labels == {"background": 0, "class 1": 1, "class 2": 2}
    assert plain.spacing == pytest.approx((3.0, 4.0, 3.5))  # along the patient's axes, not those of the file
    assert cases.describe(raw, [1, 2, 3]).spacing == (1.0, 2.0, 3.0)


def test_one_side_alone_is_a_side():
    assert cases.Description({"background": 0, "left kidney": 1}, ("CT",), (1.0, 1.0, 1.0)).has_sides


def test_folds_share_no_case(raw):
    folds = [cases.split_cases(raw, fold) for fold in range(5)]
    held_out = [item["label"] for fold in folds for item in fold["validate"]]
    assert len(set(held_out)) == len(held_out) == 5
    for fold in folds:
        assert not {item["label"] for item in fold["train"]} & {item["label"] for item in fold["validate"]}
        assert len(fold["train"]) == 4


def test_channels_of_a_case_stay_together(tmp_path):
    two = cases.Description({"background": 0, "lesion": 1}, ("T1", "T2"), (1.0, 1.0, 1.0))
    one = cases.Description({"background": 0, "lesion": 1}, ("T1",), (1.0, 1.0, 1.0))
    for name in ("b_0000", "b_0001", "a_0000", "a_0001"):
        save(np.zeros((2, 2, 2), dtype=np.float32), tmp_path / f"{name}.nii.gz")
    found = [[path.rpartition("/")[2] for path in case["image"]] for case in cases.image_cases(tmp_path, two)]
    assert found == [["a_0000.nii.gz", "a_0001.nii.gz"], ["b_0000.nii.gz", "b_0001.nii.gz"]]
    assert len(cases.image_cases(tmp_path, one)) == 4
    (tmp_path / "b_0001.nii.gz").unlink()
    with pytest.raises(DataError, match=r"lacks b_0001; the model needs the channels T1, T2, in this order"):
        cases.image_cases(tmp_path, two)


def change(folder, **changes):
    path = folder / "dataset.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_bad_datasets_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="--dataset_dir FOLDER"):
        cases.describe(None)
    with pytest.raises(DataError, match=r"nowhere/dataset.json"):
        cases.describe(tmp_path / "nowhere")
    plain = write_plain(tmp_path / "plain", count=1)
    with pytest.raises(DataError, match="has 1 case, training and validation need one each"):
        cases.split_cases(plain)
    save(np.zeros((2, 2, 2), dtype=np.uint8), plain / "labels" / "more.nii.gz")
    with pytest.raises(DataError, match="more is in one of images and labels only"):
        cases.describe(plain)
    for path in (plain / "labels").iterdir():
        save(np.zeros((2, 2, 2), dtype=np.uint8), path)
    (plain / "labels" / "more.nii.gz").unlink()
    with pytest.raises(DataError, match="holds nothing but background"):
        cases.describe(plain)
    (plain / "images" / "scan0.nii.gz").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"scan0.nii.gz cannot be read"):
        cases.describe(plain)


def test_bad_raw_datasets_are_refused(tmp_path):
    folder = write_dataset(LesionPhantom(shape=(24, 24, 24)), tmp_path, cases=2, test_cases=0)
    with pytest.raises(ConfigError, match=r"spacing is \[0, 1, 1\]"):
        cases.describe(folder, [0, 1, 1])
    with pytest.raises(ConfigError, match="fold is 2, expected 0 to 1"):
        cases.split_cases(folder, 2)
    change(folder, labels={"background": 0, "lesion": 1, "ignore": 2})
    with pytest.raises(ConfigError, match=r"ignore label, which this bundle cannot train: use nnUNetv2_train"):
        cases.describe(folder)
    change(folder, labels={"background": 0, "lesion": 1}, channel_names={"0": "T1", "1": "T2"})
    with pytest.raises(DataError, match=r"dataset.json declares 2 channels.*; 1 more, see nnunet-imbal check"):
        cases.describe(folder)


def test_bad_models_and_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="does not describe a trained model: train first"):
        cases.load_description(tmp_path)
    (tmp_path / "dataset.json").write_text('{"labels": {}}')
    with pytest.raises(DataError, match="does not describe a trained model"):
        cases.load_description(tmp_path)
    description = cases.Description({"background": 0, "lesion": 1}, ("T1",), (1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="--images_dir FOLDER"):
        cases.image_cases(None, description)
    with pytest.raises(DataError, match=r"holds no file that ends in .nii.gz or .nii"):
        cases.image_cases(tmp_path, description)
    with pytest.raises(DataError, match="nowhere is not a folder"):
        cases.image_cases(tmp_path / "nowhere", description)
    for ending in (".nii", ".nii.gz"):
        save(np.zeros((2, 2, 2), dtype=np.float32), tmp_path / f"twice{ending}")
    with pytest.raises(DataError, match="keep one of them"):
        cases.image_cases(tmp_path, description)
