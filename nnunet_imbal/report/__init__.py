"""Self-contained HTML pages: which lesions a model found and which it missed, and what is imbalanced in a dataset."""

from nnunet_imbal.report._fingerprint import write_fingerprint_page
from nnunet_imbal.report._write import write_report

__all__ = ["write_fingerprint_page", "write_report"]
