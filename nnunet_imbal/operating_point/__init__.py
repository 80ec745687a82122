"""Where a model decides: a threshold and a smallest volume per class, chosen on the validation cases of its folds.

``docs/operating_point.md`` says what this can do and what it cannot.
"""

from nnunet_imbal.operating_point.channels import Channels, ClassPoint, decide, read_channels, score_maps
from nnunet_imbal.operating_point.choice import Criterion, Scores
from nnunet_imbal.operating_point.point import (
    FILE_NAME,
    ClassChoice,
    OperatingPoint,
    check_model,
    check_target,
    choose_operating_point,
    load_operating_point,
)
from nnunet_imbal.operating_point.words import print_operating_point

__all__ = [
    "FILE_NAME",
    "Channels",
    "ClassChoice",
    "ClassPoint",
    "Criterion",
    "OperatingPoint",
    "Scores",
    "check_model",
    "check_target",
    "choose_operating_point",
    "decide",
    "load_operating_point",
    "print_operating_point",
    "read_channels",
    "score_maps",
]
