"""Unlabelled cases inside nnU-Net: found without reading much, in training only, a set share of each batch."""

import copy
import inspect
import json
import os
import pickle
import shutil
from fractions import Fraction

import numpy as np
import pytest
import SimpleITK as sitk
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.experiment_planning.dataset_fingerprint.fingerprint_extractor import DatasetFingerprintExtractor
from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import nn

from nnunet_imbal.config import ImbalConfig, Sampling
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.sampling import find_instances, merge
from trainers import ImbalTrainer, ImbalTrainerSemi
from trainers._adapter import ActiveTerm, ImbalLoss
from trainers._loader import PatchRecipe
from trainers._semi_loader import (
    SemiInstanceBalancedLoader,
    SemiLoader,
    forced_share,
    mix_patches,
    slot_chances,
    training_loader,
)
from trainers._unlabelled import counts_unlabelled, extend_splits, find_unlabelled, only_in_training

LABELS = LabelManager({"background": 0, "a": 1, "b": 2, "ignore": 3}, None)
REGIONS = LabelManager({"background": 0, "whole": [1, 2], "b": 2, "ignore": 3}, [1, 2])
CLASSES = [1, 2, [-1, 0, 1, 2]]


class Volumes:
    """A dataset in memory with nnU-Net's interface; the image is the number of the case."""

    def __init__(self, maps):
        self.maps = maps
        self.identifiers = sorted(case for case in maps if not case.startswith("u"))

    def load_case(self, case):
        labels = self.maps[case][None]
        locations = DefaultPreprocessor._sample_foreground_locations(labels, CLASSES)
        if case.startswith("u"):
            locations = None  # nobody may ask for them
        image = np.full(labels.shape, sorted(self.maps).index(case), np.float32)
        return image, labels, None, {"class_locations": locations}


@pytest.fixture
def volumes():
    """Two labelled cases with one small lesion each in a large background; two unlabelled ones."""
    maps = {case: np.zeros((20, 22, 24), np.int8) for case in ("one", "two")}
    maps["one"][10, 11, 12] = 1
    maps["two"][10, 11, 12] = 2
    maps |= {case: np.full((20, 22, 24), 3, np.int8) for case in ("u1", "u2")}
    return Volumes(maps)


def make_loader(data, share=0.5, batch=2, patch=(4, 4, 4), labels=LABELS, balanced=False, forced=0.33, transforms=None):
    ignore = None if labels.has_regions else 3
    mix = mix_patches(("u1", "u2"), share, batch, 0, 1, forced_share(forced, batch, False), ignore)
    index = merge([find_instances(data.maps[case], [1, 2], case=case) for case in data.identifiers])
    recipe = PatchRecipe(Sampling(), index, forced) if balanced else None
    words = {"oversample_foreground_percent": forced, "probabilistic_oversampling": False, "transforms": transforms}
    return training_loader(data, recipe, mix, batch, patch, patch, labels, **words)


