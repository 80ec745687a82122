"""ComponentCells keeps MONAI's conventions: metadata, dictionaries, Compose, collate, worker processes."""

import multiprocessing

import numpy as np
import pytest
import torch
from monai.data import DataLoader, Dataset, MetaTensor, decollate_batch, list_data_collate
from monai.transforms import Compose, Flip, Flipd, RandFlipd, Spacingd
from torch.utils.data import default_collate

import monai_ext.transforms
from monai_ext.transforms import ComponentCells, ComponentCellsd
from nnunet_imbal.errors import ConfigError, LabelError
from nnunet_imbal.labels import to_one_hot
from nnunet_imbal.losses import cc_dice_loss
from nnunet_imbal.ops import component_cells

ROW = torch.tensor([1, 0, 0, 0, 1])


def affine(*spacing):
    return torch.diag(torch.tensor([*spacing, 1.0], dtype=torch.float64))


@pytest.fixture
def labels(label_maps):
    return label_maps(batch=1)[0]


def test_label_map_and_one_hot_agree_with_the_operator(labels):
    one_hot = to_one_hot(labels[None], 3)
    expected = component_cells(one_hot[:, 1:])[0]
    assert torch.equal(ComponentCells(num_classes=3)(labels), expected)
    assert torch.equal(ComponentCells(include_background=False)(one_hot[0]), expected)
    assert torch.equal(ComponentCells(num_classes=3)(one_hot[0].float()), expected)
    assert torch.equal(ComponentCells()(one_hot[0])[1:], expected)
    assert torch.equal(ComponentCells(3, include_background=True)(labels)[1:], expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.float32, bool])
def test_arrays_of_any_dtype(dtype):
    mask = np.zeros((1, 1, 5), dtype)
    mask[0, 0, [0, 4]] = 1
    cells = ComponentCells()(mask)
    assert cells.dtype == torch.int32
    assert cells.tolist() == [[[1, 1, 1, 2, 2]]]
    assert mask.sum() == 2


def test_absent_class_has_no_cells():
    cells = ComponentCells(num_classes=3)(ROW.view(1, 1, 5))
    assert cells[1].tolist() == [[0] * 5]


def test_spacing_follows_the_axes_of_the_array():
    # Component 1 is 2 voxels away along the first axis, component 2 is 3 voxels away along the second.
    mask = torch.zeros(1, 3, 4)
    mask[0, 0, 0] = mask[0, 2, 3] = 1
    nearest = {mm: int(ComponentCells()(MetaTensor(mask, affine(*mm)))[0, 2, 0]) for mm in [(1, 1), (3, 1), (1, 3)]}
    assert nearest == {(1, 1): 1, (3, 1): 2, (1, 3): 1}
    assert ComponentCells(spacing=(3, 1))(MetaTensor(mask, affine(1, 1)))[0, 2, 0] == 2
    assert ComponentCells()(mask)[0, 2, 0] == 1


def test_spacing_of_permuted_axes_and_slices():
    # Axis 0 of the array runs along world z (3 mm), axis 1 along world x (1 mm): columns of the affine, not rows.
    mask = torch.zeros(1, 3, 4)
    mask[0, 0, 0] = mask[0, 2, 3] = 1
    slice_affine = torch.zeros(4, 4, dtype=torch.float64)
    slice_affine[2, 0], slice_affine[0, 1], slice_affine[1, 2], slice_affine[3, 3] = 3, 1, 1, 1
    assert ComponentCells()(MetaTensor(mask, slice_affine))[0, 2, 0] == 2
    volume = MetaTensor(mask[..., None], slice_affine)
    assert volume.pixdim.tolist() == [3, 1, 1]
    assert ComponentCells()(volume)[0, 2, 0, 0] == 2


def test_metadata_and_history_are_kept(labels):
    flip = Flip(spatial_axis=0)
    image = flip(MetaTensor(labels, affine(2, 1, 1), meta={"filename_or_obj": "case_1"}))
    cells = ComponentCells(num_classes=3)(image)
    assert isinstance(cells, MetaTensor)
    assert cells.dtype == torch.int32
    assert cells.meta["filename_or_obj"] == "case_1"
    assert torch.equal(cells.affine, image.affine)
    assert [op["class"] for op in cells.applied_operations] == ["Flip"]
    assert torch.equal(flip.inverse(cells).as_tensor(), torch.flip(cells.as_tensor(), [1]))


