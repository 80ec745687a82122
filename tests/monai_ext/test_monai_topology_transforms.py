"""Skeletonize, LocalThickness and ClassContacts keep MONAI's conventions and say what the operators say."""

import multiprocessing

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Flip, RandFlipd, RandSpatialCropd, Spacingd

import monai_ext.transforms
from monai_ext.transforms import (
    ClassContacts,
    ClassContactsd,
    LocalThickness,
    LocalThicknessd,
    Skeletonize,
    Skeletonized,
)
from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.labels import to_one_hot
from nnunet_imbal.losses import skeleton_recall_loss
from nnunet_imbal.ops import class_contacts, local_thickness, skeletonize, tube

MAPS = [Skeletonize(), LocalThickness()]
EVERY = [*MAPS, ClassContacts(3)]
DICTIONARIES = [
    (Skeletonized("label"), "skeleton"),
    (LocalThicknessd("label"), "thickness"),
    (ClassContactsd("label", 3), "contacts"),
]


def affine(*spacing):
    return torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))


@pytest.fixture
def labels(label_maps):
    return label_maps(batch=1)[0]


def test_skeleton_of_a_label_map_is_that_of_each_class(labels):
    lines = Skeletonize()(labels)
    one_hot = to_one_hot(labels[None], 3)[0]
    assert torch.equal(lines, skeletonize(labels[None])[0])
    assert torch.equal(Skeletonize()(one_hot)[1:], torch.cat([lines == 1, lines == 2]))


def test_thickness_of_a_label_map_is_that_of_the_whole_tree(labels):
    one_hot = to_one_hot(labels[None], 3)
    assert torch.equal(LocalThickness()(labels), local_thickness(labels[None] != 0)[0])
    assert torch.equal(LocalThickness()(one_hot[0, 1:]), local_thickness(one_hot[:, 1:])[0])


def test_contacts_with_and_without_background(labels):
    expected = class_contacts(labels[None], 3, connectivity=6)[0]
    assert expected[0, 1] > 0
    assert torch.equal(ClassContacts(3, include_background=True, connectivity=6)(labels), expected)
    assert torch.equal(ClassContacts(3, connectivity=6)(labels), expected[1:, 1:])
    assert ClassContacts(4)(labels).shape == (3, 3)


@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64, np.float32])
def test_arrays_of_any_dtype(transform, dtype, labels):
    array = labels.numpy().astype(dtype)
    assert torch.equal(torch.as_tensor(transform(array)).double(), torch.as_tensor(transform(labels)).double())
    assert np.array_equal(array, labels)


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_dtypes_of_the_results(dtype, labels):
    binary = (labels > 0).to(dtype)
    assert Skeletonize()(binary).dtype == dtype
    assert LocalThickness()(binary).dtype == torch.float32
    assert ClassContacts(2)(binary).dtype == torch.int64


@pytest.mark.parametrize("transform", EVERY)
def test_nothing_comes_from_nothing(transform):
    assert not transform(torch.zeros(1, 4, 5)).any()
    assert not transform(torch.zeros(1, 4, 5, 6)).any()


def test_spacing_follows_the_axes_of_the_array():
    vessel = torch.zeros(1, 5, 7)
    vessel[0, 1:4] = 1
    flat = {mm: LocalThickness()(MetaTensor(vessel, affine(*mm))).max().item() for mm in [(1, 1), (3, 1), (1, 3)]}
    assert flat == {(1, 1): 2, (3, 1): 6, (1, 3): 2}
    assert LocalThickness(spacing=(0.5, 1))(MetaTensor(vessel, affine(3, 1))).max() == 1
    assert LocalThickness()(vessel).max() == 2


def test_a_vessel_without_walls_is_infinitely_thick():
    assert LocalThickness()(torch.ones(1, 4, 4)).isinf().all()


@pytest.mark.parametrize("transform", MAPS)
def test_metadata_and_history_are_kept(transform, labels):
    flip = Flip(spatial_axis=0)
    image = flip(MetaTensor(labels, affine(2, 1, 1), meta={"filename_or_obj": "case_1"}))
    result = transform(image)
    assert isinstance(result, MetaTensor)
    assert result.meta["filename_or_obj"] == "case_1"
    assert torch.equal(result.affine, image.affine)
    assert torch.equal(flip.inverse(result).as_tensor(), torch.flip(result.as_tensor(), [1]))


def test_a_table_of_contacts_has_no_affine(labels):
    assert type(ClassContacts(3)(MetaTensor(labels))) is torch.Tensor


