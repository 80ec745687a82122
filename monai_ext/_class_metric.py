"""What our MONAI metrics share: one score per sample and class, averaged over those that are not NaN."""

from collections.abc import Callable

import numpy as np
import torch
from monai.metrics import CumulativeIterationMetric, do_metric_reduction
from monai.utils import MetricReduction
from numpy.typing import NDArray
from torch import Tensor

from monai_ext._channels import class_masks
from nnunet_imbal.errors import LabelError

__all__ = ["ClassMetric"]


class ClassMetric(CumulativeIterationMetric):
    """One score per sample and class; a subclass says in ``_compute_tensor`` which."""

    def __init__(
        self,
        include_background: bool | None,
        reduction: MetricReduction | str,
        get_not_nans: bool,
        num_classes: int | None,
    ) -> None:
        super().__init__()
        self.include_background = include_background
        self.reduction = reduction
        self.get_not_nans = get_not_nans
        self.num_classes = num_classes

    def aggregate(self, reduction: MetricReduction | str | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """Reduce all scores since the last ``reset()``, as `monai.metrics.do_metric_reduction` does.

        Args:
            reduction: overrides that of the constructor.

        Returns:
            The reduced scores, with the number of scores that are not NaN if ``get_not_nans``. As everywhere in
            MONAI, a mean over NaNs only is 0: only the count, or ``reduction="none"``, tells.

        Raises:
            ValueError: nothing was measured yet.
        """
        scores = self.get_buffer()
        if not isinstance(scores, Tensor):
            raise ValueError(f"nothing to aggregate: call the {type(self).__name__} with predictions and labels first")
        value, not_nans = do_metric_reduction(scores, reduction or self.reduction)
        return (value, not_nans) if self.get_not_nans else value

    def masks(self, y_pred: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
        """Masks ``(B, C, *S)`` of the classes to score in prediction and truth, bool.

        Raises:
            ConfigError: impossible ``num_classes``.
            LabelError: there is no truth, the inputs are not discrete, or they do not share one grid.
        """
        if y is None:
            raise LabelError("the metric compares a prediction with a truth: give both y_pred and y")
        found, truth = (class_masks(each, self.num_classes, self.include_background) for each in (y_pred, y))
        if found.shape != truth.shape:
            raise LabelError(f"prediction {tuple(y_pred.shape)} and truth {tuple(y.shape)} must share one grid")
        return found, truth

    def score_each(
        self, y_pred: Tensor, y: Tensor | None, score: Callable[[NDArray[np.bool_], NDArray[np.bool_]], float]
    ) -> Tensor:
        """Score every sample and class by a function of two masks ``S``: float32 ``(B, C)``."""
        found, truth = self.masks(y_pred, y)
        pairs = zip(found.flatten(0, 1).cpu().numpy(), truth.flatten(0, 1).cpu().numpy(), strict=True)
        return torch.tensor([score(pred, ref) for pred, ref in pairs], device=found.device).view(found.shape[:2])
