"""Teacher and SCDL inside nnU-Net: what each sees, what a checkpoint keeps, and that prediction needs neither."""

import copy
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from nnunetv2.run.run_training import maybe_load_checkpoint
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from nnunet_imbal.config import Distributions, ImbalConfig, Semi
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.export import OWN_STATE
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.semi import MeanTeacher
from trainers._adapter import ImbalLoss, require_hosts
from trainers._scdl import ClassDistributions, last_segmentation_layer
from trainers._teacher import Teacher, exchanged_weights, read_own_state, write_own_state

sys.path.insert(0, str(Path(__file__).parent / "ext"))
from imbal_smoke_trainers import ImbalTrainerSemiSCDLSeeded, ImbalTrainerSemiSCDLSmoke, ImbalTrainerSemiSmoke

sys.path.pop(0)

# What nnU-Net and its libraries warn about is theirs; what our modules cause stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings(r"error:::(trainers|nnunet_imbal|numba_kernels)\..*"),
]
IGNORE = LabelSpec(ignore_label=3)
REGIONS = LabelSpec(has_regions=True, ignore_label=3)


class Decoder(nn.Module):
    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder  # nnU-Net's decoders hold it too, so that its weights have two names
        self.coarse, self.fine = nn.Conv3d(2, 4, 2, stride=2), nn.Conv3d(2, 4, 3, padding=1)
        self.seg_layers = nn.ModuleList([nn.Conv3d(4, 3, 1), nn.Conv3d(4, 3, 1)])

    def forward(self, image):
        return [self.seg_layers[1](self.fine(image)), self.seg_layers[0](self.coarse(image))]


class TinyNetwork(nn.Module):
    """Two resolutions and nnU-Net's names."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Conv3d(2, 2, 1)
        self.decoder = Decoder(self.encoder)

    def forward(self, image):
        return self.decoder(self.encoder(image))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return TinyNetwork()


def teacher_of(network, labels=IGNORE, **semi):
    return Teacher(network, Semi(**semi), labels, channels=3, image_channels=1, compiles=False)


def batch_of(labels=IGNORE, free=(1,), seed=0):
    """Three patches with an image and a label of a previous stage; `free` ones have no labels in one half."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(3, 2, 8, 8, 8, generator=generator)
    if labels.has_regions:
        target = torch.randint(0, 2, (3, 4, 8, 8, 8), generator=generator)
        target[:, -1] = 0
        target[list(free), -1, :4] = 1
    else:
        target = torch.randint(0, 3, (3, 1, 8, 8, 8), generator=generator)
        target[list(free), :, :4] = 3
    return images, [target, target[..., ::2, ::2, ::2]]


