"""Small lesions in a plain MONAI loop: crops that show them, CC-Dice beside Dice and cross-entropy, lesions counted.

Without a dataset of yours it makes artificial head scans with many small lesions::

    python examples/plain_monai.py
    python examples/plain_monai.py --dataset nnUNet_raw/Dataset004_X --patch 96 --steps 20000
"""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from monai.data import CacheDataset, DataLoader, Dataset
from monai.inferers import SlidingWindowInferer
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    Orientationd,
    RandFlipd,
    RandShiftIntensityd,
    Spacingd,
    SpatialPadd,
)
from monai.utils import set_determinism
from torch import Tensor, nn

from monai_ext.bundle.cases import Description, Item, describe, split_cases
from monai_ext.losses import CCDiceLoss
from monai_ext.metrics import CCDiceMetric, LesionF1Metric
from monai_ext.sampling import RandCropByInstancesd
from nnunet_imbal.phantoms import LesionPhantom, write_dataset

BOTH = ["image", "label"]
PHANTOM = LesionPhantom(shape=(48, 48, 48), spacing=(3.0, 3.0, 3.0), volume_range_mm3=(100.0, 30_000.0))


def preprocessing(description: Description) -> list[object]:
    """Steps that training and validation share."""
    return [
        LoadImaged(BOTH),
        EnsureChannelFirstd(BOTH),
        Orientationd(BOTH, axcodes="RAS", labels=None),
        Spacingd(BOTH, pixdim=description.spacing, mode=["bilinear", "nearest"]),
        NormalizeIntensityd("image", channel_wise=True),
    ]


def augmentation(patch: int) -> list[object]:
    """Crops of which half are forced to show a lesion, the small ones as often as the large ones; then MONAI's own."""
    return [
        SpatialPadd(BOTH, spatial_size=[patch] * 3),
        RandCropByInstancesd(BOTH, "label", [patch] * 3, num_samples=2, instance_share=1.0),
        RandFlipd(BOTH, prob=0.5, spatial_axis=2),
        RandShiftIntensityd("image", offsets=0.2, prob=0.5),
    ]


def batches(items: Sequence[Item], transform: Compose, steps: int) -> Iterator[Item]:
    """As many batches as there are steps, two cases each."""
    dataset = CacheDataset(items, transform, progress=False)  # keeps what comes before the first random step
    loader = DataLoader(dataset, batch_size=min(2, len(items)), shuffle=True, drop_last=True)
    while steps > 0:
        for batch in loader:
            if steps > 0:
                yield batch
            steps -= 1


def train(items: Sequence[Item], description: Description, patch: int, steps: int) -> nn.Module:
    """Dice and cross-entropy plus CC-Dice, in which every lesion counts the same."""
    network = UNet(
        spatial_dims=3,
        in_channels=description.num_channels,
        out_channels=description.num_classes,
        channels=(16, 32, 64),
        strides=(2, 2),
        num_res_units=1,
    )
    dice_ce = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    cc_dice = CCDiceLoss(softmax=True, to_onehot_y=True)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    transform = Compose([*preprocessing(description), *augmentation(patch)])
    for step, batch in enumerate(batches(items, transform, steps), start=1):
        logits = network(batch["image"])
        loss = dice_ce(logits, batch["label"]) + cc_dice(logits, batch["label"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    return network


@torch.no_grad()
def validate(network: nn.Module, items: Sequence[Item], description: Description, patch: int) -> dict[str, float]:
    """Mean over cases and classes; a case without lesions counts where a score is defined for it."""
    classes = description.num_classes
    metrics = {
        "Dice": DiceMetric(include_background=False, num_classes=classes),
        "CC-Dice": CCDiceMetric(num_classes=classes),
        "lesions found": LesionF1Metric(num_classes=classes, metric_name="recall"),
        "findings that are lesions": LesionF1Metric(num_classes=classes, metric_name="precision"),
    }
    inferer = SlidingWindowInferer(roi_size=[patch] * 3, overlap=0.5, mode="gaussian")
    network.eval()
    for batch in DataLoader(Dataset(items, Compose(preprocessing(description)))):
        found: Tensor = inferer(batch["image"], network).argmax(1, keepdim=True)
        for metric in metrics.values():
            metric(y_pred=found, y=batch["label"])
    return {name: float(metric.aggregate()) for name, metric in metrics.items()}


def run(dataset: Path, patch: int, steps: int) -> dict[str, float]:
    """Train on four fifths of a dataset and validate on the rest."""
    set_determinism(0)
    description, cases = describe(dataset), split_cases(dataset)
    network = train(cases["train"], description, patch, steps)
    return validate(network, cases["validate"], description, patch)


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print the scores of the validation cases, and return them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--dataset", type=Path, help="an nnU-Net raw dataset, or a folder with images and labels")
    parser.add_argument("--cases", type=int, default=15, help="artificial scans, if there is no dataset")
    parser.add_argument("--patch", type=int, default=32, help="side of a patch in voxels, a multiple of 4")
    parser.add_argument("--steps", type=int, default=300, help="training steps")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        dataset = options.dataset or write_dataset(PHANTOM, Path(folder), cases=options.cases, test_cases=0)
        scores = run(dataset, options.patch, options.steps)
    for name, score in scores.items():
        print(f"{name:>26} {score:.3f}")
    return scores


if __name__ == "__main__":
    main()