class TestBatches:
    @pytest.mark.parametrize("balanced", [False, True])
    def test_one_labelled_and_one_unlabelled(self, volumes, balanced):
        loader = make_loader(volumes, balanced=balanced)
        assert type(loader) is (SemiInstanceBalancedLoader if balanced else SemiLoader)
        drawn = set()
        for _ in range(60):
            batch = next(loader)
            drawn |= set(batch["keys"])
            unlabelled, labelled = batch["keys"]
            assert unlabelled in {"u1", "u2"}
            assert labelled in {"one", "two"}
            for image, case in zip(batch["data"], batch["keys"], strict=True):
                assert (image == sorted(volumes.maps).index(case)).any()
            assert (batch["target"][0] == 3).all()
            assert not (batch["target"][1] == 3).any()
        assert drawn == set(volumes.maps)

    @pytest.mark.parametrize("balanced", [False, True])
    def test_labelled_patches_are_forced_as_often_as_before(self, volumes, balanced):
        loader, forced = make_loader(volumes, balanced=balanced), []
        for _ in range(3000):
            loader.get_indices()
            forced.append([loader.get_do_oversample(row) for row in range(2)])
        unlabelled, labelled = np.mean(forced, axis=0)
        assert unlabelled == 0
        assert labelled == pytest.approx(0.5, abs=0.035)  # nnU-Net rounds 0.33 to one of two; 3.8 standard deviations

    @pytest.mark.parametrize(
        ("share", "batch", "expected"), [(0.25, 2, 0.25), (0.5, 3, 0.5), (0.9, 4, 0.75), (0.3, 1, 0.3)]
    )
    def test_share(self, volumes, share, batch, expected):
        loader = make_loader(volumes, share=share, batch=batch, patch=(2, 2, 2))
        rows = np.array([[key.startswith("u") for key in loader.get_indices()] for _ in range(2000)])
        assert rows.mean() == pytest.approx(expected, abs=0.04)
        assert (np.diff(rows.astype(int), axis=1) <= 0).all()  # unlabelled ones first
        assert batch == 1 or not rows.all(axis=1).any()

    def test_unlabelled_patches_lie_anywhere(self, volumes):
        loader, places = make_loader(volumes), set()
        loader._anywhere = True
        for _ in range(300):
            begin, end = loader.get_bbox((20, 22, 24), False, None)
            assert [b - a for a, b in zip(begin, end, strict=True)] == [4, 4, 4]
            places.add(tuple(begin))
        assert (np.ptp(list(places), axis=0) >= [14, 15, 17]).all()  # of 16, 18 and 20
        assert loader.has_ignore

    def test_ignored_at_every_resolution_and_where_the_patch_sticks_out(self, volumes):
        def two_levels(image, segmentation):
            segmentation = segmentation.where(segmentation >= 0, 0)  # nnU-Net makes background of the padding
            return {"image": image, "segmentation": [segmentation, segmentation[:, ::2, ::2, ::2]]}

        loader = make_loader(volumes, patch=(24, 24, 24), transforms=two_levels)
        for level in next(loader)["target"]:
            assert (level[0] == 3).all()
            assert not (level[1] == 3).any()

    def test_regions(self, volumes):
        def regions(image, segmentation):
            channels = [torch.isin(segmentation[0], torch.tensor(values)) for values in ([1, 2], [2], [3])]
            return {"image": image, "segmentation": torch.stack(channels)}

        target = next(make_loader(volumes, labels=REGIONS, transforms=regions))["target"]
        assert target.dtype == torch.bool
        assert target[0].flatten(1).all(1).tolist() == [False, False, True]
        assert not target[0, :2].any()
        assert not target[1, 2].any()

    def test_2d(self, volumes):
        batch = next(make_loader(volumes, patch=(4, 4)))
        assert batch["target"].shape == (2, 1, 4, 4)
        assert (batch["target"][0] == 3).all()

    @pytest.mark.filterwarnings("ignore")  # of a worker that is stopped
    def test_survives_pickling_and_background_workers(self, volumes):
        loader = pickle.loads(pickle.dumps(make_loader(volumes, balanced=True)))
        workers = NonDetMultiThreadedAugmenter(loader, None, 2, num_cached=2, seeds=None, wait_time=0.002)
        try:
            batches = [next(workers) for _ in range(6)]
        finally:
            workers._finish()
        assert all((batch["target"][0] == 3).all() for batch in batches)

    @pytest.mark.parametrize("balanced", [False, True])
    def test_without_unlabelled_cases_nothing_changes(self, volumes, balanced):
        recipe = PatchRecipe(Sampling(), merge([find_instances(volumes.maps["one"], [1, 2], case="one")]), 0.33)
        loader = training_loader(volumes, recipe if balanced else None, None, 2, (4, 4, 4), (4, 4, 4), LABELS, 0.33)
        assert not isinstance(loader, SemiLoader)

    def test_upstream_is_what_the_loader_was_written_for(self):
        ours, theirs = (list(inspect.signature(cls.get_bbox).parameters) for cls in (SemiLoader, nnUNetDataLoader))
        assert ours == theirs
        source = inspect.getsource(nnUNetDataLoader.generate_train_batch)
        assert "return {'data': data_all, 'target': seg_all, 'keys': selected_keys}" in source