class TestTeacher:
    @pytest.mark.parametrize("labels", [IGNORE, REGIONS])
    def test_it_looks_at_patches_with_unlabelled_voxels_only(self, network, labels):
        teacher, (images, target) = teacher_of(network, labels), batch_of(labels)
        seen = []
        teacher.average.module.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
        views = teacher.look(images, target)
        assert [len(each) for each in seen] == [1]
        assert torch.equal(seen[0][0], images[1])
        assert torch.equal(views[[0, 2]], images[[0, 2]])
        assert not torch.equal(views[1, 0], images[1, 0])
        assert torch.equal(views[1, 1], images[1, 1])  # labels of a previous stage are no intensities

    @pytest.mark.parametrize("labels", [IGNORE, REGIONS])
    def test_only_unlabelled_voxels_and_only_the_network_get_a_gradient(self, network, labels):
        teacher, (images, target) = teacher_of(network, labels, threshold=0.5, floor=0.0), batch_of(labels)
        views = teacher.look(images, target)
        output = [level.detach().requires_grad_() for level in network(views)]
        teacher.judge(output).backward()
        assert output[0].grad[1, :, :4].abs().sum(0).all()
        assert not output[0].grad[1, :, 4:].any()
        assert not output[0].grad[[0, 2]].any()
        assert output[1].grad is None
        assert all(p.grad is None and not p.requires_grad for p in teacher.average.parameters())

    def test_without_unlabelled_voxels_nothing_changes(self, network):
        teacher, (images, target) = teacher_of(network), batch_of(free=())
        assert teacher.look(images, target) is images
        output = network(images)
        assert teacher.judge(output).item() == 0
        host = ImbalLoss(None, (), IGNORE)
        plain = host(output, target)
        host.companions = lambda output, target: {"unlabelled": teacher.judge(output)}
        assert host(output, target).item() == plain.item()
        assert set(host.values) == {"unlabelled"}

    def test_it_follows_the_network_and_starts_from_loaded_weights(self, network):
        teacher, loaded = teacher_of(network), TinyNetwork()
        teacher.start(loaded)
        states = teacher.average.module.state_dict(), loaded.state_dict()
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])
        teacher.start(network)  # too late: it has taught
        assert torch.equal(teacher.average.module.decoder.fine.weight, loaded.decoder.fine.weight)
        teacher.update(network)
        torch.testing.assert_close(
            teacher.average.module.decoder.fine.weight, (loaded.decoder.fine.weight + network.decoder.fine.weight) / 2
        )

    def test_weights_are_lent_and_given_back(self, network):
        teacher = MeanTeacher(TinyNetwork())
        image = torch.randn(1, 2, 8, 8, 8)
        own, other = network(image)[0], teacher(image)[0]
        tensors = list(network.parameters())
        with exchanged_weights(network, teacher):
            assert torch.equal(network(image)[0], other)
        assert torch.equal(network(image)[0], own)
        assert torch.equal(teacher(image)[0], other)
        assert all(a is b for a, b in zip(tensors, network.parameters(), strict=True))


class TestCheckpoint:
    def test_own_state_beside_nnunets(self, tmp_path):
        part, final = str(tmp_path / "checkpoint.pth.part"), str(tmp_path / "checkpoint.pth")
        for weight in (1.0, 2.0):
            torch.save({"network_weights": {"w": torch.tensor(weight)}, "epoch": 3}, part)
            write_own_state(part, final, {"teacher": {"w": torch.tensor(5.0)}}, None)
            assert torch.load(final)["network_weights"]["w"] == weight
        assert read_own_state(final)["teacher"]["w"] == 5
        assert os.listdir(tmp_path) == ["checkpoint.pth"]
        torch.save({"network_weights": {}}, part)
        write_own_state(part, final, {}, {"w": torch.tensor(7.0)})
        assert torch.load(final)["network_weights"]["w"] == 7

    def test_a_checkpoint_of_another_trainer_has_none(self, tmp_path):
        torch.save({"network_weights": {}}, tmp_path / "checkpoint.pth")
        assert read_own_state(str(tmp_path / "checkpoint.pth")) == {}


class TestDistributions:
    def test_a_network_of_another_kind_is_refused(self):
        with pytest.raises(ConfigError, match=r"decoder\.seg_layers\[-1\]`, which Linear does not have"):
            last_segmentation_layer(nn.Linear(1, 1))

    def test_wrong_words_of_scdl(self, network):
        with pytest.raises(ConfigError, match=r"kwargs of scdl: .*'tokens'"):
            ClassDistributions(network, Distributions(kwargs={"tokens": 3}), IGNORE, 3, distributed=False)

    @pytest.mark.parametrize("labels", [IGNORE, REGIONS])
    @pytest.mark.parametrize("unlabelled", [0.0, 0.5])
    def test_gradient_reaches_features_and_its_own_parameters(self, network, labels, unlabelled):
        words = {"token_size": 4, "embedding": 16}
        distributions = ClassDistributions(network, Distributions(kwargs=words), labels, 3, distributed=False)
        distributions.watch()
        images, target = batch_of(labels)
        network(images)
        distributions.loss(target, unlabelled).backward()
        assert network.decoder.fine.weight.grad.any()
        assert network.decoder.coarse.weight.grad is None
        assert all(p.grad is not None for p in distributions.module.parameters())

    def test_features_are_not_kept(self, network):
        distributions = ClassDistributions(network, Distributions(), IGNORE, 3, distributed=False)
        distributions.watch()
        network(batch_of()[0])
        distributions.forget()
        with pytest.raises(RuntimeError, match="run the network first"):
            distributions.forget()


