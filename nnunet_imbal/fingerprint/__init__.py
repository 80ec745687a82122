"""The imbalance fingerprint: what is rare, small, thin or easily mixed up in a dataset."""

from nnunet_imbal.fingerprint.dataset import (
    FILE_NAME,
    ClassFingerprint,
    Fingerprint,
    Together,
    default_path,
    find_fingerprint,
    fingerprint_dataset,
    load_fingerprint,
)
from nnunet_imbal.fingerprint.words import RARE_CASES, Trait, describe, is_tree, print_fingerprint

__all__ = [
    "FILE_NAME",
    "RARE_CASES",
    "ClassFingerprint",
    "Fingerprint",
    "Together",
    "Trait",
    "default_path",
    "describe",
    "find_fingerprint",
    "fingerprint_dataset",
    "is_tree",
    "load_fingerprint",
    "print_fingerprint",
]
