"""One training in several processes with Lightning Fabric; two of them learn what one learns from the same crops.

It needs ``pip install lightning-fabric``, and runs on the CPU as well::

    python examples/fabric_ddp.py --processes 2
    python examples/fabric_ddp.py --processes 1 --save weights.pt
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from monai.losses import DiceCELoss
from monai.networks.nets import UNet
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from monai_ext.losses import CCDiceLoss
from monai_ext.metrics import CCDiceMetric, LesionF1Metric
from monai_ext.sampling import RandCropByInstances
from nnunet_imbal.phantoms import LesionPhantom

PHANTOM = LesionPhantom(shape=(40, 40, 40), spacing=(3.0, 3.0, 3.0), volume_range_mm3=(100.0, 30_000.0))
BATCH = 4  # crops a step, of all processes together
Pair = tuple[Tensor, Tensor]


def scan(number: int) -> Pair:
    """Image and label map ``(1, X, Y, Z)`` of an artificial head scan."""
    case = PHANTOM.training_case(seed=0, index=number)
    image = torch.from_numpy(case.image.copy()).float()
    return ((image - image.mean()) / image.std())[None], torch.from_numpy(case.label.copy())[None]


class NumberedCrops(Dataset[Pair]):
    """A long row of crops. Number 17 is the same in every process, so that the batches do not depend on how many."""

    def __init__(self, scans: Sequence[Pair], length: int, side: int) -> None:
        self.scans, self.length = scans, length
        # Every crop shows a lesion. CC-Dice is a mean over the crops that do, and the mean of the processes is the mean
        # of the batch if each has equally many of them.
        self.crop = RandCropByInstances(side, forced=1.0, instance_share=1.0)

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> Pair:
        image, label = self.scans[number % len(self.scans)]
        self.crop.set_random_state(number)
        (patch,) = self.crop(image, label)
        (truth,) = self.crop(label, label, randomize=False)
        return patch, truth


def train(fabric: Fabric, scans: Sequence[Pair], side: int, steps: int) -> nn.Module:
    """A plain loop; Fabric shares out the crops and averages the gradients."""
    torch.manual_seed(0)
    network = UNet(spatial_dims=3, in_channels=1, out_channels=2, channels=(8, 16, 32), strides=(2, 2))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    loader = DataLoader(NumberedCrops(scans, BATCH * steps, side), batch_size=BATCH // fabric.world_size)
    network, optimizer = fabric.setup(network, optimizer)
    loader = fabric.setup_dataloaders(loader)
    dice_ce = DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    cc_dice = CCDiceLoss(softmax=True, to_onehot_y=True)
    for step, (images, labels) in enumerate(loader, start=1):
        logits = network(images)
        loss = dice_ce(logits, labels) + cc_dice(logits, labels)
        optimizer.zero_grad()
        fabric.backward(loss)
        optimizer.step()
        if step % 25 == 0:
            fabric.print(f"step {step}: loss {loss.item():.3f}")
    return network


@torch.no_grad()
def validate(fabric: Fabric, network: nn.Module, scans: Sequence[Pair]) -> dict[str, float]:
    """Every process looks at its share; MONAI's metrics collect the scores of all."""
    metrics = {
        "CC-Dice": CCDiceMetric(num_classes=2),
        "lesions found": LesionF1Metric(num_classes=2, metric_name="recall"),
    }
    network.eval()
    for image, label in scans[fabric.global_rank :: fabric.world_size]:
        found = network(fabric.to_device(image[None])).argmax(1, keepdim=True)
        for metric in metrics.values():
            metric(y_pred=found, y=fabric.to_device(label[None]))
    return {name: float(metric.aggregate()) for name, metric in metrics.items()}


def main(words: Sequence[str] | None = None) -> dict[str, float]:
    """Train, print the scores of new scans in the first process, and return them in each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2, 4), help="processes, or GPUs")
    parser.add_argument("--accelerator", default="cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=200, help="training steps")
    parser.add_argument("--side", type=int, default=24, help="side of a crop in voxels, a multiple of 4")
    parser.add_argument("--scans", type=int, default=8, help="artificial scans to train on")
    parser.add_argument("--save", type=Path, help="file for the weights")
    options = parser.parse_args(words)
    strategy = "ddp" if options.processes > 1 else "auto"
    fabric = Fabric(accelerator=options.accelerator, devices=options.processes, strategy=strategy)
    fabric.launch()
    network = train(fabric, [scan(number) for number in range(options.scans)], options.side, options.steps)
    new = [scan(number) for number in range(options.scans, options.scans + 4)]
    scores = validate(fabric, network, new)
    for name, score in scores.items():
        fabric.print(f"{name:>14} {score:.3f}")
    if options.save:
        fabric.save(options.save, {"network": network})
    return scores


if __name__ == "__main__":
    main()
