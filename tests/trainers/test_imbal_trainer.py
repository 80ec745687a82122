"""ImbalTrainer inside one process: equal to stock where it must be, and refusing what would waste hours."""

import copy
import inspect
import json
import math
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

import trainers
from nnunet_imbal.errors import ConfigError, NonFiniteLossError
from trainers import ImbalTrainer

sys.path.insert(0, str(Path(__file__).parent / "ext"))
from imbal_smoke_trainers import ImbalTrainerSeeded, ImbalTrainerSmoke

sys.path.pop(0)

# What nnU-Net and its libraries warn about is theirs; what our modules cause stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings(r"error:::(trainers|nnunet_imbal|numba_kernels)\..*"),
]


class TestWithoutData:
    def test_R38_signature_is_upstreams(self):
        names = ("__init__", "train_step", "on_train_epoch_start", "_build_loss")
        for name in names:
            ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (ImbalTrainer, nnUNetTrainer))
            assert list(ours.parameters) == list(theirs.parameters), f"nnU-Net changed {name}: {theirs}"

    @pytest.mark.parametrize("name", trainers.__all__)
    def test_R38_names_and_pickling(self, name):
        cls = getattr(trainers, name)
        assert issubclass(cls, nnUNetTrainer)
        assert "__" not in name
        assert pickle.loads(pickle.dumps(cls)) is cls

    def test_R38_found_by_nnunet(self):
        assert recursive_find_trainer_class_by_name("ImbalTrainer") is ImbalTrainer
        assert recursive_find_trainer_class_by_name("nnUNetTrainer") is nnUNetTrainer


def _trainer(cls, workspace, configuration="3d_fullres", imbal=None, change=None, fold=0):
    plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
    plans["continue_training"] = False
    if imbal is not None:
        plans["configurations"][configuration]["imbal"] = imbal
    if change is not None:
        change(plans["configurations"])
    dataset = json.loads((workspace.preprocessed / "dataset.json").read_text())
    return cls(plans, configuration, fold, dataset, torch.device("cpu"))


@pytest.fixture
def make(in_process, tmp_path, monkeypatch):
    """Function (cls, configuration, imbal, change) -> trainer whose results go to a folder of this test."""
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return lambda cls=ImbalTrainerSmoke, **options: _trainer(cls, in_process, **options)


def _train(trainer):
    trainer.run_training()
    return trainer.logger.get_value("train_losses", step=None)


