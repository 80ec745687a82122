"""One self-contained HTML page that shows which lesions a model found and which it missed."""

from nnunet_imbal.report._write import write_report

__all__ = ["write_report"]