def test_dictionary_adds_a_key_and_keeps_the_label(labels):
    item = {"label": labels, "name": "case_1"}
    out = ComponentCellsd("label", num_classes=3)(item)
    assert sorted(out) == ["label", "label_cells", "name"]
    assert out["label"] is labels
    assert sorted(item) == ["label", "name"]
    assert torch.equal(out["label_cells"], ComponentCells(num_classes=3)(labels))
    replaced = ComponentCellsd("label", num_classes=3, cells_postfix="")(item)["label"]
    assert torch.equal(replaced, out["label_cells"])
    assert monai_ext.transforms.ComponentCellsD is monai_ext.transforms.ComponentCellsDict is ComponentCellsd


def test_missing_key(labels):
    assert ComponentCellsd("label", allow_missing_keys=True)({"image": labels}).keys() == {"image"}
    with pytest.raises(KeyError, match="label"):
        ComponentCellsd("label")({"image": labels})


@pytest.mark.parametrize("lazy", [False, True])
def test_compose_applies_pending_operations_first(lazy, labels):
    steps = [Spacingd("label", pixdim=(1, 1, 1), mode="nearest"), Flipd("label", 0), ComponentCellsd("label", 3)]
    # Without the override MONAI 1.6.1 interpolates here, whatever Spacingd was told.
    overrides = {"label": {"mode": "nearest"}} if lazy else None
    out = Compose(steps, lazy=lazy, overrides=overrides)({"label": MetaTensor(labels.float(), affine(2, 1, 1))})
    assert out["label"].shape[1:] == out["label_cells"].shape[1:]
    assert torch.equal(out["label_cells"], ComponentCells(3)(out["label"]))
    assert not out["label_cells"].pending_operations


def test_collate_decollate_and_loss(labels):
    out = ComponentCellsd("label", 3)({"label": MetaTensor(labels)})
    for collate in (list_data_collate, default_collate):
        assert collate([dict(out), dict(out)])["label_cells"].dtype == torch.int32
    batch = list_data_collate([out, out])
    cells = batch["label_cells"]
    assert cells.shape == (2, 2, 12, 12, 12)
    assert [item["label_cells"].shape for item in decollate_batch(batch)] == [(2, 12, 12, 12)] * 2
    target = to_one_hot(batch["label"].as_tensor(), 3)[:, 1:]
    probs = torch.rand(target.shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(cc_dice_loss(probs, target, cells=cells), cc_dice_loss(probs, target))


def loaded(items, method):
    dataset = Dataset(items, Compose([RandFlipd("label", prob=1.0, spatial_axis=0), ComponentCellsd("label", 3)]))
    loader = DataLoader(dataset, batch_size=2, num_workers=1, multiprocessing_context=method)
    return next(iter(loader))


@pytest.mark.parametrize("method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_worker_processes(method, labels):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} on this system")
    batch = loaded([{"label": MetaTensor(labels)}] * 2, method)
    for label, cells in zip(batch["label"], batch["label_cells"], strict=True):
        assert torch.equal(cells, ComponentCells(3)(label))


@pytest.mark.parametrize(
    ("transform", "value", "hint"),
    [
        (ComponentCells(), torch.tensor([[[0, 2.0]]]), "num_classes"),
        (ComponentCells(3), torch.tensor([[[0, 3]]]), r"holds 3.*0\.\.2"),
        (ComponentCells(3), torch.tensor([[[0, 0.5]]]), "nearest"),
        (ComponentCells(3), torch.tensor([[[0, float("nan")]]]), "nan"),
        (ComponentCells(3), torch.tensor([[[-1, 1]]]), "holds -1"),
        (ComponentCells(3), torch.zeros(2, 4, 4), "1 channel"),
        (ComponentCells(3), torch.zeros(4, 4), "EnsureChannelFirst"),
    ],
)
def test_bad_labels_are_named(transform, value, hint):
    with pytest.raises(LabelError, match=hint):
        transform(value)


@pytest.mark.parametrize(
    "words", [{"num_classes": 1}, {"spacing": (1, 1, 1)}, {"spacing": (0, 1)}, {"connectivity": 26}]
)
def test_bad_words_are_named(words):
    with pytest.raises(ConfigError, match=next(iter(words))):
        ComponentCells(**words)(ROW.view(1, 1, 5))