@pytest.mark.parametrize("entry", [{"semi": {}}, {"scdl": {}}])
def test_a_trainer_that_would_leave_an_entry_out_refuses(entry):
    config = ImbalConfig.from_dict(entry)
    with pytest.raises(ConfigError, match=r"ImbalTrainer cannot do the entry .* use -tr ImbalTrainerSemi"):
        require_hosts(config, (), "ImbalTrainer")
    require_hosts(config, entry, "Another")


def _distributed_step(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.manual_seed(0)
    network = DistributedDataParallel(TinyNetwork())
    teacher = teacher_of(network, threshold=0.6)
    config = Distributions(kwargs={"token_size": 4, "embedding": 16})
    distributions = ClassDistributions(network, config, IGNORE, 3, distributed=True)
    distributions.watch()
    parameters = [*network.parameters(), *distributions.module.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for step in range(4):
        images, target = batch_of(free=(), seed=10 * step + rank)
        if rank == 1:
            target = [torch.full_like(level, 3) for level in target]
        output = network(teacher.look(images, target))
        loss = teacher.judge(output) + distributions.loss(target, 0.5) + sum(level.mean() for level in output)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        teacher.update(network)
    tensors = [*parameters, *teacher.average.state_dict().values(), *teacher.loss.state_dict().values()]
    states = torch.cat([tensor.detach().double().flatten() for tensor in tensors])
    others = [torch.empty_like(states) for _ in range(2)]
    dist.all_gather(others, states)
    assert torch.equal(*others)
    assert teacher.loss.gate.seen.any()  # also on the rank that saw no unlabelled voxel itself
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_one_rank_with_labels_only_and_one_without_any(tmp_path):
    mp.spawn(_distributed_step, args=(str(tmp_path),), nprocs=2, join=True)


def _shrink(plans):
    configuration = plans["configurations"]["3d_fullres"]
    configuration["patch_size"] = [16, 16, 16]
    configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8]


@pytest.fixture
def make(workspaces, tmp_path, monkeypatch):
    """Function (cls, semi, ignore, results) -> trainer of a small network on voxels labelled in part."""

    def build(cls, semi=None, ignore=True, results="results"):
        workspace = workspaces("ignore")
        for key, value in {**workspace.environment, "nnUNet_results": str(tmp_path / results)}.items():
            monkeypatch.setenv(key, value)
        plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
        plans["continue_training"] = False
        _shrink(plans)
        if semi is not None:
            plans["configurations"]["3d_fullres"]["imbal"] = {**cls.imbal, "semi": semi}
        dataset = json.loads((workspace.preprocessed / "dataset.json").read_text())
        if not ignore:
            del dataset["labels"]["ignore"]
        return cls(plans, "3d_fullres", 0, dataset, torch.device("cpu"))

    return build


def _equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in second)


