"""What the trainers learn from the training labels before the first step, and that a resumed training keeps it."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_imbal.config import ImbalConfig
from trainers import ImbalTrainer, ImbalTrainerAGTAL, ImbalTrainerAGTAL_5epochs, ImbalTrainerClDice
from trainers._adapter import difference
from trainers._anatomy import learn_anatomy, wanted

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own


class Cases:
    """As much of nnU-Net's dataset as is asked for: three cases, thin class 1 beside thick class 2, class 3 apart."""

    identifiers = ("a", "b", "c", "d", "e")

    def load_case(self, name):
        labels = np.zeros((1, 9, 20, 20), np.int16)
        labels[0, 2:7, 3:8, 3:9] = 2
        labels[0, 4, 5, 9:14] = 1
        labels[0, 4, 15, 3:9] = 3
        labels[0, :, :, 18:] = 4  # ignored
        labels[0, :, 0] = -1
        return None, labels, None, {}


LABELS = SimpleNamespace(all_labels=[0, 1, 2, 3], ignore_label=4)


def test_words_that_are_learned():
    assert wanted(ImbalConfig.from_dict(ImbalTrainerAGTAL.imbal)) == {"forbidden", "radius_range"}
    assert wanted(ImbalConfig.from_dict(ImbalTrainerClDice.imbal)) == set()
    given = {"terms": [{"loss": "radius_dice", "kwargs": {"radius_range": [1, 2]}}]}
    assert wanted(ImbalConfig.from_dict(given)) == set()
    unused = {"terms": [{"loss": "radius_dice", "weight": 0}]}
    assert wanted(ImbalConfig.from_dict(unused)) == set()


def test_anatomy_of_five_cases():
    said = []
    learned = learn_anatomy({"forbidden", "radius_range"}, Cases(), LABELS, (1, 0.5, 0.5), None, said.append)
    assert learned["forbidden"] == [[0, 0, 1], [0, 0, 1], [1, 1, 0]]
    thin, thick = learned["radius_range"]
    assert 0 < thin < thick <= 1.5
    assert len(said) == 2
    assert "2 pairs of classes never touch" in said[0]
    assert json.loads(json.dumps(learned)) == learned


def test_sides_count_for_each_other():
    """Where flips exchange 1 and 3, what 1 touches 3 may touch."""
    learned = learn_anatomy({"forbidden"}, Cases(), LABELS, (1, 1, 1), [0, 3, 2, 1, 4], lambda line: None)
    assert learned["forbidden"] == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]


def test_slices_keep_the_default_radii():
    assert learn_anatomy({"radius_range"}, Cases(), LABELS, (1, 1), None, lambda line: None) == {}


def test_what_was_learned_is_no_change_of_configuration():
    stored = {**ImbalConfig().to_dict(), "learned": {"radius_range": [1, 2]}, "version": "0"}
    assert difference(stored, {**ImbalConfig().to_dict(), "learned": {}}) == []


@pytest.mark.slow
@pytest.mark.e2e
class TestTrainer:
    @pytest.fixture
    def make(self, in_process, tmp_path, monkeypatch):
        """Function (cls, change of the plans) -> trainer on the tiny dataset."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))

        def make(cls, imbal=None):
            files = ("nnUNetPlans.json", "dataset.json")
            plans, dataset = (json.loads((in_process.preprocessed / name).read_text()) for name in files)
            plans["continue_training"] = False
            if imbal is not None:
                plans["configurations"]["3d_fullres"]["imbal"] = imbal
            return cls(copy.deepcopy(plans), "3d_fullres", 0, dataset, torch.device("cpu"))

        return make

    def test_learned_stored_and_kept(self, make):
        trainer = make(ImbalTrainerAGTAL_5epochs)
        trainer.initialize()
        assert trainer.loss.terms[1].loss.forbidden is None
        trainer.get_dataloaders()
        learned = trainer.plans_manager.plans["configurations"]["3d_fullres"]["imbal"]["learned"]
        assert learned["forbidden"] == trainer.loss.terms[1].loss.forbidden.tolist()
        assert tuple(learned["radius_range"]) == trainer.loss.terms[0].loss.radius_range
        assert trainer.loss.terms[0].loss.radius_range == trainer.loss.terms[1].loss.radius_range
        assert "label maps" in Path(trainer.log_file).read_text()

        path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
        trainer.save_checkpoint(path)
        stored = torch.load(path, weights_only=False)["init_args"]["plans"]
        stored["configurations"]["3d_fullres"]["imbal"]["learned"]["radius_range"] = [0.125, 7.0]
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["init_args"]["plans"] = stored
        torch.save(checkpoint, path)

        resumed = make(ImbalTrainerAGTAL_5epochs)
        resumed.load_checkpoint(path)
        resumed.get_dataloaders()
        assert resumed.loss.terms[0].loss.radius_range == (0.125, 7.0)

    def test_plans_go_before_labels(self, make):
        trainer = make(ImbalTrainer, {"terms": [{"loss": "radius_dice", "kwargs": {"radius_range": [0.25, 9]}}]})
        trainer.initialize()
        trainer.get_dataloaders()
        assert trainer.loss.terms[0].loss.radius_range == (0.25, 9.0)
        assert trainer.plans_manager.plans["configurations"]["3d_fullres"]["imbal"]["learned"] == {}

    def test_five_epochs_train(self, make):
        trainer = make(ImbalTrainerAGTAL_5epochs)
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 3, 1, 1
        trainer.perform_actual_validation = lambda save_probabilities=False: None
        trainer.run_training()
        assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
