"""A MONAI bundle that trains, evaluates and predicts with our losses, sampling and metrics; see ``docs/README.md``.

Its folder in an installed package::

    python -c "import monai_ext.bundle; print(monai_ext.bundle.ROOT)"
"""

from pathlib import Path

__all__ = ["ROOT"]

ROOT = Path(__file__).parent
