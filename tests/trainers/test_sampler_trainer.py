"""Balanced sampling inside nnU-Net: what stays stock, what changes, and that every mode of nnU-Net trains with it."""

import copy
import inspect
import json
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from nnunet_imbal.config import ImbalConfig, Sampling
from nnunet_imbal.sampling import find_instances, merge
from trainers import ImbalTrainer
from trainers._loader import InstanceBalancedLoader, PatchRecipe, dataset_index

sys.path.insert(0, str(Path(__file__).parent / "ext"))
from imbal_sampler_trainers import ImbalTrainerCCSamplerSmoke, ImbalTrainerSamplerSmoke
from imbal_smoke_trainers import ImbalTrainerSmoke

sys.path.pop(0)

# What nnU-Net and its libraries warn about is theirs; what our modules cause stays an error.
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.filterwarnings(r"error:::(trainers|nnunet_imbal|numba_kernels)\..*"),
]
LABELS = LabelManager({"background": 0, "a": 1, "b": 2}, None)


class Volumes:
    """A dataset in memory with nnU-Net's interface. The image is the position of each voxel, so crops tell all."""

    def __init__(self, maps):
        self.maps = maps
        self.identifiers = sorted(maps)

    def load_case(self, case):
        labels = self.maps[case][None]
        classes = sorted(set(np.unique(labels).tolist()) - {0})
        locations = DefaultPreprocessor._sample_foreground_locations(labels, classes)
        return np.stack(np.indices(labels.shape[1:])).astype(np.float32), labels, None, {"class_locations": locations}


def index_of(data, classes=(1, 2)):
    return merge([find_instances(data.maps[case], classes, case=case) for case in data.identifiers])


def make_loader(data, batch=2, patch=(8, 8, 8), initial=None, forced=0.33, labels=LABELS, recipe=None, **sampling):
    recipe = recipe or PatchRecipe(Sampling(**sampling), index_of(data), forced)
    return InstanceBalancedLoader(data, recipe, batch, initial or patch, patch, labels, forced)


@pytest.fixture
def volumes():
    """Three cases: a large organ and a lesion; a lesion at the border; nothing."""
    maps = {case: np.zeros((24, 20, 22), np.int8) for case in ("one", "two", "void")}
    maps["one"][2:14, 2:14, 2:14] = 1
    maps["one"][20, 15, 18] = 2
    maps["two"][22:24, 0:2, 21] = 2
    return Volumes(maps)