def _end_then_die(trainer):
    type(trainer).on_epoch_end(trainer)
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.e2e
class TestTrainer:
    def test_data_without_an_ignore_label_are_refused(self, make):
        with pytest.raises(ConfigError, match=r"declares no ignore label.*add-unlabelled"):
            make(ImbalTrainerSemiSmoke, ignore=False)

    def test_both_terms_act_in_training_and_not_in_validation(self, make):
        trainer = make(ImbalTrainerSemiSCDLSmoke)
        trainer.on_train_start()
        trainer.on_train_epoch_start()
        before = copy.deepcopy(trainer._teacher.average.module.state_dict())
        assert _equal(before, trainer.network.state_dict())
        trainer.train_step(next(trainer.dataloader_train))
        trainer.train_step(next(trainer.dataloader_train))
        assert set(trainer.loss.values) == {"nnunet", "unlabelled", "scdl"}
        assert not _equal(before, trainer._teacher.average.module.state_dict())
        trainer.on_validation_epoch_start()
        with torch.no_grad():
            trainer.validation_step(next(trainer.dataloader_val))
        assert set(trainer.loss.values) == {"nnunet"}
        assert trainer._scdl._tap.features is None

    def test_resume_equals_an_uninterrupted_run(self, make, monkeypatch):
        torch.manual_seed(0)
        whole = make(ImbalTrainerSemiSCDLSeeded)
        whole.run_training()
        torch.manual_seed(0)
        killed = make(ImbalTrainerSemiSCDLSeeded, results="interrupted")
        monkeypatch.setattr(killed, "on_epoch_end", lambda: _end_then_die(killed))
        with pytest.raises(KeyboardInterrupt):
            killed.run_training()
        resumed = make(ImbalTrainerSemiSCDLSeeded, results="interrupted")
        maybe_load_checkpoint(resumed, True, False)
        assert resumed.current_epoch == 1
        resumed.run_training()
        losses = [trainer.logger.get_value("train_losses", step=None) for trainer in (resumed, whole)]
        np.testing.assert_array_equal(*losses)
        assert _equal(resumed.network.state_dict(), whole.network.state_dict())
        assert _equal(resumed._teacher.average.state_dict(), whole._teacher.average.state_dict())
        assert _equal(resumed._teacher.loss.state_dict(), whole._teacher.loss.state_dict())
        assert _equal(resumed._scdl.state_dict(), whole._scdl.state_dict())

    def test_the_teacher_predicts_if_asked_to(self, make):
        trainer = make(ImbalTrainerSemiSmoke, semi={"predict_with": "teacher", "decay": 0.9})
        trainer.run_training()
        final = Path(trainer.output_folder) / "checkpoint_final.pth"
        stored = torch.load(final, weights_only=False)
        teacher, student = trainer._teacher.average.module.state_dict(), trainer.network.state_dict()
        assert not _equal(teacher, student)
        assert _equal(stored["network_weights"], teacher)
        assert _equal(stored[OWN_STATE]["student"], student)
        other = make(ImbalTrainerSemiSmoke, semi={"predict_with": "teacher", "decay": 0.9})
        other.load_checkpoint(str(final))
        assert _equal(other.network.state_dict(), student)
        assert _equal(other._teacher.average.module.state_dict(), teacher)

    def test_without_checkpointing_nothing_is_written(self, make):
        trainer = make(ImbalTrainerSemiSmoke)
        trainer.initialize()
        trainer.disable_checkpointing = True
        trainer.save_checkpoint(str(Path(trainer.output_folder) / "checkpoint_latest.pth"))
        assert not list(Path(trainer.output_folder).glob("*.pth*"))

    def test_real_commands_on_regions(self, workspaces, tmp_path):
        workspace, trainer = workspaces("regions_ignore"), "ImbalTrainerSemiSCDLSmoke"
        plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
        _shrink(plans)
        (workspace.preprocessed / "SmallPlans.json").write_text(json.dumps({**plans, "plans_name": "SmallPlans"}))
        words = (workspace.dataset[7:10], "3d_fullres", "0", "-tr", trainer, "-p", "SmallPlans", "-device", "cpu")
        trained = workspace.run("nnUNetv2_train", *words)
        assert re.search(
            r"Loss: nnU-Net's own loss \+ 1 x consistency \+ 0.5 x pseudo-labels \+ 0.1 x SCDL", trained.stdout
        )
        losses = [float(value) for value in re.findall(r"(?:train|val)_loss (\S+)", trained.stdout)]
        assert len(losses) == 2
        assert np.isfinite(losses).all()
        model = workspace.folder / "results" / workspace.dataset / f"{trainer}__SmallPlans__3d_fullres"
        workspace.run("nnunet-imbal", "export", model, tmp_path / "exported")
        exported = torch.load(tmp_path / "exported" / "fold_0" / "checkpoint_final.pth", weights_only=True)
        assert OWN_STATE not in exported
        assert exported["trainer_name"] == "nnUNetTrainer"
        images = workspace.folder / "raw" / workspace.dataset / "imagesTs"
        words = ("-i", images, "-o", tmp_path / "out", "-m", tmp_path / "exported", "-f", "0", "-device", "cpu")
        workspace.run(
            "nnUNetv2_predict_from_modelfolder",
            *(*words, "-npp", "1", "-nps", "1", "--disable_tta", "--disable_progress_bar"),
            nnUNet_extTrainer="",
            NNUNET_IMBAL_AUTOREGISTER="0",
        )
        assert (tmp_path / "out" / "test0.nii.gz").exists()