class TestChances:
    @given(st.fractions(0, Fraction(9, 10), max_denominator=20), st.integers(1, 12), st.integers(1, 4))
    def test_against_a_naive_deal(self, share, batch, ranks):
        """Deal unlabelled patches one by one to the ranks in turn; the last one may be a fraction."""
        ranks = min(ranks, batch)
        sizes = [len(range(rank, batch, ranks)) for rank in range(ranks)]
        expected, left = [[0.0] * size for size in sizes], share * batch
        if batch > 1:
            left = min(left, batch - 1)
        for turn in range(max(sizes)):
            for rank, size in enumerate(sizes):
                if turn < size:
                    keeps_one = size > 1 and turn == size - 1
                    expected[rank][turn] = 0.0 if keeps_one else float(min(left, 1))
                    left = max(left - 1, 0)
        found = [slot_chances(float(share), batch, rank, ranks) for rank in range(ranks)]
        for mine, theirs in zip(found, expected, strict=True):
            assert mine == pytest.approx(theirs)

    @pytest.mark.parametrize(("batch", "ranks"), [(2, 2), (4, 2), (3, 2), (5, 3)])
    def test_the_mean_over_ranks_is_the_mean_over_labelled_patches(self, batch, ranks):
        """Two gradients per rank, as DDP averages them, against one process with the whole batch."""
        rng = np.random.default_rng(0)
        mixes = [mix_patches(("u",), 0.5, batch, rank, ranks, 0.5, 3) for rank in range(ranks)]
        totals, over_ranks = [], []
        for _ in range(4000):
            values, weighted = [], []
            for mix in mixes:
                labelled = [rng.normal(1) for chance in mix.chances if rng.random() >= chance]
                values += labelled
                weighted.append(mix.weight(len(mix.chances) - len(labelled)) * np.mean(labelled or [0]))
            totals.append(np.mean(values))
            over_ranks.append(np.mean(weighted))
        assert np.mean(over_ranks) == pytest.approx(np.mean(totals), abs=0.06)
        if batch % 2 == 0:  # no chance in how many patches are labelled
            np.testing.assert_allclose(over_ranks, totals)

    def test_in_one_process_the_loss_is_not_weighted(self):
        assert [mix_patches(("u",), 0.25, 2, 0, 1, 0.5, 3).weight(n) for n in (0, 1)] == [1.0, 1.0]

    @pytest.mark.parametrize("batch", range(1, 9))
    @pytest.mark.parametrize("forced", [0.0, 0.33, 0.5, 1.0])
    def test_forced_share_is_what_nnunet_does(self, volumes, batch, forced):
        stock = nnUNetDataLoader(volumes, batch, (4, 4, 4), (4, 4, 4), LABELS, forced)
        rounded = np.mean([stock.get_do_oversample(j) for j in range(batch)])
        assert forced_share(forced, batch, False) == pytest.approx(rounded)
        assert forced_share(forced, batch, True) == forced


def preprocessed(folder, maps):
    """Cases as nnU-Net writes them."""
    folder.mkdir(parents=True)
    for case, labels in maps.items():
        properties = {"class_locations": DefaultPreprocessor._sample_foreground_locations(labels[None], CLASSES)}
        words = {"chunks": (1, 8, 8, 8), "blocks": (1, 8, 8, 8)}
        image = np.zeros((1, *labels.shape), np.float32)
        nnUNetDatasetBlosc2.save_case(image, labels[None].astype(np.int16), properties, str(folder / case), **words)
    return nnUNetDatasetBlosc2(str(folder))


@pytest.fixture
def cases(tmp_path):
    maps = {
        case: np.full((24, 24, 24), value, np.int8)
        for case, value in [("healthy", 0), ("lesion", 0), ("slab", 3), ("all", 3), ("brain", 3), ("stray", 3)]
    }
    maps["lesion"][4, 4, 4] = 1
    maps["slab"][:2] = 0
    maps["brain"][:, :, :6] = -1
    maps["stray"][:, :, :6] = -1
    maps["stray"][3, 4, 6] = 0
    return preprocessed(tmp_path / "plans", maps)


