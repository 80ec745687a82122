"""Two annotated scans and ten that nobody annotated: a plain PyTorch loop with MONAI's network and loss.

Trains the same network twice on artificial abdominal scans, once on the annotated scans alone and once with a mean
teacher for the others, and prints the Dice of each organ on new scans::

    python examples/semi_supervised.py
    python examples/semi_supervised.py --steps 1000 --scdl
"""

import argparse
from collections.abc import Sequence

import torch
from monai.losses import DiceCELoss
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from nnunet_imbal.losses.scdl import SCDL
from nnunet_imbal.phantoms.organs import OrganPhantom
from nnunet_imbal.semi import FeatureTap, MeanTeacher, UnlabelledLoss, perturb_intensity, ramp_up

PHANTOM = OrganPhantom(shape=(44, 32, 48), spacing=(8.0, 8.0, 8.0))
ORGANS = ("liver", "spleen", "stomach", "kidney_right", "kidney_left", "aorta", "pancreas", "gallbladder")
IGNORE = 255
Scans = tuple[Tensor, Tensor]


def scans(numbers: Sequence[int], *, annotated: bool = True) -> Scans:
    """Images ``(N, 1, X, Y, Z)`` and label maps of the same shape; all `IGNORE` where nobody annotated."""
    images, labels = [], []
    for number in numbers:
        case = PHANTOM.training_case(seed=0, index=number)
        label = torch.from_numpy(case.label.copy())
        organs = sum((n + 1) * (label == PHANTOM.labels[organ]) for n, organ in enumerate(ORGANS))
        images.append(torch.from_numpy(case.image.copy()).float().clamp(-200, 250) / 100)
        labels.append(organs if annotated else torch.full_like(label, IGNORE))
    return torch.stack(images).unsqueeze(1), torch.stack(labels).unsqueeze(1)


def new_network() -> nn.Module:
    """A small U-Net; its last layer is ``final_conv``."""
    torch.manual_seed(0)
    return BasicUNet(spatial_dims=3, out_channels=len(ORGANS) + 1, features=(16, 16, 32, 32, 32, 16))


def train(annotated: Scans, others: Scans | None, steps: int, use_scdl: bool = False) -> nn.Module:
    """Train on one annotated scan a step, and on one of the others if there are any."""
    network, supervised = new_network(), DiceCELoss(softmax=True, to_onehot_y=True, include_background=False)
    teacher, unsupervised = MeanTeacher(network), UnlabelledLoss(channels=len(ORGANS) + 1)
    tap, scdl = FeatureTap(network.final_conv), SCDL(feature_channels=16, num_classes=len(ORGANS) + 1)
    parameters = [*network.parameters(), *(scdl.parameters() if use_scdl else ())]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.PolynomialLR(optimizer, steps, power=0.9)
    for step in range(steps):
        pairs = [one_of(annotated)] if others is None else [one_of(annotated), one_of(others)]
        images, labels = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        unlabelled, share = labels == IGNORE, ramp_up(step, 0.4 * steps)
        logits = network(perturb_intensity(images))
        loss = supervised(logits[:1], labels[:1])
        if others is not None:
            loss = loss + share * unsupervised(logits[1:], teacher(images[1:]), unlabelled[1:])
        if use_scdl:
            known = labels.masked_fill(unlabelled, 0)
            loss = loss + 0.1 * scdl(tap.take(), known, ~unlabelled, unlabelled=share)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        teacher.update_parameters(network)
    return network


def one_of(data: Scans) -> Scans:
    """One scan at random, flipped at random from head to foot and from front to back."""
    number = int(torch.randint(len(data[0]), ()))
    axes = [axis for axis in (3, 4) if torch.rand(()) < 0.5]
    return data[0][number : number + 1].flip(axes), data[1][number : number + 1].flip(axes)


@torch.no_grad()
def dice(network: nn.Module, data: Scans) -> list[float]:
    """Mean Dice of each organ over the scans that have it."""
    network.eval()
    scores: list[list[float]] = [[] for _ in ORGANS]
    for image, label in zip(*data, strict=True):
        found = network(image.unsqueeze(0)).argmax(1)
        for n, values in enumerate(scores, start=1):
            if (label == n).any():
                both = ((found == n) & (label == n)).sum()
                values.append(float(2 * both / ((found == n).sum() + (label == n).sum())))
    return [sum(values) / max(len(values), 1) for values in scores]


def main(words: Sequence[str] | None = None) -> dict[str, list[float]]:
    """Train twice, print a table, and return it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each network")
    parser.add_argument("--annotated", type=int, default=2, help="scans with labels")
    parser.add_argument("--others", type=int, default=10, help="scans without")
    parser.add_argument("--tests", type=int, default=6, help="new scans to test on")
    parser.add_argument("--scdl", action="store_true", help="keep the features of organs apart as well")
    options = parser.parse_args(words)
    ends = [0, options.annotated, options.annotated + options.others]
    annotated, others = scans(range(ends[0], ends[1])), scans(range(ends[1], ends[2]), annotated=False)
    new = scans(range(ends[2], ends[2] + options.tests))
    table = {
        "annotated alone": dice(train(annotated, None, options.steps), new),
        "with the others": dice(train(annotated, others, options.steps, options.scdl), new),
    }
    print(f"{'Dice':>14}", *(f"{name:>16}" for name in table))
    for organ, *values in zip(ORGANS, *table.values(), strict=True):
        print(f"{organ:>14}", *(f"{value:16.3f}" for value in values))
    return table


if __name__ == "__main__":
    main()
