"""What the kernel benchmark compares: for each job our kernel, its peers, and how many times faster we want to be.

Everybody's answer is compared with ours before the clock starts, wherever the answers are meant to be the same.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import _kernel_inputs as inputs
import _kernel_loops as loops
import cc3d
import edt
import numpy as np
import SimpleITK as sitk
import torch
from monai.losses.cldice import soft_skel
from monai.transforms.utils import get_largest_connected_component_mask
from numpy.typing import NDArray
from scipy import ndimage
from skimage import measure, morphology
from torch import Tensor

import numba_kernels
from nnunet_imbal.ops import cell_overlap

__all__ = ["Peer", "Row", "other_rows", "target_rows"]

ANISOTROPIC = (3.0, 0.8, 0.8)
UNEVEN = (3.0, 0.79, 0.8512)  # no whole multiples of one length
ITERATIONS = 10
FEW = 3  # components that a loop over all of them really treats; its time is multiplied
MONAI_BYTES = 220  # that MONAI's soft skeleton takes per voxel and iteration, backward included, as measured

Mask = NDArray[np.uint8]


@dataclass(frozen=True)
class Peer:
    """Another way to the same answer; ``times`` tells how much longer the whole would take than what is run."""

    run: Callable[[], Any]
    target: float | None = None
    times: float = 1.0


@dataclass(frozen=True)
class Row:
    job: str
    input: str
    ours: Callable[[], Any]
    peers: dict[str, Peer] = field(default_factory=dict)
    note: str = ""


def target_rows(n: int) -> Iterator[Row]:
    """Comparisons with a target on cubes of ``n`` voxels a side, made one after the other to keep memory small."""
    masks, organs = _masks(n), _organs(n)
    lesions = masks["200 lesions"]
    yield components("200 lesions", lesions, 26, 1.8, 7)
    yield components("noise 31 %", masks["noise 31 %"], 26, 1.5, 4)
    yield classes(organs, 6, 1.6, 25)
    yield largest("200 lesions", lesions, 10, 25)
    yield skeleton("vessels", masks["vessels"], 10)
    yield skeleton("blobs", masks["blobs"], 6)
    yield class_skeletons(organs, 9)
    yield tube("vessels", masks["vessels"], 16)
    labels = numba_kernels.connected_components(lesions)[0]
    yield nearest("200 lesions", labels, (1.0, 1.0, 1.0), 3.5, 10, 1000)
    yield nearest_index("200 lesions", labels, 2.5, 9)
    yield component_dice("200 lesions", labels)
    yield contacts(organs)
    yield soft_skeletons(masks["vessels"])


def other_rows(n: int) -> Iterator[Row]:
    """Other inputs and jobs, for which no target was set."""
    masks, organs = _masks(n), _organs(n)
    for name, mask in masks.items():
        yield components(name, mask, 6)
    for name in ("vessels", "blobs", "noise 10 %"):
        yield components(name, masks[name], 26)
    yield classes(organs, 26)
    yield largest("blobs", masks["blobs"])
    for name in ("200 lesions", "blobs"):
        yield measures(name, masks[name])
        yield large_ones(name, masks[name])
    for name in ("200 lesions", "noise 31 %"):
        yield skeleton(name, masks[name])
    yield tube("organs", organs)
    yield nearest("200 lesions", numba_kernels.connected_components(masks["200 lesions"])[0], UNEVEN)
    for name in ("vessels", "noise 10 %"):
        yield nearest(name, numba_kernels.connected_components(masks[name])[0], (1.0, 1.0, 1.0))
    yield nearest_index("vessels", numba_kernels.connected_components(masks["vessels"])[0])
    yield depth("vessels", masks["vessels"])


@lru_cache(maxsize=1)
def _masks(n: int) -> dict[str, Mask]:
    return {
        "vessels": inputs.vessels(n),
        "200 lesions": inputs.lesions(n),
        "blobs": inputs.blobs(n),
        "noise 31 %": inputs.noise(n, 0.312),
        "noise 10 %": inputs.noise(n, 0.098),
    }


@lru_cache(maxsize=1)
def _organs(n: int) -> Mask:
    return inputs.organs(n)


def components(
    name: str, mask: Mask, connectivity: int, cc3d_target: float | None = None, scipy_target: float | None = None
) -> Row:
    rank = {6: 1, 26: 3}[connectivity]
    structure = ndimage.generate_binary_structure(3, rank)
    image = sitk.GetImageFromArray(mask)
    expected, count = ndimage.label(mask, structure)
    ours, our_count = numba_kernels.connected_components(mask, connectivity)
    assert our_count == count
    np.testing.assert_array_equal(ours, expected)
    return Row(
        f"components, {connectivity} neighbours",
        name,
        lambda: numba_kernels.connected_components(mask, connectivity),
        {
            "cc3d": Peer(
                lambda: cc3d.connected_components(mask, connectivity=connectivity, return_N=True, binary_image=True),
                cc3d_target,
            ),
            "scipy": Peer(lambda: ndimage.label(mask, structure), scipy_target),
            "skimage": Peer(lambda: measure.label(mask, connectivity=rank, return_num=True)),
            "SimpleITK": Peer(lambda: sitk.ConnectedComponent(image, rank == 3)),
        },
    )


def classes(
    labels: Mask, connectivity: int, cc3d_target: float | None = None, scipy_target: float | None = None
) -> Row:
    rank = {6: 1, 26: 3}[connectivity]
    structure = ndimage.generate_binary_structure(3, rank)
    present = range(1, int(labels.max()) + 1)
    each = [ndimage.label(labels == c, structure)[1] for c in present]
    count = numba_kernels.connected_components(labels, connectivity)[1]
    assert count == sum(each) == cc3d.connected_components(labels, connectivity=connectivity, return_N=True)[1]
    return Row(
        f"components of 14 classes in one pass, {connectivity} neighbours",
        "organs",
        lambda: numba_kernels.connected_components(labels, connectivity),
        {
            "cc3d": Peer(
                lambda: cc3d.connected_components(labels, connectivity=connectivity, return_N=True), cc3d_target
            ),
            "scipy, each class": Peer(lambda: [ndimage.label(labels == c, structure) for c in present], scipy_target),
            "skimage": Peer(lambda: measure.label(labels, connectivity=rank, return_num=True)),
        },
    )


def measures(name: str, mask: Mask) -> Row:
    values = np.random.default_rng(0).random(mask.shape, np.float32)

    def by_cc3d() -> Any:
        numbers = cc3d.connected_components(mask, connectivity=26)
        return cc3d.statistics(numbers), np.bincount(numbers.ravel(), values.ravel())

    def by_scipy() -> Any:
        numbers, count = ndimage.label(mask, np.ones((3, 3, 3)))
        return np.bincount(numbers.ravel()), ndimage.sum_labels(values, numbers, np.arange(1, count + 1))

    ours = numba_kernels.component_stats(mask, fields=[values])
    np.testing.assert_allclose(ours.sums[0], by_scipy()[1], rtol=1e-4)
    return Row(
        "sizes, boxes, centroids and one sum for each component",
        name,
        lambda: numba_kernels.component_stats(mask, fields=[values]),
        {"cc3d + bincount": Peer(by_cc3d), "scipy, sizes and sums only": Peer(by_scipy)},
    )


def largest(name: str, mask: Mask, cc3d_target: float | None = None, monai_target: float | None = None) -> Row:
    tensor = torch.from_numpy(mask.copy())
    ours = numba_kernels.largest_component(mask)
    np.testing.assert_array_equal(cc3d.largest_k(mask, k=1, connectivity=26) > 0, ours)
    np.testing.assert_array_equal(get_largest_connected_component_mask(tensor), ours)
    return Row(
        "largest component",
        name,
        lambda: numba_kernels.largest_component(mask),
        {
            "cc3d": Peer(lambda: cc3d.largest_k(mask, k=1, connectivity=26), cc3d_target),
            "MONAI": Peer(lambda: get_largest_connected_component_mask(tensor), monai_target),
        },
    )


def large_ones(name: str, mask: Mask) -> Row:
    foreground = mask > 0
    np.testing.assert_array_equal(
        cc3d.dust(mask, threshold=20, connectivity=26) > 0, numba_kernels.remove_small_components(mask, 20)
    )
    return Row(
        "components of 20 voxels and more",
        name,
        lambda: numba_kernels.remove_small_components(mask, 20),
        {
            "cc3d": Peer(lambda: cc3d.dust(mask, threshold=20, connectivity=26)),
            "skimage": Peer(lambda: morphology.remove_small_objects(foreground, max_size=19, connectivity=3)),
        },
    )


def skeleton(name: str, mask: Mask, target: float | None = None) -> Row:
    foreground = mask > 0
    np.testing.assert_array_equal(
        numba_kernels.skeletonize(foreground, compat="skimage-0.26"), morphology.skeletonize(foreground, method="lee")
    )
    return Row(
        "skeleton",
        name,
        lambda: numba_kernels.skeletonize(foreground),
        {"skimage": Peer(lambda: morphology.skeletonize(foreground, method="lee"), target)},
        "ours keeps every object; skimage 0.26 loses some",
    )


def class_skeletons(labels: Mask, target: float) -> Row:
    present = range(1, int(labels.max()) + 1)
    return Row(
        "skeleton of each of 14 classes",
        "organs",
        lambda: numba_kernels.skeletonize(labels),
        {"skimage": Peer(lambda: [morphology.skeletonize(labels == c, method="lee") for c in present], target)},
        "ours keeps every object; skimage 0.26 loses some",
    )


def tube(name: str, labels: Mask, target: float | None = None) -> Row:
    def by_us() -> Any:
        return labels * numba_kernels.tube(numba_kernels.skeletonize(labels > 0))

    line = numba_kernels.skeletonize(labels > 0, compat="skimage-0.26")
    np.testing.assert_array_equal(labels * numba_kernels.tube(line), loops.skeleton_recall_target(labels))
    return Row(
        "target of Skeleton Recall (skeleton, tube, labels)",
        name,
        by_us,
        {"its transform": Peer(lambda: loops.skeleton_recall_target(labels), target)},
    )


def nearest(
    name: str,
    labels: NDArray[np.int32],
    spacing: tuple[float, ...],
    edt_target: float | None = None,
    scipy_target: float | None = None,
    loop_target: float | None = None,
) -> Row:
    def by_scipy() -> Any:
        distance, index = ndimage.distance_transform_edt(background, sampling=spacing, return_indices=True)
        return labels[tuple(index)], distance

    background, count = labels == 0, int(labels.max())
    image = sitk.GetImageFromArray((labels > 0).astype(np.uint8))
    image.SetSpacing(spacing[::-1])
    ours = numba_kernels.nearest_component(labels, spacing, return_distance=True)[1]
    np.testing.assert_allclose(ours, by_scipy()[1], rtol=1e-5)
    peers = {
        "edt, distance only": Peer(lambda: edt.edt(background, anisotropy=spacing, parallel=1), edt_target),
        "scipy": Peer(by_scipy, scipy_target),
        "SimpleITK, distance only": Peer(lambda: sitk.SignedMaurerDistanceMap(image, False, False, True)),
    }
    if loop_target is not None:
        few = range(1, min(count, FEW) + 1)
        loop = Peer(lambda: loops.cells_component_by_component(labels, few), loop_target, count / len(few))
        peers["loop of CC-Metrics"] = loop
    return Row(
        "nearest component and distance",
        f"{name}, {_millimetres(spacing)}",
        lambda: numba_kernels.nearest_component(labels, spacing, return_distance=True),
        peers,
    )


def nearest_index(
    name: str, labels: NDArray[np.int32], edt_target: float | None = None, scipy_target: float | None = None
) -> Row:
    background = labels == 0
    return Row(
        "distance and index of the nearest voxel",
        f"{name}, {_millimetres(ANISOTROPIC)}",
        lambda: numba_kernels.nearest_component(labels, ANISOTROPIC, return_distance=True, return_index=True),
        {
            "edt, distance only": Peer(lambda: edt.edt(background, anisotropy=ANISOTROPIC, parallel=1), edt_target),
            "scipy": Peer(
                lambda: ndimage.distance_transform_edt(background, sampling=ANISOTROPIC, return_indices=True),
                scipy_target,
            ),
        },
        "ours gives the nearest component too",
    )


def depth(name: str, mask: Mask) -> Row:
    return Row(
        "distance inside a mask",
        name,
        lambda: numba_kernels.distance(mask),
        {
            "edt": Peer(lambda: edt.edt(mask, parallel=1)),
            "scipy": Peer(lambda: ndimage.distance_transform_edt(mask)),
        },
    )


def component_dice(name: str, labels: NDArray[np.int32]) -> Row:
    probs = torch.rand(labels.shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    cells, count = torch.from_numpy(labels)[None, None], int(labels.max())
    truth, wide = cells > 0, cells[0, 0].long()

    def by_us() -> Tensor:
        masses, sizes = cell_overlap(probs[None, None], truth, cells)[1:, 0, 0]
        return (1 - loops.soft_dice(masses[1:], masses[0] + masses[1:], sizes[1:])).mean()

    def slope(loss: Callable[[], Tensor]) -> Tensor:
        return torch.autograd.grad(loss(), probs)[0]

    few = range(1, min(count, FEW) + 1)
    expected = slope(lambda: loops.blob_dice_by_index_add(probs, wide, count))
    torch.testing.assert_close(slope(by_us), expected, rtol=1e-3, atol=1e-9)
    return Row(
        "Dice of each component, forward and backward",
        f"{name}, {count} components",
        lambda: slope(by_us),
        {
            "torch index_add": Peer(lambda: slope(lambda: loops.blob_dice_by_index_add(probs, wide, count)), 3.5),
            "loop of the blob loss": Peer(
                lambda: slope(lambda: loops.blob_dice_blob_by_blob(probs, wide, few)), 1000, count / len(few)
            ),
        },
    )


def contacts(labels: Mask) -> Row:
    np.testing.assert_array_equal(numba_kernels.class_contacts(labels, 15), loops.contacts_by_shifts(labels, 15))
    return Row(
        "contacts of 15 classes, 26 neighbours",
        "organs",
        lambda: numba_kernels.class_contacts(labels, 15),
        {
            "cc3d": Peer(lambda: cc3d.contacts(labels, connectivity=26, surface_area=False), 4),
            "numpy, 13 shifts": Peer(lambda: loops.contacts_by_shifts(labels, 15), 12),
        },
    )


def soft_skeletons(mask: Mask) -> Row:
    noise = np.random.default_rng(0).random(mask.shape, np.float32)
    probs = np.clip(ndimage.gaussian_filter(mask.astype(np.float32), 1) * 0.9 + 0.1 * noise, 0, 1)
    tensor = torch.from_numpy(probs)[None, None].requires_grad_()
    grad = np.ones_like(probs)

    def by_us() -> Any:
        return numba_kernels.soft_skeleton(probs, ITERATIONS), numba_kernels.soft_skeleton_backward(
            grad, probs, ITERATIONS
        )

    def by_monai() -> Any:
        result = soft_skel(tensor, ITERATIONS)
        return result, torch.autograd.grad(result.sum(), tensor)[0]

    job, name = f"soft skeleton of {ITERATIONS} iterations, forward and backward", "vessels, probabilities"
    needed = MONAI_BYTES * probs.size * ITERATIONS
    if 1.25 * needed > _free_memory():  # others live here too
        return Row(job, name, by_us, note=f"MONAI left out: it needs about {needed / 1e9:.0f} GB")
    for our_part, their_part in zip(by_us(), by_monai(), strict=True):
        difference = np.abs(our_part - their_part.detach().numpy()[0, 0])
        assert (difference < 1e-4).mean() > 0.999  # ties take another subgradient
    return Row(job, name, by_us, {"MONAI": Peer(by_monai, 12)})


def _free_memory() -> float:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def _millimetres(spacing: tuple[float, ...]) -> str:
    return " x ".join(f"{step:g}" for step in spacing) + " mm"