class TestFind:
    def test_which(self, cases, tmp_path):
        assert find_unlabelled(cases, LABELS, tmp_path / "kept" / "x.json") == {"all", "brain", "stray"}

    def test_without_an_ignore_label(self, cases, tmp_path):
        manager = LabelManager({"background": 0, "a": 1, "b": 2}, None)
        assert find_unlabelled(cases, manager, tmp_path / "kept" / "x.json") == frozenset()

    def test_nothing_is_read_twice_unless_it_changed(self, cases, tmp_path, monkeypatch):
        path, read = tmp_path / "kept" / "x.json", []
        load = cases.load_case
        monkeypatch.setattr(cases, "load_case", lambda case: read.append(case) or load(case))
        first = find_unlabelled(cases, LABELS, path)
        assert sorted(read) == sorted(cases.identifiers)
        read.clear()
        assert find_unlabelled(cases, LABELS, path) == first
        assert read == []
        os.utime(tmp_path / "plans" / "slab_seg.b2nd", (1, 1))
        assert find_unlabelled(cases, LABELS, path) == first
        assert read == ["slab"]

    def test_only_label_maps_without_foreground_are_read(self, cases, tmp_path, monkeypatch):
        load = cases.load_case

        def guarded(case):
            image, labels, previous, properties = load(case)
            return image, None if case in {"lesion", "all"} else labels, previous, properties

        monkeypatch.setattr(cases, "load_case", guarded)
        assert "all" in find_unlabelled(cases, LABELS, tmp_path / "kept" / "x.json")

    @pytest.mark.parametrize("content", ["", "[1]", '{"all": 3}', '{"all": []}'])
    def test_a_damaged_note_is_made_again(self, cases, tmp_path, content):
        path = tmp_path / "x.json"
        path.write_text(content)
        assert find_unlabelled(cases, LABELS, path) == {"all", "brain", "stray"}
        assert json.loads(path.read_text())["all"][-1] is True

    def test_a_folder_that_cannot_be_written(self, cases, tmp_path):
        (tmp_path / "file").write_text("")
        assert "all" in find_unlabelled(cases, LABELS, tmp_path / "file" / "x.json")


class TestFolds:
    def test_new_ones(self, tmp_path):
        path, labelled, unlabelled = tmp_path / "splits_final.json", [f"c{n}" for n in range(7)], {"u1", "u2"}
        extend_splits(path, [*labelled, *unlabelled], unlabelled)
        splits = json.loads(path.read_text())
        assert len(splits) == 5
        assert sorted(case for fold in splits for case in fold["val"]) == labelled
        for fold in splits:
            assert sorted([*fold["train"], *fold["val"]]) == [*labelled, "u1", "u2"]
            assert not unlabelled & set(fold["val"])

    def test_as_many_folds_as_labelled_cases(self, tmp_path):
        extend_splits(tmp_path / "s.json", ["a", "b", "u"], {"u"})
        assert sorted(fold["val"] for fold in json.loads((tmp_path / "s.json").read_text())) == [["a"], ["b"]]
        with pytest.raises(ConfigError, match="1 labelled case: folds need two"):
            extend_splits(tmp_path / "t.json", ["a", "u"], {"u"})

    def test_those_that_are_there_are_kept(self, tmp_path):
        path = tmp_path / "splits_final.json"
        path.write_text(json.dumps([{"train": ["b", "a"], "val": ["c", "u1"]}, {"train": ["u1", "c"], "val": ["a"]}]))
        for _ in range(2):
            extend_splits(path, ["a", "b", "c", "u1", "u2"], {"u1", "u2"})
            first, second = json.loads(path.read_text())
            assert first == {"train": ["b", "a", "u1", "u2"], "val": ["c"]}
            assert second == {"train": ["u1", "c", "u2"], "val": ["a"]}

    def test_only_in_training(self):
        assert only_in_training(["a"], ["b", "u"], {"u"}) == (["a", "u"], ["b"])
        assert only_in_training(["a", "u"], ["a", "u"], {"u"}) == (["a", "u"], ["a"])  # fold all
        for training, validation in ((["a"], ["u"]), (["u"], ["a"])):
            with pytest.raises(ConfigError, match="needs a labelled case to train with and one to validate with"):
                only_in_training(training, validation, {"u"})