@pytest.mark.parametrize(("transform", "word"), DICTIONARIES)
def test_dictionary_adds_a_key_and_keeps_the_label(transform, word, labels):
    item = {"label": labels, "name": "case_1"}
    out = transform(item)
    assert out.keys() == {"label", f"label_{word}", "name"}
    assert out["label"] is labels
    assert item.keys() == {"label", "name"}
    assert torch.equal(out[f"label_{word}"], transform.converter(labels))


def test_postfixes(labels):
    item = {"label": labels}
    assert Skeletonized("label", "_line")(item).keys() == {"label", "label_line"}
    assert LocalThicknessd("label", thickness_postfix="_mm")(item).keys() == {"label", "label_mm"}
    replaced = ClassContactsd("label", 3, contacts_postfix="")(item)
    assert replaced.keys() == {"label"}
    assert replaced["label"].shape == (2, 2)


@pytest.mark.parametrize("name", ["Skeletonize", "LocalThickness", "ClassContacts"])
def test_monais_three_names_of_a_dictionary_transform(name):
    names = [getattr(monai_ext.transforms, name + end) for end in ("d", "D", "Dict")]
    assert names == [names[0]] * 3


@pytest.mark.parametrize("transform", [Skeletonized, LocalThicknessd, ClassContactsd])
def test_missing_key(transform, labels):
    words = {"num_classes": 3} if transform is ClassContactsd else {}
    assert transform("label", allow_missing_keys=True, **words)({"image": labels}).keys() == {"image"}
    with pytest.raises(KeyError, match="label"):
        transform("label", **words)({"image": labels})


def chain(lazy=False):
    steps = [
        Spacingd("label", pixdim=(1, 1, 1), mode="nearest"),
        RandFlipd("label", prob=0.5, spatial_axis=0),
        RandSpatialCropd("label", (10, 8, 8), random_size=False),
        *(transform for transform, _ in DICTIONARIES),
    ]
    # Without the override MONAI 1.6.1 interpolates here, whatever Spacingd was told.
    return Compose(steps, lazy=lazy, overrides={"label": {"mode": "nearest"}} if lazy else None)


def check_item(label, item):
    for transform, word in DICTIONARIES:
        assert torch.equal(item[f"label_{word}"], transform.converter(label)), word


@pytest.mark.parametrize("lazy", [False, True])
def test_compose_applies_pending_operations_first(lazy, labels):
    out = chain(lazy).set_random_state(0)({"label": MetaTensor(labels.float(), affine(2, 1, 1))})
    assert out["label"].shape == (1, 10, 8, 8)
    check_item(out["label"], out)


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes(method, labels):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    items = [{"label": MetaTensor(labels.float(), affine(2, 1, 1))}] * 4
    words = {"collate_fn": list_data_collate, "multiprocessing_context": method}
    batches = list(DataLoader(Dataset(items, chain()), batch_size=2, num_workers=2, **words))
    assert [batch["label_contacts"].shape for batch in batches] == [(2, 2, 2)] * 2
    for item in (item for batch in batches for item in decollate_batch(batch)):
        check_item(item["label"], item)


def test_tubes_from_the_loader_are_what_skeleton_recall_computes(labels):
    target = to_one_hot(labels[None], 3)[:, 1:]
    lines = torch.stack([Skeletonize()(item) | Skeletonize()(item.any(0, keepdim=True)) for item in target])
    probs = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    tubes = target & tube(lines)
    assert torch.equal(skeleton_recall_loss(probs, target, tubes=tubes), skeleton_recall_loss(probs, target))


@pytest.mark.parametrize("transform", EVERY)
@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (torch.tensor([[[0, 0.5]]]), "holds 0.5.*nearest"),
        (torch.tensor([[[0, float("nan")]]]), "holds nan"),
        (torch.tensor([[[-1, 1]]]), "holds -1"),
        (torch.zeros(4, 4), "EnsureChannelFirst"),
    ],
)
def test_bad_labels_are_named(transform, value, hint):
    with pytest.raises(LabelError, match=hint):
        transform(value)


def test_contacts_want_a_label_map():
    with pytest.raises(LabelError, match=r"holds 3.*0\.\.2"):
        ClassContacts(3)(torch.tensor([[[0, 3]]]))
    with pytest.raises(LabelError, match=r"1 channel.*\(2, 4, 4\).*argmax"):
        ClassContacts(3)(torch.zeros(2, 4, 4))


@pytest.mark.parametrize(
    ("transform", "word"),
    [
        (LocalThickness(spacing=(1, 1, 1)), "spacing"),
        (LocalThickness(spacing=(0, 1)), "spacing"),
        (ClassContacts(1), "num_classes"),
        (ClassContacts(3, connectivity=26), "connectivity"),
    ],
)
def test_bad_words_are_named(transform, word):
    with pytest.raises(ConfigError, match=word):
        transform(torch.zeros(1, 4, 4))
