"""What every loss does before its own formula: activation, one-hot, background, ignore mask, full precision."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.modules.loss import _Loss
from typing_extensions import Unpack

from nnunet_imbal.labels import check_labels, plain_tensor, to_one_hot
from nnunet_imbal.ops import one_vs_rest_cross_entropy

__all__ = ["Averaging", "CommonOptions", "SegmentationLoss"]


_LEAST_PROBABILITY = 1e-7  # of which the logarithm is taken when a user gives probabilities


class CommonOptions(TypedDict, total=False):
    """Constructor words shared by all losses; they are MONAI's."""

    include_background: bool | None
    to_onehot_y: bool
    sigmoid: bool
    softmax: bool
    other_act: Callable[[Tensor], Tensor] | None
    reduction: str
    smooth_nr: float
    smooth_dr: float
    batch: bool
    weight: Sequence[float] | Tensor | None


class Averaging(TypedDict):
    """The words that say how many numbers become one."""

    batch: bool
    weight: Tensor | None
    reduction: str


class SegmentationLoss(_Loss):
    """Base of all losses: prepares logits and labels once, so that a loss file holds only its formula.

    Args:
        include_background: whether channel 0 is a class like the others. Default None: no for label maps and
            softmax (their channel 0 is background), yes otherwise (sigmoid channels are all structures).
            A single channel is always kept.
        to_onehot_y: the target is a label map ``(B, 1, *S)`` or ``(B, *S)``.
        sigmoid: apply sigmoid to the input (binary or overlapping regions).
        softmax: apply softmax over the channels of the input (exclusive classes).
        other_act: any other activation, applied to the input.
        reduction: ``"mean"``, ``"sum"`` or ``"none"``, as the loss documents it.
        smooth_nr: added to the numerator of ratios.
        smooth_dr: added to the denominator of ratios.
        batch: treat the batch as one sample.
        weight: one factor per class that takes part (background not counted if left out).

    Raises:
        ValueError: more than one activation, or an unknown reduction.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    summary: ClassVar[str]
    supports_regions: ClassVar[bool]
    supports_ignore: ClassVar[bool]
    uses_spacing: ClassVar[bool]
    takes_errors: ClassVar[bool] = False  # True: `compute` gets each voxel's cross-entropy in place of probabilities
    takes_logits: ClassVar[bool] = False  # True: `compute` gets logits and truth of all channels
    counts_empty: ClassVar[bool] = False  # True: samples of nothing but background have a say as well
    stands_alone: ClassVar[bool] = True  # False: a network that minimises nothing else learns nonsense
    exact_gradient: ClassVar[bool] = True  # False: some factors are constants for the gradient unless detach=False
    mirror_symmetric: ClassVar[bool] = True  # False: of two equal voxels thinning takes the first

    weight: Tensor | None

    def __init__(self, **options: Unpack[CommonOptions]) -> None:
        super().__init__()
        activations = [key for key in ("sigmoid", "softmax", "other_act") if options.get(key)]
        if len(activations) > 1:
            raise ValueError(f"choose one activation, got {' and '.join(activations)}")
        self.sigmoid = options.get("sigmoid", False)
        self.softmax = options.get("softmax", False)
        self.other_act = options.get("other_act")
        self.to_onehot_y = options.get("to_onehot_y", False)
        background = options.get("include_background")
        self.include_background = not (self.softmax or self.to_onehot_y) if background is None else background
        self.reduction = options.get("reduction", "mean")
        if self.reduction not in ("mean", "sum", "none"):
            raise ValueError(f'reduction must be "mean", "sum" or "none", got {self.reduction!r}')
        self.smooth_nr = options.get("smooth_nr", 1e-5)
        self.smooth_dr = options.get("smooth_dr", 1e-5)
        self.batch = options.get("batch", False)
        weight = options.get("weight")
        self.register_buffer("weight", None if weight is None else torch.as_tensor(weight, dtype=torch.float32))
        self._labels_checked = False

    @classmethod
    def options(cls) -> list[str]:
        """Names of all constructor words."""
        own = inspect.signature(cls.__init__).parameters.values()
        return [p.name for p in own if p.kind is p.KEYWORD_ONLY] + list(CommonOptions.__annotations__)

    @property
    def averaging(self) -> Averaging:
        """How components, classes and samples become one number, for the function of the loss."""
        return {"batch": self.batch, "weight": self.weight, "reduction": self.reduction}

    def forward(self, input: Tensor, target: Tensor, mask: Tensor | None = None) -> Tensor:
        """Loss of a batch.

        Args:
            input: ``(B, C, *S)`` logits, or probabilities if no activation was asked for; any float dtype, 2-D or 3-D.
            target: ``(B, C, *S)`` one-hot or regions, or a label map with ``to_onehot_y``; any dtype.
            mask: ``(B, 1, *S)`` or ``(B, *S)``; voxels where it is 0 do not count and get no gradient.

        Returns:
            Scalar (float32, or float64 for float64 input); per sample and class with ``reduction="none"``.

        Raises:
            ValueError: shapes or devices do not fit, or the label map holds an impossible value.
        """
        values, truth, counts = self._prepare(
            plain_tensor(input), plain_tensor(target), None if mask is None else plain_tensor(mask)
        )
        return self.compute(values, truth, counts)

    def compute(self, probs: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
        """The formula: ``probs`` float32/64 and ``target`` bool, both ``(B, C, *S)`` and 0 where ``mask`` is False.

        With ``takes_errors`` the first argument is the cross-entropy of each class against the rest instead, with
        ``takes_logits`` the logits of all channels, and the target has all channels, too.
        """
        raise NotImplementedError

    def _prepare(self, logits: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        if logits.ndim not in (4, 5):
            raise ValueError(f"input must be (B, C, Y, X) or (B, C, Z, Y, X), got shape {tuple(logits.shape)}")
        if mask is not None:
            mask = _with_channel(mask, logits, "mask") != 0
        first = 0 if self.takes_logits or self.include_background or logits.shape[1] == 1 else 1
        truth = self._truth(logits, target, mask, first)
        # Sums over a whole patch overflow in fp16 and stall in bf16; float64 is kept for numerical checks.
        logits = logits if logits.dtype == torch.float64 else logits.float()
        values = self._values(logits, truth, first)
        if mask is not None:
            values, truth = values.masked_fill(~mask, 0), truth & mask
        return values, truth, mask

    def _values(self, logits: Tensor, truth: Tensor, first: int) -> Tensor:
        if self.takes_logits:
            return logits
        return self._errors(logits, truth) if self.takes_errors else self._activate(logits)[:, first:]

    def _activate(self, logits: Tensor) -> Tensor:
        if self.softmax:
            return torch.softmax(logits, dim=1)
        if self.sigmoid:
            return torch.sigmoid(logits)
        return logits if self.other_act is None else self.other_act(logits)

    def _errors(self, logits: Tensor, truth: Tensor) -> Tensor:
        # From logits, because probabilities forget how confident a mistake was.
        first = logits.shape[1] - truth.shape[1]
        if self.softmax:
            return one_vs_rest_cross_entropy(logits, truth)
        if self.sigmoid:
            return F.binary_cross_entropy_with_logits(logits[:, first:], truth.to(logits.dtype), reduction="none")
        probs = self._activate(logits)[:, first:]
        return -torch.where(truth, probs, 1 - probs).clamp(min=_LEAST_PROBABILITY).log()

    def _truth(self, logits: Tensor, target: Tensor, mask: Tensor | None, first: int) -> Tensor:
        if not self.to_onehot_y:
            _require_same("target", target, "input", logits, target.shape == logits.shape)
            return target[:, first:] > 0
        labels = _with_channel(target, logits, "target")
        if mask is not None:
            labels = labels.masked_fill(~mask, 0)
        self._check_labels(labels, logits.shape[1])
        return to_one_hot(labels, logits.shape[1], first)

    def _check_labels(self, labels: Tensor, num_classes: int) -> None:
        # On a GPU every look at a value waits for the device, so only the first batch is looked at there.
        if torch.compiler.is_compiling() or (self._labels_checked and labels.device.type != "cpu"):
            return
        check_labels(labels, num_classes)
        self._labels_checked = True


def _with_channel(tensor: Tensor, logits: Tensor, what: str) -> Tensor:
    if tensor.ndim == logits.ndim - 1:
        tensor = tensor.unsqueeze(1)
    expected = (logits.shape[0], 1, *logits.shape[2:])
    _require_same(what, tensor, "input", logits, tuple(tensor.shape) == expected)
    return tensor


def _require_same(what: str, tensor: Tensor, other: str, reference: Tensor, same_shape: Any) -> None:
    if not same_shape:
        raise ValueError(
            f"{what} has shape {tuple(tensor.shape)}, which does not fit {other} of shape {tuple(reference.shape)}; "
            f"a label map (B, 1, ...) needs to_onehot_y=True, anything else the shape of the input"
        )
    if tensor.device != reference.device:
        raise ValueError(f"{what} is on {tensor.device} but {other} is on {reference.device}; move both to one device")
