"""The imbalance fingerprint: what is rare, small, thin or easily mixed up in a dataset."""

from nnunet_imbal.fingerprint.dataset import (
    ClassFingerprint,
    Fingerprint,
    default_path,
    fingerprint_dataset,
    load_fingerprint,
)
from nnunet_imbal.fingerprint.words import describe, print_fingerprint

__all__ = [
    "ClassFingerprint",
    "Fingerprint",
    "default_path",
    "describe",
    "fingerprint_dataset",
    "load_fingerprint",
    "print_fingerprint",
]