class TestLoss:
    """nnU-Net's Dice takes a patch without labels for a perfect one: left out, the others count in full."""

    @pytest.fixture
    def parts(self):
        torch.manual_seed(0)
        logits = torch.randn(2, 3, 6, 6, 6)
        labels = torch.randint(0, 3, (2, 1, 6, 6, 6)).float()
        labels[0] = 3
        return logits, labels

    def host(self):
        from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
        from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
        from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

        options = {"batch_dice": False, "smooth": 1e-5, "do_bg": False, "ddp": False}
        loss = DC_and_CE_loss(
            options, {}, weight_ce=1, weight_dice=1, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss
        )
        return DeepSupervisionWrapper(loss, (0.7, 0.3))

    def gradient(self, loss, logits, labels, rows=0):
        logits = logits.clone().requires_grad_()
        with loss.leaving_out(rows):
            value = loss([logits, logits[..., ::2, ::2, ::2]], [labels, labels[..., ::2, ::2, ::2]])
        value.backward()
        return value.item(), logits.grad

    def test_equals_the_loss_of_the_labelled_patches_alone(self, parts):
        from nnunet_imbal.registry import build_loss

        logits, labels = parts
        term = ActiveTerm("cc_dice", 0.5, 0, 0, build_loss("cc_dice", softmax=True, to_onehot_y=True))
        loss = ImbalLoss(self.host(), [term], LabelSpec(ignore_label=3))
        value, gradient = self.gradient(loss, logits, labels, rows=1)
        alone, gradient_alone = self.gradient(loss, logits[1:], labels[1:])
        assert value == pytest.approx(alone)
        torch.testing.assert_close(gradient[1:], gradient_alone)
        assert not gradient[0].any()
        assert self.gradient(loss, logits, labels)[0] != pytest.approx(alone)  # what stock nnU-Net does

    def test_a_batch_without_labels(self, parts):
        logits, labels = parts
        value, gradient = self.gradient(
            ImbalLoss(self.host(), [], LabelSpec(ignore_label=3)), logits, 0 * labels + 3, 2
        )
        assert np.isfinite(value)
        assert not gradient.any()

    def test_weight(self, parts):
        logits, labels = parts
        loss = ImbalLoss(self.host(), [], LabelSpec(ignore_label=3))
        with loss.leaving_out(1, 2.0):
            double = loss([logits, logits], [labels, labels])
        with loss.leaving_out(1):
            torch.testing.assert_close(double, 2 * loss([logits, logits], [labels, labels]))
        assert isinstance(loss.host, nn.Module)


def _gradient(batch_dice, rows, ranks=1):
    """Of a network on rows of a batch with one unlabelled and one labelled patch, as in a step of ImbalTrainer."""
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    torch.manual_seed(0)
    network = nn.Conv3d(1, 3, 3, padding=1)
    images, labels = torch.randn(2, 1, 8, 8, 8), torch.randint(0, 3, (2, 1, 8, 8, 8)).float()
    labels[0] = 3
    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": ranks > 1}
    host = DC_and_CE_loss(options, {}, ignore_label=3, dice_class=MemoryEfficientSoftDiceLoss)
    loss = ImbalLoss(host, [], LabelSpec(ignore_label=3))
    mix = mix_patches(("u",), 0.5, 2, rows.start if ranks > 1 else 0, ranks, 0.5, 3)
    unlabelled = sum(row == 0 for row in rows)
    model = nn.parallel.DistributedDataParallel(network) if ranks > 1 else network
    with loss.leaving_out(unlabelled, mix.weight(unlabelled)):
        loss(model(images[rows.start : rows.stop]), labels[rows.start : rows.stop]).backward()
    return network.weight.grad


def _rank(rank, folder, batch_dice):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    gradient = _gradient(batch_dice, range(rank, rank + 1), ranks=2)
    torch.testing.assert_close(gradient, _gradient(batch_dice, range(2)))
    assert gradient.any()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.ddp
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_dice", [False, True])
def test_two_ranks_with_one_patch_each_equal_one_process_with_two(tmp_path, batch_dice):
    mp.spawn(_rank, args=(str(tmp_path), batch_dice), nprocs=2, join=True)


