"""Class frequencies on their way from nnU-Net's loader into losses, plans and checkpoints."""

import copy
import json
from itertools import repeat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nnunet_imbal.config import ImbalConfig
from nnunet_imbal.labels import LabelSpec
from trainers import ImbalTrainer
from trainers._adapter import build_terms
from trainers._anatomy import BATCHES, learn_anatomy, learn_frequencies, tell_guarded, wanted

pytestmark = pytest.mark.filterwarnings("ignore")  # nnU-Net's own

CPU = torch.device("cpu")


def manager(**changes):
    facts = {"num_segmentation_heads": 3, "has_regions": False, "ignore_label": None, "foreground_regions": None}
    return SimpleNamespace(**{**facts, **changes})


def config(*names, **options):
    return ImbalConfig.from_dict({"terms": [{"loss": name, "kwargs": options} for name in names]})


def test_who_wants_frequencies():
    assert wanted(config("logit_adjusted_ce", "ldam", "focal_ce")) == {"frequencies"}
    assert wanted(config("lcr")) == {"frequencies", "implications"}
    assert wanted(config("unified_focal", "focal_tversky")) == set()
    assert wanted(config("ldam", frequencies=[0.9, 0.1])) == set()


@pytest.mark.parametrize("levels", [1, 3])
def test_measured_on_full_resolution(levels):
    said = []
    target = torch.tensor([0.0, 0, 0, 1]).view(1, 1, 1, 2, 2)
    levels = [target] + [torch.full((1, 1, 1, 1, 1), 2.0)] * (levels - 1)
    batches = iter(repeat({"target": levels[0] if len(levels) == 1 else levels}, BATCHES))
    assert learn_frequencies(batches, manager(), CPU, said.append) == [0.75, 0.25, 0]
    assert next(batches, None) is None  # not one batch more than said
    assert "50 batches" in said[0]
    assert "[2] were in none" in said[1]


def test_regions_and_their_nesting():
    said = []
    labels = manager(num_segmentation_heads=2, has_regions=True, ignore_label=3, foreground_regions=[(1, 2), (2,)])
    target = torch.tensor([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]).view(1, 3, 1, 1, 4)
    shares = learn_frequencies(repeat({"target": target}), labels, CPU, said.append)
    assert shares == pytest.approx([2 / 3, 1 / 3])
    cases = SimpleNamespace(identifiers=())
    learned = learn_anatomy({"frequencies", "implications"}, cases, labels, (1, 1, 1), None, said.append)
    assert learned == {"implications": [[0, 1]]}
    learned["frequencies"] = shares
    assert json.loads(json.dumps(learned)) == learned
    (term,) = build_terms(config("lcr"), LabelSpec(has_regions=True), (1, 1, 1), learned)
    assert term.loss.implications == [(0, 1)]
    assert term.loss.frequencies.tolist() == pytest.approx(shares)


def test_guard_speaks_up():
    shares = [0.9, *(0.1 * x for x in (0.3, 0.25, 0.2, 0.15, 0.0999, 0.0001))]
    for frequencies, lines in ((shares, 1), ([0.9, 0.05, 0.05], 0)):
        said = []
        terms = build_terms(config("focal_ce", "ldam"), LabelSpec(), (1, 1, 1), {"frequencies": frequencies})
        tell_guarded(terms, said.append)
        assert len(said) == lines
        assert not said or "[2.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]" in said[0]


@pytest.mark.slow
@pytest.mark.e2e
class TestTrainer:
    @pytest.fixture
    def make(self, in_process, tmp_path, monkeypatch):
        """Function (terms) -> trainer on the tiny dataset."""
        monkeypatch.setenv("nnUNet_results", str(tmp_path))

        def make(*names):
            files = ("nnUNetPlans.json", "dataset.json")
            plans, dataset = (json.loads((in_process.preprocessed / name).read_text()) for name in files)
            plans["continue_training"] = False
            plans["configurations"]["3d_fullres"]["imbal"] = config(*names).to_dict()
            return ImbalTrainer(copy.deepcopy(plans), "3d_fullres", 0, dataset, CPU)

        return make

    def test_measured_stored_and_kept(self, make):
        trainer = make("logit_adjusted_ce")
        trainer.initialize()
        assert trainer.loss.terms[0].loss.frequencies is None
        trainer.get_dataloaders()
        learned = trainer.plans_manager.plans["configurations"]["3d_fullres"]["imbal"]["learned"]["frequencies"]
        assert sum(learned) == pytest.approx(1)
        assert learned[0] == max(learned)
        assert trainer.loss.terms[0].loss.frequencies.tolist() == pytest.approx(learned)
        assert f"{BATCHES} batches" in Path(trainer.log_file).read_text()

        path = str(Path(trainer.output_folder) / "checkpoint_latest.pth")
        trainer.save_checkpoint(path)
        resumed = make("logit_adjusted_ce")
        resumed.load_checkpoint(path)
        resumed.get_dataloaders()
        assert "batches as they are drawn" not in Path(resumed.log_file).read_text()
        assert resumed.loss.terms[0].loss.frequencies.tolist() == pytest.approx(learned)

    def test_an_epoch_of_all_of_them(self, make):
        trainer = make("logit_adjusted_ce", "ldam", "focal_ce", "focal_tversky", "unified_focal", "lcr")
        trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = 1, 2, 1
        trainer.perform_actual_validation = lambda save_probabilities=False: None
        trainer.run_training()
        assert np.isfinite(trainer.logger.get_value("train_losses", step=None)).all()
