"""Between nnU-Net's objects and ours: labels, configuration and the loss that joins both."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.utilities.label_handling.label_handling import LabelManager
from torch import Tensor, nn

from nnunet_imbal._version import __version__
from nnunet_imbal.config import ImbalConfig, Sampling
from nnunet_imbal.errors import ConfigError
from nnunet_imbal.labels import LabelSpec
from nnunet_imbal.losses import SegmentationLoss
from nnunet_imbal.registry import build_loss, get_loss

__all__ = [
    "ActiveTerm",
    "ImbalLoss",
    "Levels",
    "build_terms",
    "describe",
    "describe_sampling",
    "difference",
    "full_resolution",
    "label_spec",
    "record",
    "repair_levels",
    "require_hosts",
]

Levels = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class ActiveTerm:
    """A term of weight above 0, with its loss built."""

    name: str
    weight: float
    from_epoch: int
    ramp_epochs: int
    loss: SegmentationLoss

    def weight_in(self, epoch: int) -> float:
        """Weight in one epoch: 0 before the first one, then growing to the full weight."""
        age = epoch - self.from_epoch
        if age < 0:
            return 0.0
        return self.weight * min(age / self.ramp_epochs, 1) if self.ramp_epochs else self.weight


class ImbalLoss(nn.Module):
    """nnU-Net's own loss at every resolution, plus our terms at full resolution.

    Tiny lesions vanish in down-sampled targets, hence no terms there. Without a term in force the result is the host's
    own tensor, bit for bit.

    Args:
        host: nnU-Net's loss, or None to train on the terms alone.
        terms: what is added.
        labels: how the target is encoded.

    Attributes:
        companions: function (output, target) -> further named terms, weighted already; set by trainers that have some.
    """

    def __init__(self, host: nn.Module | None, terms: Sequence[ActiveTerm], labels: LabelSpec) -> None:
        super().__init__()
        self.host = host
        self.use(terms)
        self.labels = labels
        self.epoch = 0
        self.values: dict[str, Tensor] = {}
        self.companions: Callable[[Levels, Levels], Mapping[str, Tensor]] | None = None
        self._first, self._weight = 0, 1.0

    def use(self, terms: Sequence[ActiveTerm]) -> None:
        """Put other terms in the place of those there are."""
        self.terms = tuple(terms)
        self.losses = nn.ModuleList(term.loss for term in terms)

    @contextmanager
    def leaving_out(self, rows: int, weight: float = 1.0) -> Iterator[None]:
        """Inside this context host loss and terms see only labelled patches.

        A patch without labels gives nnU-Net's Dice of one, without gradient, and so makes those beside it count less.

        Args:
            rows: number of unlabelled patches, the first ones of the batch; if there are no others, they are not left
                out, because all ranks must take part in what the losses sum over ranks.
            weight: of host loss and terms.
        """
        self._first, self._weight = rows, weight
        try:
            yield
        finally:
            self._first, self._weight = 0, 1.0

    def forward(self, output: Levels, target: Levels) -> Tensor:
        """Sum of host loss and weighted terms; `values` keeps each part of the latest call for error messages."""
        self.values = {}
        parts = self._on_labels(_without(output, self._first), _without(target, self._first))
        if self._weight != 1:
            parts = [self._weight * part for part in parts]
        if self.companions is not None:
            parts += [self._note(name, value) for name, value in self.companions(output, target).items()]
        return parts[0] if len(parts) == 1 else torch.stack([part.float() for part in parts]).sum()

    def _on_labels(self, output: Levels, target: Levels) -> list[Tensor]:
        parts = []
        if self.host is not None:
            parts.append(self._note("nnunet", self.host(output, target)))
        else:
            parts.append(_connected_zero(output))
        terms = [(term, weight) for term in self.terms if (weight := term.weight_in(self.epoch))]
        if terms:
            logits = full_resolution(output)
            labels, mask = self.labels.split_target(full_resolution(target))
            parts += [self._note(t.name, weight * t.loss(logits, labels, mask)) for t, weight in terms]
        return parts

    def _note(self, name: str, value: Tensor) -> Tensor:
        self.values[name] = value.detach()
        return value


def build_terms(
    config: ImbalConfig, labels: LabelSpec, spacing: Sequence[float], learned: Mapping[str, Any]
) -> list[ActiveTerm]:
    """Build the losses of a configuration for one dataset.

    Args:
        config: the terms.
        labels: how the target is encoded.
        spacing: mm per voxel.
        learned: constructor words learned from the labels, for losses that know them; those of a term go before.

    Raises:
        ConfigError: a loss refuses its options.
        NotImplementedError: a loss cannot do regions or ignore labels and the dataset has them.
    """
    terms = []
    for term in config.terms:
        if term.weight == 0:
            continue
        cls = get_loss(term.loss)
        _require_support(cls, labels)
        known = {word: value for word, value in learned.items() if word in cls.options()}
        options: dict[str, Any] = {**labels.activation(), **known, **term.kwargs}
        if cls.uses_spacing:
            options.setdefault("spacing", tuple(spacing))
        loss = build_loss(term.loss, **options)
        terms.append(ActiveTerm(term.loss, term.weight, term.from_epoch, term.ramp_epochs, loss))
    return terms


def label_spec(manager: LabelManager) -> LabelSpec:
    """What nnU-Net's label manager says, in our words."""
    return LabelSpec(has_regions=manager.has_regions, ignore_label=manager.ignore_label)