class TestConfig:
    def test_share(self):
        assert ImbalConfig.from_dict({"terms": []}).unlabelled_share == 0
        assert ImbalConfig.from_dict({"terms": [], "semi": {}}).unlabelled_share == 0.5
        config = ImbalConfig.from_dict({"terms": [], "semi": {}, "unlabelled_share": 0.25})
        assert ImbalConfig.from_dict(config.to_dict()) == config
        with pytest.raises(ConfigError, match=r"unlabelled_share must be a finite number from 0 to 0\.9, got 1"):
            ImbalConfig.from_dict({"unlabelled_share": 1})


class TestStockNnunet:
    """What breaks without `extract-fingerprint` and with a label map that is ``ignore`` in the air, too."""

    def test_the_fingerprint_takes_ignored_voxels_for_foreground(self):
        image = np.zeros((1, 8, 8, 8), np.float32)
        image[:, 2:6, 2:6, 2:6] = 100
        intensities, _ = DatasetFingerprintExtractor.collect_foreground_intensities(np.full(image.shape, 3), image)
        assert np.mean(intensities[0]) == pytest.approx(100 / 8, rel=0.1)

    def test_voxels_to_ignore_in_the_air_would_be_normalised_as_tissue(self):
        image, labels = np.zeros((1, 8, 8, 8), np.float32), np.full((1, 8, 8, 8), 3, np.int8)
        image[:, 2:6, 2:6, 2:6], image[:, 0, 0, 0], image[:, 7, 7, 7] = 100, 1, 1
        ours = np.where(image != 0, 3, 0).astype(np.int8)
        everywhere, inside = (crop_to_nonzero(image.copy(), seg)[1] >= 0 for seg in (labels, ours))
        assert everywhere.all()
        np.testing.assert_array_equal(inside, image != 0)

    def test_a_spoilt_fingerprint_is_noticed(self, tmp_path):
        path = tmp_path / "dataset_fingerprint.json"
        assert not counts_unlabelled(path, 5, {"u"})
        path.write_text(json.dumps({"spacings": [[1, 1, 1]] * 5}))
        assert counts_unlabelled(path, 5, {"u"})
        assert not counts_unlabelled(path, 6, {"u"})
        assert not counts_unlabelled(path, 5, set())


@pytest.fixture(scope="module")
def workspace(workspaces, tmp_path_factory):
    labelled = workspaces("labels")
    workspace = type(labelled)(tmp_path_factory.mktemp("unlabelled"), "Dataset510_Semi")
    raw, pool = workspace.folder / "raw" / workspace.dataset, workspace.folder / "pool"
    shutil.copytree(labelled.folder / "raw" / labelled.dataset, raw)
    pool.mkdir()
    rng = np.random.default_rng(3)
    for number in range(2):
        image = sitk.ReadImage(str(raw / "imagesTr" / f"case{number}_0000.nii.gz"))
        other = sitk.GetImageFromArray(sitk.GetArrayFromImage(image)[::-1] + rng.normal(50, 5, (32, 32, 32)))
        other.CopyInformation(image)
        sitk.WriteImage(sitk.Cast(other, sitk.sitkFloat32), str(pool / f"new{number}.nii.gz"))
    workspace.run("nnunet-imbal", "add-unlabelled", raw, pool)
    workspace.run("nnunet-imbal", "extract-fingerprint", raw)
    words = ("-d", "510", "-c", "3d_fullres", "-np", "1", "-npfp", "1", "--verify_dataset_integrity")
    workspace.run("nnUNetv2_plan_and_preprocess", *words, nnUNet_n_proc_DA="1")
    workspace.shrink_networks()
    return workspace