@pytest.mark.slow
@pytest.mark.e2e
class TestWithData:
    @pytest.mark.parametrize("imbal", [{"terms": []}, {"terms": [{"loss": "cc_dice", "weight": 0}]}])
    def test_R39_weight_zero_is_stock_bit_for_bit(self, make, imbal):
        results = []
        for cls, entry in ((nnUNetTrainer, None), (ImbalTrainer, imbal)):
            torch.manual_seed(0)
            trainer = make(cls, imbal=entry)
            trainer.initialize()
            generator = torch.Generator().manual_seed(1)
            patch = trainer.configuration_manager.patch_size
            scales = trainer._get_deep_supervision_scales()
            labels = torch.randint(0, 3, (2, 1, *patch), generator=generator)
            steps = [[round(1 / f) for f in scale] for scale in scales]
            target = [labels[:, :, :: s[0], :: s[1], :: s[2]] for s in steps]
            loss = trainer.loss(trainer.network(torch.randn(2, 1, *patch, generator=generator)), target)
            loss.backward()
            grads = [p.grad for p in trainer.network.parameters() if p.grad is not None]
            results.append((loss, grads))
        (stock, stock_grads), (ours, our_grads) = results
        assert torch.equal(stock, ours)
        assert all(torch.equal(a, b) for a, b in zip(stock_grads, our_grads, strict=True))

    @pytest.mark.parametrize("deep_supervision", [True, False])
    @pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
    def test_2d_and_3d_with_and_without_deep_supervision(self, make, configuration, deep_supervision):
        trainer = make(configuration=configuration)
        trainer.enable_deep_supervision = deep_supervision
        assert np.isfinite(_train(trainer)).all()

    def test_one_resolution_is_not_nan(self, make):
        def one_stage_more_than_input(configurations):
            arch = configurations["3d_fullres"]["architecture"]["arch_kwargs"]
            for key in ("features_per_stage", "kernel_sizes", "strides", "n_conv_per_stage"):
                arch[key] = arch[key][:2]
            arch["n_stages"], arch["n_conv_per_stage_decoder"] = 2, arch["n_conv_per_stage_decoder"][:1]

        trainer = make(change=one_stage_more_than_input)
        assert len(trainer._get_deep_supervision_scales()) == 1
        assert np.isfinite(_train(trainer)).all()

    def test_cascade(self, make, in_process, tmp_path):
        def cascade(configurations):
            low, full = "3d_lowres", "3d_cascade_fullres"
            configurations[low] = {"inherits_from": "3d_fullres", "next_stage": full}
            configurations[full] = {"inherits_from": "3d_fullres", "previous_stage": low}

        previous = tmp_path / in_process.dataset / "ImbalTrainerSmoke__nnUNetPlans__3d_lowres"
        stage = previous / "predicted_next_stage" / "3d_cascade_fullres"
        stage.mkdir(parents=True)
        data = nnUNetDatasetBlosc2(str(in_process.preprocessed / "nnUNetPlans_3d_fullres"))
        for case in data.identifiers:
            nnUNetDatasetBlosc2.save_seg(np.asarray(data.load_case(case)[1][0]).clip(0), str(stage / case))
        assert np.isfinite(_train(make(configuration="3d_cascade_fullres", change=cascade))).all()

    def test_terms_alone_and_from_a_later_epoch(self, make):
        trainer = make(imbal={"base": "none", "terms": [{"loss": "cc_dice", "weight": 2.0}]})
        assert np.isfinite(_train(trainer)).all()
        assert set(trainer.loss.values) == {"cc_dice"}
        late = make(imbal={"terms": [{"loss": "cc_dice", "from_epoch": 1}]})
        _train(late)
        assert set(late.loss.values) == {"nnunet"}

    def test_a_term_grows_to_its_weight(self, make):
        trainer = make(imbal={"terms": [{"loss": "cc_dice", "weight": 0.6, "from_epoch": 2, "ramp_epochs": 3}]})
        (term,) = trainer._imbal_terms()
        assert [term.weight_in(epoch) for epoch in range(7)] == pytest.approx([0, 0, 0, 0.2, 0.4, 0.6, 0.6])

    def test_R41_resume_equals_an_uninterrupted_run(self, make, tmp_path, monkeypatch):
        whole = make(ImbalTrainerSeeded)
        torch.manual_seed(0)
        losses = _train(whole)
        monkeypatch.setenv("nnUNet_results", str(tmp_path / "interrupted"))
        torch.manual_seed(0)
        killed = make(ImbalTrainerSeeded)
        monkeypatch.setattr(killed, "on_epoch_end", lambda: _end_then_die(killed))
        with pytest.raises(KeyboardInterrupt):
            killed.run_training()

        resumed = make(ImbalTrainerSeeded)
        resumed.initialize()
        maybe_load_checkpoint(resumed, continue_training=True, validation_only=False)
        assert resumed.current_epoch == 1
        assert resumed.imbal_config == whole.imbal_config
        resumed_losses = _train(resumed)
        assert len(resumed_losses) == len(losses) == 3
        np.testing.assert_array_equal(resumed_losses, losses)
        assert resumed.optimizer.param_groups[0]["lr"] == whole.optimizer.param_groups[0]["lr"]
        state = resumed.network.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in whole.network.state_dict().items())

    def test_R42_resume_with_another_loss(self, make, monkeypatch):
        trainer = make(ImbalTrainerSeeded)
        trainer.initialize()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        other = {"terms": [{"loss": "cc_dice", "weight": 0.5}]}
        with pytest.raises(ConfigError, match=r"(?s)checkpoint:.*'weight': 1\.0.*now:.*'weight': 0\.5"):
            maybe_load_checkpoint(make(ImbalTrainerSeeded, imbal=other), True, False)
        monkeypatch.setenv("NNUNET_IMBAL_ALLOW_CONFIG_CHANGE", "1")
        allowed = make(ImbalTrainerSeeded, imbal=other)
        maybe_load_checkpoint(allowed, True, False)
        assert "weight': 0.5" in Path(allowed.log_file).read_text()
        stored = allowed.my_init_kwargs["plans"]["configurations"]["3d_fullres"]["imbal"]
        assert stored["terms"][0]["weight"] == 0.5

    def test_R13_a_loss_that_is_no_number_stops_the_run(self, make):
        trainer = make()
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        batch = next(trainer.dataloader_train)
        trainer.train_step(batch)
        batch = copy.deepcopy(batch)
        batch["data"][0, 0, 3, 3] = math.nan
        with pytest.raises(NonFiniteLossError, match=r"epoch 0, iteration 1 .*nnunet = nan, cc_dice = nan.* on case"):
            trainer.train_step(batch)

    @pytest.mark.parametrize("imbal", [{"terms": [{"loss": "cc_dice", "kwargs": {"conectivity": 6}}]}, {"trems": []}])
    def test_R43_wrong_plans_stop_before_data_are_touched(self, make, imbal):
        with pytest.raises(ConfigError, match="did you mean"):
            make(imbal=imbal)


def _end_then_die(trainer):
    type(trainer).on_epoch_end(trainer)
    raise KeyboardInterrupt