def require_hosts(config: ImbalConfig, hosts: Collection[str], trainer: str) -> None:
    """Refuse an entry of the plans that a trainer would silently leave out.

    Args:
        config: of the plans.
        hosts: entries the trainer knows beyond the common ones.
        trainer: its name.

    Raises:
        ConfigError: names the entry and the trainers that know it.
    """
    for key, value in (("semi", config.semi), ("scdl", config.scdl)):
        if value is not None and key not in hosts:
            raise ConfigError(
                f"imbal: {trainer} cannot do the entry {key!r} of the plans; "
                "use -tr ImbalTrainerSemi, ImbalTrainerSCDL or ImbalTrainerSemiSCDL"
            )


def repair_levels(loss: nn.Module) -> nn.Module:
    """Undo 0/0 in upstream's weights: with a single resolution it zeroes the only weight and then normalises."""
    if isinstance(loss, DeepSupervisionWrapper) and not np.all(np.isfinite(loss.weight_factors)):
        loss.weight_factors = tuple([1.0] + [0.0] * (len(loss.weight_factors) - 1))
    return loss


def record(
    config: ImbalConfig,
    learned: Mapping[str, Any],
    plans: dict[str, Any],
    configuration: str,
    choices: Sequence[Mapping[str, str]] = (),
) -> None:
    """Write the resolved configuration, why it was chosen, and our version into the plans, hence into checkpoints."""
    entry = {**config.to_dict(), "learned": dict(learned), "version": __version__}
    if choices:
        entry["recipe"] = [dict(choice) for choice in choices]
    plans["configurations"][configuration]["imbal"] = entry


def describe(config: ImbalConfig) -> str:
    """One line for the training log."""
    parts = ["nnU-Net's own loss"] if config.base == "nnunet" else []
    parts += [
        f"{t.weight:g} x {t.loss}"
        + (f" from epoch {t.from_epoch}" if t.from_epoch else "")
        + (f", growing for {t.ramp_epochs} epochs" if t.ramp_epochs else "")
        for t in config.terms
        if t.weight
    ]
    if config.semi is not None:
        parts.append(f"{config.semi.consistency:g} x consistency + {config.semi.pseudo_labels:g} x pseudo-labels")
        if config.semi.proportion:
            parts.append(f"{config.semi.proportion:g} x label proportion")
    if config.scdl is not None:
        parts.append(f"{config.scdl.weight:g} x SCDL")
    return " + ".join(parts)


def describe_sampling(sampling: Sampling | None) -> str:
    """One line for the training log."""
    if sampling is None:
        return "nnU-Net's own"
    forced = "nnU-Net's share of" if sampling.forced is None else f"{sampling.forced:g} of the"
    cases = "" if sampling.repeat_factor is None else f", cases repeated below {sampling.repeat_factor:g}"
    return (
        f"{forced} patches forced to an instance (class exponent {sampling.class_exponent:g}, "
        f"instance share {sampling.instance_share:g}, offset {sampling.offset:g}{cases})"
    )


def difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lines that tell where two resolved configurations differ; empty if they agree, whatever version and data say."""
    lines = []
    stored, current = (ImbalConfig.from_dict(each).to_dict() for each in (stored, current))  # with keys of any release
    for key in sorted({*stored, *current}):
        was, now = (_plain(each.get(key)) for each in (stored, current))
        if was != now:
            lines += [f"  {key}:", f"    checkpoint: {was}", f"    now:        {now}"]
    return lines


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _require_support(cls: type[SegmentationLoss], labels: LabelSpec) -> None:
    if labels.has_regions and not cls.supports_regions:
        raise NotImplementedError(f"the loss {cls.name!r} does not support regions; train on labels or drop the term")
    if labels.ignore_label is not None and not cls.supports_ignore:
        raise NotImplementedError(f"the loss {cls.name!r} does not support an ignore label; drop the term")


def full_resolution(levels: Levels) -> Tensor:
    """The first of several resolutions, or the only one."""
    return levels if isinstance(levels, Tensor) else levels[0]


def _without(levels: Levels, rows: int) -> Levels:
    if isinstance(levels, Tensor):
        return levels[rows:] if 0 < rows < len(levels) else levels
    return [full_resolution(_without(level, rows)) for level in levels] if rows else levels


def _connected_zero(output: Levels) -> Tensor:
    # DDP needs every output of the network in the graph, also those our terms do not look at.
    levels = [output] if isinstance(output, Tensor) else output
    return torch.stack([level.float().mean() * 0 for level in levels]).sum()
