"""One dictionary from registered name to loss class. Plans choose losses by these names, never by import paths."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from nnunet_imbal.errors import ConfigError

if TYPE_CHECKING:
    from nnunet_imbal.losses._base import SegmentationLoss

__all__ = ["build_loss", "get_loss", "list_losses", "register_loss", "unknown_name"]

_LOSSES: dict[str, type[SegmentationLoss]] = {}

LossClass = TypeVar("LossClass", bound="type[SegmentationLoss]")


def register_loss(name: str, *, paper: str, summary: str) -> Callable[[LossClass], LossClass]:
    """Make a loss known under ``name``; its paper and one-line summary fill the table of methods.

    Raises:
        ValueError: the name is taken, or the class does not say whether it supports regions and ignore masks.
    """

    def register(cls: LossClass) -> LossClass:
        if name in _LOSSES:
            raise ValueError(f"the loss name {name!r} is already taken by {_LOSSES[name].__name__}")
        for fact in ("supports_regions", "supports_ignore", "uses_spacing"):
            if not isinstance(getattr(cls, fact, None), bool):
                raise ValueError(f"{cls.__name__} must say True or False for `{fact}`")
        cls.name, cls.paper, cls.summary = name, paper, summary
        _LOSSES[name] = cls
        return cls

    return register


def list_losses() -> list[str]:
    """Names of all losses, sorted.

    Example:
        >>> "cc_dice" in list_losses()
        True
    """
    _load_catalogue()
    return sorted(_LOSSES)


def get_loss(name: str) -> type[SegmentationLoss]:
    """Class registered under ``name``.

    Raises:
        ConfigError: no such loss; the message offers the nearest name.
    """
    known = list_losses()
    if name not in _LOSSES:
        raise ConfigError(unknown_name("loss", name, known))
    return _LOSSES[name]


def build_loss(name: str, **options: Any) -> SegmentationLoss:
    """Build a loss from its registered name and constructor words.

    Raises:
        ConfigError: unknown loss or option (with the nearest valid name), or a value the loss refuses.

    Example:
        >>> build_loss("cc_dice", softmax=True, connectivity=6).name
        'cc_dice'
        >>> build_loss("cc_dise")
        Traceback (most recent call last):
        nnunet_imbal.errors.ConfigError: unknown loss 'cc_dise'; did you mean 'cc_dice'? Known: ...
    """
    cls = get_loss(name)
    for option in options:
        if option not in cls.options():
            raise ConfigError(f"{name}: " + unknown_name("option", option, cls.options()))
    try:
        return cls(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from error


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Sentence about a misspelt name: the nearest valid one and all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}."


def _load_catalogue() -> None:
    import nnunet_imbal.losses  # noqa: F401  # each loss module registers itself