class TestLoader:
    def test_upstream_is_what_the_loader_was_written_for(self):
        source = inspect.getsource(nnUNetDataLoader.generate_train_batch)
        order = [
            source.index(words) for words in ("get_indices()", "get_do_oversample(j)", "load_case(i)", "get_bbox(")
        ]
        assert order == sorted(order), f"nnU-Net changed its loader: {source}"
        ours, theirs = (
            list(inspect.signature(cls.get_bbox).parameters) for cls in (InstanceBalancedLoader, nnUNetDataLoader)
        )
        assert ours == theirs

    @pytest.mark.parametrize("initial", [(8, 8, 8), (11, 12, 9)])
    def test_a_forced_patch_shows_its_whole_instance(self, volumes, initial):
        loader = make_loader(volumes, batch=4, forced=1.0, initial=initial, seed=0)
        margins = (np.array(initial) - 8) // 2
        middle = tuple(slice(m, m + 8) for m in margins)
        drawn = set()
        for _ in range(30):
            batch = next(loader)
            for labels, case, draw in zip(batch["target"], batch["keys"], loader._plan, strict=True):
                assert case == draw.case
                volume = loader.recipe.index.volumes[draw.instance]
                if volume < 100:  # the organ does not fit
                    assert (labels[0][middle] == draw.region[0]).sum() == volume
                assert (labels[0][middle] == draw.region[0]).any()
                drawn.add(draw.instance)
        assert drawn == {0, 1, 2}

    def test_random_patches_and_their_cases_are_nnunets(self, volumes):
        stock = nnUNetDataLoader(volumes, 3, (8, 8, 8), (8, 8, 8), LABELS, 0.0)
        ours = make_loader(volumes, batch=3, forced=0.0, seed=0)
        batches = []
        for loader in (stock, ours):
            np.random.seed(0)  # noqa: NPY002  # nnU-Net draws from it
            batches.append([next(loader) for _ in range(5)])
        for one, two in zip(*batches, strict=True):
            assert list(one["keys"]) == list(two["keys"])
            assert torch.equal(one["data"], two["data"])

    @pytest.mark.parametrize("batch", range(2, 9))
    def test_as_many_patches_are_forced_as_nnunet_forces(self, volumes, batch):
        loader = make_loader(volumes, batch=batch, seed=0)
        loader.get_indices()
        forced = [draw is not None for draw in loader._plan]
        assert forced == [loader._oversample_last_XX_percent(j) for j in range(batch)]

    @pytest.mark.parametrize(("batch", "coin"), [(1, False), (3, True)])
    def test_coins_at_batch_size_1_or_on_request(self, volumes, batch, coin):
        loader = make_loader(volumes, batch=batch, coin=coin, seed=0)
        forced = []
        for _ in range(3000 // batch):
            loader.get_indices()
            forced += [draw is not None for draw in loader._plan]
        assert abs(np.mean(forced) - 0.33) < 0.03  # 3.5 standard deviations
        stock = nnUNetDataLoader(volumes, 1, (8, 8, 8), (8, 8, 8), LABELS, 0.33)
        assert not stock._oversample_last_XX_percent(0)  # nnU-Net would never force a patch

    def test_2d_patches_lie_in_a_slice_of_the_instance(self, volumes):
        loader = make_loader(volumes, patch=(8, 8), forced=1.0, seed=0)
        for _ in range(20):
            batch = next(loader)
            assert batch["data"].shape == (2, 3, 8, 8)
            for labels, draw in zip(batch["target"], loader._plan, strict=True):
                assert (labels == draw.region[0]).any()

    def test_an_image_smaller_than_the_patch(self):
        labels = np.zeros((5, 30, 3), np.int8)
        labels[4, 29, 2] = 1
        loader = make_loader(Volumes({"thin": labels}), patch=(8, 8, 8), forced=1.0, seed=0)
        assert all((next(loader)["target"] == 1).sum() == 2 for _ in range(20))

    def test_ignore_label_leaves_random_patches_to_nnunet(self):
        labels = np.zeros((24, 24, 24), np.int8)
        labels[:, :12], labels[3, 20, 3] = 3, 1
        manager = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
        data = Volumes({"case": labels})
        load = data.load_case

        def load_with_annotated(case):
            image, seg, previous, properties = load(case)
            properties["class_locations"] = {1: [], (-1, 0, 1, 2): np.argwhere(seg != 3)}
            return image, seg, previous, properties

        data.load_case = load_with_annotated
        loader = make_loader(data, labels=manager, seed=0)
        for _ in range(10):
            random, forced = next(loader)["target"]
            assert (random != 3).any()
            assert (forced == 1).any()

    def test_repeated_cases(self, volumes):
        loader = make_loader(volumes, batch=8, forced=0.0, repeat_factor=1.0, seed=0)
        np.random.seed(0)  # noqa: NPY002  # nnU-Net draws from it
        keys = [key for _ in range(300) for key in loader.get_indices()]
        weights = np.array([3**0.5, 1.5**0.5, 1])  # one, two, void
        share = [keys.count(case) / len(keys) for case in volumes.identifiers]
        np.testing.assert_allclose(share, weights / weights.sum(), atol=0.04)

    @pytest.mark.parametrize("change", [{"rank": 1}, {"epoch": 3}, {"sampling": Sampling(seed=8)}])
    def test_seeds(self, volumes, change):
        recipe = PatchRecipe(Sampling(seed=7), index_of(volumes), 1.0)
        other = PatchRecipe(**{**recipe.__dict__, **change})
        draws = []
        for each in (recipe, recipe, other):
            loader = make_loader(volumes, batch=16, forced=1.0, recipe=each)
            loader.get_indices()
            draws.append(loader._plan)
        assert draws[0] == draws[1] != draws[2]

    def test_pickled_loaders_of_other_workers_draw_differently(self, volumes):
        loader = make_loader(volumes, batch=16, forced=1.0, seed=7)
        loader.get_indices()
        draws = []
        for worker in (0, 1):
            copied = pickle.loads(pickle.dumps(loader))
            copied.set_thread_id(worker)
            copied.get_indices()
            draws.append(copied._plan)
        assert draws[0] != draws[1]

    @pytest.mark.parametrize("seed", [None, 5])
    def test_background_workers_draw_differently(self, volumes, seed):
        loader = make_loader(volumes, forced=1.0, seed=seed)
        workers = NonDetMultiThreadedAugmenter(loader, None, 2, num_cached=2, seeds=None, wait_time=0.002)
        try:
            batches = [next(workers)["data"] for _ in range(6)]
        finally:
            workers._finish()
        assert len({batch.numpy().tobytes() for batch in batches}) == 6


class TestStockDefect:
    """One organ-sized component and sixty small ones of the same class: what nnU-Net's rule never shows, ours does."""

    @pytest.fixture(scope="class")
    def mixed(self):
        labels = np.zeros((150, 150, 150), np.int8)
        labels[:100, :100, :100] = 1
        corners = [(a, b, c) for a in (110, 118, 126, 134) for b in range(4, 144, 28) for c in (10, 60, 110)]
        for a, b, c in corners:
            labels[a : a + 3, b : b + 3, c : c + 3] = 1
        assert len(corners) == 60
        return Volumes({"case": labels})

    def test_nnunet_can_never_center_most_small_lesions(self, mixed):
        locations = mixed.load_case("case")[3]["class_locations"][1][:, 1:]
        small = locations[(locations >= 100).any(axis=1)]
        reachable = len({tuple(voxel // [8, 28, 50]) for voxel in small - [110, 4, 10]})
        assert 60 - reachable == pytest.approx(46, abs=8)  # expected 60 * 0.99^27 = 45.7, deviation 3.3
        assert len(small) / len(locations) < 0.004

    def test_ours_reaches_each_of_them(self, mixed):
        loader = make_loader(mixed, forced=1.0, batch=10, patch=(32, 32, 32), seed=0)
        draws = []
        for _ in range(400):
            loader.get_indices()
            draws += [draw.instance for draw in loader._plan]
        volumes = loader.recipe.index.volumes
        counts = np.bincount(draws, minlength=61)
        assert (counts[volumes == 27] > 0).all()
        assert np.mean(volumes[draws] == 27) == pytest.approx(0.5 * 60 / 61 + 0.5 * 60 * 27 / volumes.sum(), abs=0.03)


class Trainers:
    """Makes trainers on the tiny dataset, with results in a folder of the test."""

    def __init__(self, workspace):
        self.workspace = workspace

    def __call__(self, cls=ImbalTrainerSamplerSmoke, configuration="3d_fullres", change=None, **sampling):
        plans = json.loads((self.workspace.preprocessed / "nnUNetPlans.json").read_text())
        plans["continue_training"] = False
        if sampling:
            plans["configurations"][configuration]["imbal"] = {"terms": [], "sampling": sampling}
        if change is not None:
            change(plans["configurations"])
        dataset = json.loads((self.workspace.preprocessed / "dataset.json").read_text())
        return cls(copy.deepcopy(plans), configuration, 0, dataset, torch.device("cpu"))


@pytest.fixture
def make(in_process, tmp_path, monkeypatch):
    monkeypatch.setenv("nnUNet_results", str(tmp_path))
    return Trainers(in_process)


def losses_of(trainer):
    trainer.run_training()
    return trainer.logger.get_value("train_losses", step=None)


@pytest.mark.slow
@pytest.mark.e2e
class TestTrainer:
    def test_only_the_training_loader_is_ours(self, make):
        trainer = make(forced=0.66)
        trainer.initialize()
        training, validation = (loader.data_loader for loader in trainer.get_dataloaders())
        assert type(training) is InstanceBalancedLoader
        assert training.oversample_foreground_percent == 0.66
        assert type(validation) is nnUNetDataLoader
        assert validation.oversample_foreground_percent == 0.33

    def test_without_sampling_the_loader_is_nnunets(self, make):
        trainer = make(ImbalTrainerSmoke)
        trainer.initialize()
        assert [type(loader.data_loader) for loader in trainer.get_dataloaders()] == [nnUNetDataLoader] * 2

    def test_without_foreground_the_loader_is_nnunets(self, make):
        trainer = make(min_voxels=10**6)
        trainer.initialize()
        assert [type(loader.data_loader) for loader in trainer.get_dataloaders()] == [nnUNetDataLoader] * 2
        assert "No training case contains foreground" in Path(trainer.log_file).read_text()

    @pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
    def test_trains_and_keeps_the_instances(self, make, configuration):
        trainer = make(ImbalTrainerCCSamplerSmoke, configuration)
        assert np.isfinite(losses_of(trainer)).all()
        kept = make.workspace.preprocessed / "imbal_instances" / f"nnUNetPlans_{configuration}_fold_0.json"
        before = kept.stat().st_mtime_ns
        assert np.isfinite(losses_of(make(configuration=configuration))).all()
        assert kept.stat().st_mtime_ns == before

    def test_cascade_and_dummy_2d(self, make, in_process, tmp_path):
        def cascade(configurations):
            low, full = "3d_lowres", "3d_cascade_fullres"
            configurations[low] = {"inherits_from": "3d_fullres", "next_stage": full}
            patch = [8, 32, 32]  # so flat that nnU-Net rotates within slices only
            configurations[full] = {"inherits_from": "3d_fullres", "previous_stage": low, "patch_size": patch}

        previous = tmp_path / in_process.dataset / "ImbalTrainerSamplerSmoke__nnUNetPlans__3d_lowres"
        stage = previous / "predicted_next_stage" / "3d_cascade_fullres"
        stage.mkdir(parents=True)
        data = nnUNetDatasetBlosc2(str(in_process.preprocessed / "nnUNetPlans_3d_fullres"))
        for case in data.identifiers:
            nnUNetDatasetBlosc2.save_seg(np.asarray(data.load_case(case)[1][0]).clip(0), str(stage / case))
        trainer = make(configuration="3d_cascade_fullres", change=cascade)
        trainer.initialize()
        assert trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()[1]
        assert np.isfinite(losses_of(trainer)).all()

    @pytest.mark.parametrize("mode", ["labels", "regions_ignore"])
    def test_real_commands_with_background_workers(self, workspaces, mode):
        workspace = workspaces(mode)
        words = (workspace.dataset[7:10], "3d_fullres", "0", "-tr", "ImbalTrainerSamplerSmoke", "-device", "cpu")
        trained = workspace.run("nnUNetv2_train", *words, nnUNet_n_proc_DA="2")
        assert re.search(r"Sampling: nnU-Net's share of patches forced to an instance", trained.stdout)
        losses = [float(value) for value in re.findall(r"(?:train|val)_loss (\S+)", trained.stdout)]
        assert len(losses) == 2
        assert np.isfinite(losses).all()
        results = workspace.folder / "results" / workspace.dataset / "ImbalTrainerSamplerSmoke__nnUNetPlans__3d_fullres"
        stored = json.loads((results / "plans.json").read_text())["configurations"]["3d_fullres"]["imbal"]
        assert stored["sampling"]["instance_share"] == 0.5
        note = workspace.preprocessed / "imbal_instances" / "nnUNetPlans_3d_fullres_fold_0.json"
        classes = json.loads(note.read_text())["origin"]["classes"]
        assert classes == ([[1, 2], [2]] if "regions" in mode else [[1], [2]])


class Labels:
    """What `dataset_index` asks of a preprocessed dataset."""

    def __init__(self, folder):
        self.source_folder = str(folder)
        self.identifiers = ["a", "b"]

    def load_case(self, case):
        return None, np.load(Path(self.source_folder, f"{case}.npz"))["seg"], None, {}


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    data, words = Labels(f"{folder}/cases"), []
    index = dataset_index(data, LABELS, Path(folder, "kept", "index.npz"), 1, words.append)
    assert len(words) == (rank == 0)  # the other one only reads
    recipe = PatchRecipe(Sampling(seed=1), index, 1.0, rank)
    loader = InstanceBalancedLoader(data, recipe, 8, (4, 4, 4), (4, 4, 4), LABELS, 1.0)
    loader.get_indices()
    plans = [None, None]
    dist.all_gather_object(plans, loader._plan)
    assert plans[0] != plans[1]
    trainer = object.__new__(ImbalTrainer)
    trainer.is_ddp, trainer.oversample_foreground_percent = True, 0.33
    trainer.imbal_config = ImbalConfig(sampling=Sampling(forced=0.5))
    trainer.configuration_manager = SimpleNamespace(batch_size=4)
    trainer._set_batch_size_and_oversample()
    assert trainer.batch_size == 2
    assert trainer._forced == rank  # two of four patches, all on the second rank
    assert trainer.oversample_foreground_percent == rank / 2  # in validation one of four, as ever
    trainer.imbal_config = ImbalConfig(sampling=Sampling(forced=0.66, coin=True))
    trainer._set_batch_size_and_oversample()
    assert trainer._forced == 0.66  # each rank throws the same coin
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
def test_one_rank_finds_the_instances_and_each_draws_its_own(tmp_path):
    (tmp_path / "cases").mkdir()
    for case, seed in (("a", 0), ("b", 1)):
        labels = (np.random.default_rng(seed).random((1, 12, 12, 12)) < 0.02).astype(np.int8)
        np.savez(tmp_path / "cases" / f"{case}.npz", seg=labels)
    mp.spawn(_rank, args=(str(tmp_path),), nprocs=2, join=True)