@pytest.mark.slow
@pytest.mark.e2e
class TestCommands:
    """Add, plan, preprocess, train, predict: nnU-Net's own commands on a tiny dataset with unlabelled cases."""

    def test_plans_are_those_of_the_labelled_cases(self, workspace, workspaces):
        labelled = workspaces("labels")
        names = ("dataset_fingerprint.json", "nnUNetPlans.json")
        (ours, plans), (theirs, stock) = (
            [json.loads((each.preprocessed / name).read_text()) for name in names] for each in (workspace, labelled)
        )
        assert ours == theirs
        assert plans["configurations"]["3d_fullres"] == stock["configurations"]["3d_fullres"]

    @pytest.mark.parametrize("workers", [0, 2])
    def test_train_resume_and_export(self, workspace, tmp_path, workers):
        environment = {"nnUNet_n_proc_DA": str(workers), "nnUNet_results": str(tmp_path / "results")}
        plans = json.loads((workspace.preprocessed / "nnUNetPlans.json").read_text())
        imbal = {"terms": [{"loss": "cc_dice"}], "unlabelled_share": 0.5, "sampling": {} if workers else None}
        plans["configurations"]["3d_semi"] = {"inherits_from": "3d_fullres", "imbal": imbal}
        plans["plans_name"] = "SemiPlans"
        (workspace.preprocessed / "SemiPlans.json").write_text(json.dumps(plans))
        words = ("510", "3d_semi", "0", "-tr", "ImbalTrainerSmoke", "-p", "SemiPlans", "-device", "cpu")
        trained = workspace.run("nnUNetv2_train", *words, **environment)
        assert "Unlabelled: 2 cases, 0.5 of the training patches" in trained.stdout
        assert "WARNING" not in trained.stdout
        splits = json.loads((workspace.preprocessed / "splits_final.json").read_text())
        assert len(splits) == 5
        for fold in splits:
            assert {"new0", "new1"} <= set(fold["train"])
            assert not {"new0", "new1"} & set(fold["val"])
        model = tmp_path / "results" / workspace.dataset / "ImbalTrainerSmoke__SemiPlans__3d_semi"
        validated = {path.name.split(".")[0] for path in (model / "fold_0" / "validation").glob("*.nii.gz")}
        assert validated == set(splits[0]["val"])
        if workers:
            return
        workspace.run("nnUNetv2_train", *words, "--c", **environment)
        workspace.run("nnunet-imbal", "export", model, tmp_path / "exported")
        assert (tmp_path / "exported" / "fold_0" / "checkpoint_final.pth").is_file()

    @pytest.mark.filterwarnings("ignore")
    def test_without_a_share_they_are_left_out(self, workspace, tmp_path, monkeypatch):
        for key, value in {**workspace.environment, "nnUNet_results": str(tmp_path)}.items():
            monkeypatch.setenv(key, value)
        plans, dataset = (
            json.loads((workspace.preprocessed / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
        )
        trainer = ImbalTrainer({**plans, "continue_training": False}, "3d_fullres", "all", dataset, torch.device("cpu"))
        trainer.initialize()
        loaders = [loader.data_loader for loader in trainer.get_dataloaders()]
        assert [type(loader) for loader in loaders] == [nnUNetDataLoader] * 2
        training, validation = (loader.indices for loader in loaders)
        assert training == [f"case{number}" for number in range(6)]
        assert sorted(validation) == training
        with open(trainer.log_file) as log:
            assert "Unlabelled: 2 cases, left out because unlabelled_share is 0" in log.read()

    @pytest.mark.filterwarnings("ignore")
    def test_label_proportion(self, workspace, tmp_path, monkeypatch):
        for key, value in {**workspace.environment, "nnUNet_results": str(tmp_path)}.items():
            monkeypatch.setenv(key, value)
        plans, dataset = (
            json.loads((workspace.preprocessed / name).read_text()) for name in ("nnUNetPlans.json", "dataset.json")
        )
        configuration = plans["configurations"]["3d_fullres"]
        configuration["patch_size"] = [16, 16, 16]
        configuration["architecture"]["arch_kwargs"]["features_per_stage"] = [4, 8, 8, 8]
        configuration["imbal"] = {"terms": [], "semi": {"proportion": 0.1, "ramp": 0.0}}
        plans["continue_training"] = False
        first, second = (
            ImbalTrainerSemi(copy.deepcopy(plans), "3d_fullres", "all", dataset, torch.device("cpu")) for _ in range(2)
        )
        first.on_train_start()
        first.on_train_epoch_start()
        first.train_step(next(first.dataloader_train))
        assert set(first.loss.values) == {"nnunet", "unlabelled", "proportion"}
        with open(first.log_file) as log:
            assert "Label proportion: in 500 patches the channels fill" in log.read()
        first.save_checkpoint(str(tmp_path / "checkpoint.pth"))
        second.load_checkpoint(str(tmp_path / "checkpoint.pth"))
        states = [each._proportion.state_dict() for each in (first, second)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
