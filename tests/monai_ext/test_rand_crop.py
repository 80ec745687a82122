"""RandCropByInstances keeps MONAI's conventions for random crops, and shows small instances."""

import multiprocessing

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, MetaTensor, list_data_collate
from monai.transforms import Compose, RandCropByPosNegLabeld, RandFlipd
from monai.utils import set_determinism
from scipy import stats

import monai_ext.sampling
from monai_ext.sampling import RandCropByInstances, RandCropByInstancesd
from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.sampling import find_instances


@pytest.fixture
def label():
    """A cube of 1000 voxels, a lesion of one voxel at the border, and another class."""
    made = torch.zeros(1, 30, 32, 34)
    made[0, 2:12, 2:12, 2:12] = 1
    made[0, 29, 31, 33] = 1
    made[0, 20:22, 5:7, 30:32] = 2
    return made


def image_of(label):
    """The image is the position of each voxel, so a crop tells where it was."""
    return MetaTensor(
        np.stack(np.indices(label.shape[1:])).astype(np.float32), torch.diag(torch.tensor([1.0, 2, 3, 1]))
    )


def test_shares_of_classes_and_instances(label):
    crop = RandCropByInstances((6, 6, 6), num_samples=2000, forced=1.0).set_random_state(0)
    crop.randomize(label)
    box = [tuple(slice(at - 3, at + 3) for at in center) for center in crop.centers]
    shown = [label[0][each] for each in box]
    lesion = sum(patch[-1, -1, -1].item() == 1 and (patch == 1).sum().item() == 1 for patch in shown)
    other = sum((patch == 2).any().item() for patch in shown)
    organ = len(shown) - lesion - other
    of_lesion = 0.5 * (0.5 * 1 / 1001 + 0.5 / 2)
    assert stats.chisquare([lesion, other, organ], np.array([of_lesion, 0.5, 0.5 - of_lesion]) * 2000).pvalue > 0.001


def test_random_crops_are_uniform_and_forced_ones_as_many_as_asked(label):
    crop = RandCropByInstances((29, 6, 6), num_samples=1000, forced=0.0).set_random_state(0)
    crop.randomize(label)
    first = np.bincount([center[0] - 14 for center in crop.centers])
    assert stats.chisquare(first).pvalue > 0.001
    point = torch.zeros(1, 64, 64)
    point[0, 50, 50] = 1
    crop = RandCropByInstances((4, 4), num_samples=1000, forced=0.3).set_random_state(0)
    shown = np.mean([patch.any().item() for patch in crop(point, point)])
    assert shown == pytest.approx(0.3 + 0.7 * (4 / 61) ** 2, abs=0.05)


def test_metadata_shapes_and_places_are_monais(label):
    item = {"image": image_of(label), "label": MetaTensor(label), "name": ["kept"]}
    ours = RandCropByInstancesd(["image", "label"], "label", (8, 40, -1), 3, allow_smaller=True).set_random_state(0)
    theirs = RandCropByPosNegLabeld(["image", "label"], "label", (8, 40, -1), num_samples=3, allow_smaller=True)
    for number, (one, two) in enumerate(zip(ours(item), theirs(item), strict=True)):
        assert list(one) == list(two)
        for key in ("image", "label"):
            assert one[key].shape == two[key].shape == (item[key].shape[0], 8, 32, 34)
            assert type(one[key]) is MetaTensor
            assert set(one[key].meta) == set(two[key].meta)
            assert one[key].meta["patch_index"] == number
        corner = one["image"][:, 0, 0, 0]
        expected = torch.tensor([1.0, 2, 3], dtype=torch.float64) * corner
        torch.testing.assert_close(one["image"].affine[:3, 3], expected)  # the crop knows where it came from
        assert corner[0] == one["image"].meta["crop_center"][0] - 4
        box = tuple(slice(int(at), int(at) + side) for at, side in zip(corner, (8, 32, 34), strict=True))
        assert torch.equal(one["label"][0].as_tensor(), label[0][box])
        assert one["name"] == ["kept"]
        assert one["name"] is not item["name"]
    assert item["image"].shape == (3, *label.shape[1:])


def test_instances_found_before_give_the_same_crops(label):
    crop = RandCropByInstancesd(["label"], "label", (6, 6, 6), 5, instances_key="found", classes=[1, 2])
    found = find_instances(label[0].numpy(), [1, 2])
    with_index, without = (crop.set_random_state(3)({"label": label, **more}) for more in ({"found": found}, {}))
    for one, two in zip(with_index, without, strict=True):
        assert torch.equal(one["label"], two["label"])
        assert list(one) == ["label"]


def test_same_seed_same_crops(label):
    crop = RandCropByInstances((6, 6, 6), label=label, num_samples=6)
    runs = [torch.stack(crop.set_random_state(seed)(image_of(label))) for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    again = torch.stack(crop(image_of(label), randomize=False))
    assert torch.equal(again, runs[2])


def test_without_foreground_the_crops_are_random():
    empty = torch.zeros(1, 9, 9)
    assert [patch.shape for patch in RandCropByInstances((4, 4), num_samples=2, forced=1.0)(empty, empty)] == [
        (1, 4, 4)
    ] * 2


def test_arrays_and_an_image_smaller_than_the_crop(label):
    patches = RandCropByInstances((6, 6, 6), forced=1.0)(label.numpy(), label.numpy())
    assert patches[0].shape == (1, 6, 6, 6)
    with pytest.raises(ValueError, match="larger than the image size"):
        RandCropByInstances((6, 6, 60))(label, label)


@pytest.mark.parametrize(
    ("error", "options", "bad", "message"),
    [
        (ConfigError, {"forced": 1.5}, None, "forced is a probability"),
        (ConfigError, {"num_samples": 0}, None, "at least 1"),
        (ConfigError, {"instance_share": 2}, torch.ones(1, 8, 8), "instance_share"),
        (LabelError, {}, torch.ones(2, 8, 8), "1 channel"),
        (LabelError, {}, torch.full((1, 8, 8), 0.5), "whole numbers"),
        (ValueError, {}, None, "a label is needed"),
    ],
)
def test_wrong_use(error, options, bad, message):
    with pytest.raises(error, match=message):
        RandCropByInstances((4, 4), **options)(torch.ones(1, 8, 8), bad)


def test_compose_cache_collate_and_workers(label):
    items = [{"image": image_of(label), "label": MetaTensor(label)} for _ in range(2)]
    steps = Compose([RandCropByInstancesd(["image", "label"], "label", (6, 6, 6), 2), RandFlipd("image", 0.5)])
    context = multiprocessing.get_context("fork")
    loader = DataLoader(
        CacheDataset(items, steps, progress=False),
        batch_size=2,
        num_workers=2,
        collate_fn=list_data_collate,
        multiprocessing_context=context,
    )
    set_determinism(0)
    try:
        (batch,) = loader
    finally:
        set_determinism(None)
    assert batch["image"].shape == (4, 3, 6, 6, 6)
    assert len({tuple(each) for each in batch["image"][:, :, 0, 0, 0].tolist()}) > 1


def test_names():
    assert monai_ext.sampling.RandCropByInstancesD is monai_ext.sampling.RandCropByInstancesDict is RandCropByInstancesd
