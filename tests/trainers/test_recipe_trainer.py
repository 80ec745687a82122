"""`ImbalTrainer` as it comes: chooses by the fingerprint, goes on as it began, is stock if nothing is imbalanced."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.run.run_training import maybe_load_checkpoint

from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.fingerprint import FILE_NAME, fingerprint_dataset, load_fingerprint
from nnunet_imbal.recipe import choose_recipe
from trainers import ImbalTrainer
from trainers._recipe import dataset_recipe

pytestmark = [pytest.mark.slow, pytest.mark.e2e]
quiet = pytest.mark.filterwarnings("ignore")  # what nnU-Net and its libraries warn about is theirs
CONFIGURATION = "3d_fullres"


class Short(ImbalTrainer):
    epochs = 2
    iterations = 2
    val_iterations = 1


def test_a_balanced_dataset_is_trained_as_by_stock_nnunet_bit_for_bit(workspaces, tmp_path):
    workspace = workspaces("labels")
    results = {}
    for trainer in ("StockTwoEpochs", "RecipeTwoEpochs"):
        words = (workspace.dataset[7:10], CONFIGURATION, "0", "-tr", trainer, "-device", "cpu")
        said = workspace.run("nnUNetv2_train", *words, nnUNet_results=str(tmp_path)).stdout
        folder = tmp_path / workspace.dataset / f"{trainer}__nnUNetPlans__{CONFIGURATION}"
        results[trainer] = torch.load(folder / "fold_0" / "checkpoint_final.pth", weights_only=False)
    assert "no change: nothing is imbalanced, stock nnU-Net is made for this" in said
    stock, ours = results.values()
    for key in ("train_losses", "val_losses", "mean_fg_dice", "lrs"):
        assert len(stock["logging"][key]) == 2
        assert stock["logging"][key] == ours["logging"][key]
    assert stock["network_weights"].keys() == ours["network_weights"].keys()
    assert all(torch.equal(value, ours["network_weights"][key]) for key, value in stock["network_weights"].items())
    assert stock["inference_allowed_mirroring_axes"] == ours["inference_allowed_mirroring_axes"]


@pytest.fixture
def lesions(in_process, tmp_path, monkeypatch):
    """The tiny dataset without its label maps, and a kept fingerprint that says its lesions are scattered."""
    folder = tmp_path / "preprocessed" / in_process.dataset
    shutil.copytree(in_process.preprocessed, folder, ignore=shutil.ignore_patterns("gt_segmentations"))
    found = fingerprint_dataset(in_process.folder / "raw" / in_process.dataset)
    scattered = replace(found.classes["lesion"], components_per_case=[1, 3, 5, 8, 9], component_mm3=[2, 9, 30, 99, 400])
    replace(found, classes={**found.classes, "lesion": scattered}).save(folder / FILE_NAME)
    for name in ("preprocessed", "results"):
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    monkeypatch.setenv("nnUNet_raw", str(tmp_path / "raw"))
    return folder


def make(folder, imbal=None, resume=False):
    plans, dataset = (json.loads((folder / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json"))
    if imbal is not None:
        plans["configurations"][CONFIGURATION]["imbal"] = imbal
    return Short({**plans, "continue_training": resume}, CONFIGURATION, 0, dataset, torch.device("cpu"))


def balance(folder):
    """Let the fingerprint say that nothing is imbalanced."""
    found = load_fingerprint(folder / FILE_NAME)
    replace(found, classes=dict.fromkeys(found.classes, found.classes["organ"])).save(folder / FILE_NAME)


@pytest.fixture
def begun(lesions):
    """A training of one epoch, and its folder."""
    trainer = make(lesions)
    trainer.initialize()
    trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
    return trainer


@quiet
class TestChoice:
    def test_by_the_fingerprint_told_and_stored(self, lesions):
        trainer = make(lesions)
        trainer.run_training()
        chosen = choose_recipe(load_fingerprint(lesions / FILE_NAME), epochs=2)
        assert trainer.imbal_config == chosen.config
        assert [term.loss for term in trainer.imbal_config.terms] == ["cc_dice"]
        assert set(trainer.loss.values) == {"nnunet", "cc_dice"}
        log = Path(trainer.log_file).read_text()
        assert f"Chosen by what is imbalanced in {lesions.name}:" in log
        plans = json.loads((Path(trainer.output_folder_base) / "plans.json").read_text())
        checkpoint = torch.load(Path(trainer.output_folder) / "checkpoint_final.pth", weights_only=False)
        for stored in (plans, checkpoint["init_args"]["plans"]):
            entry = stored["configurations"][CONFIGURATION]["imbal"]
            assert ImbalConfig.from_dict(entry) == chosen.config
            assert entry["recipe"] == [{"what": each.what, "reason": each.reason} for each in chosen.choices]
        for choice in chosen.choices:
            assert f"- {choice.what}: {choice.reason}" in log

    def test_an_entry_in_the_plans_goes_before(self, lesions):
        trainer = make(lesions, imbal={"terms": []})
        (lesions / FILE_NAME).unlink()
        trainer.initialize()
        assert trainer.imbal_config == ImbalConfig()
        assert "recipe" not in trainer.plans_manager.plans["configurations"][CONFIGURATION]["imbal"]

    def test_without_labels_nothing_is_chosen_silently(self, lesions):
        (lesions / FILE_NAME).unlink()
        with pytest.raises(DataError, match=r"(?s)cannot be measured.*export nnUNet_raw.*nnunet-imbal configure"):
            make(lesions).initialize()


@quiet
class TestResume:
    @pytest.mark.parametrize("measurable", [True, False])
    def test_goes_on_as_it_began(self, begun, lesions, measurable):
        balance(lesions)
        if not measurable:
            (lesions / FILE_NAME).unlink()
        resumed = make(lesions, resume=True)
        maybe_load_checkpoint(resumed, continue_training=True, validation_only=False)
        assert resumed.imbal_config == begun.imbal_config
        assert "Going on as this training began" in Path(resumed.log_file).read_text()
        resumed.run_training()
        assert resumed.current_epoch == 2
        assert set(resumed.loss.values) == {"nnunet", "cc_dice"}
        entry = resumed.my_init_kwargs["plans"]["configurations"][CONFIGURATION]["imbal"]
        assert [choice["what"] for choice in entry["recipe"]] == ["cc_dice", "sampling"]

    def test_validation_alone_measures_nothing(self, begun, lesions):
        path = Path(begun.output_folder)
        (path / "checkpoint_latest.pth").rename(path / "checkpoint_final.pth")
        (lesions / FILE_NAME).unlink()
        validated = make(lesions)
        maybe_load_checkpoint(validated, continue_training=False, validation_only=True)
        assert validated.imbal_config == begun.imbal_config

    def test_an_entry_given_now_is_compared(self, begun, lesions):
        with pytest.raises(ConfigError, match=r"(?s)terms:.*checkpoint:.*cc_dice.*now: *\[\]"):
            maybe_load_checkpoint(make(lesions, imbal={}, resume=True), True, False)
        same = begun.imbal_config.to_dict()
        maybe_load_checkpoint(make(lesions, imbal=same, resume=True), True, False)

    def test_nothing_to_go_on_from_begins_anew(self, lesions):
        trainer = make(lesions, resume=True)
        maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
        trainer.initialize()
        assert [term.loss for term in trainer.imbal_config.terms] == ["cc_dice"]


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    preprocessed = Path(folder) / "Dataset001_X"
    recipe = dataset_recipe(preprocessed, epochs=4, patch_size=(8, 8, 8))
    recipes = [None, None]
    dist.all_gather_object(recipes, recipe)
    assert recipes[0] == recipes[1]
    dist.destroy_process_group()


@pytest.mark.ddp
def test_one_rank_measures_and_tells_the_other(lesions, tmp_path, monkeypatch):
    shutil.copytree(lesions, tmp_path / "Dataset001_X")
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)
