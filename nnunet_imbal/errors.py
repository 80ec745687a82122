"""The errors a user can meet. Each message says what came, what was expected and what to do."""

__all__ = ["ConfigError", "DataError", "GeometryError", "ImbalError", "LabelError", "NonFiniteLossError"]


class ImbalError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(ImbalError, ValueError):
    """A loss name, an option or a plans file is not what it should be."""


class DataError(ImbalError, ValueError):
    """A file cannot be read, is empty, or holds values no image or label map can hold."""


class GeometryError(DataError):
    """Two images that must share one grid do not (shape, spacing, origin or direction)."""


class LabelError(DataError):
    """A label map holds values that its dataset does not declare."""


class NonFiniteLossError(ImbalError, ArithmeticError):
    """A loss became NaN or infinite during training."""
