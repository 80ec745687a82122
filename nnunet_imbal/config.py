"""The ``imbal`` entry of an nnU-Net plans file, checked before any hour of training is spent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.registry import get_loss, unknown_name

__all__ = ["ImbalConfig", "Term"]

_BASES = ("nnunet", "none")


@dataclass(frozen=True)
class Term:
    """One loss added to nnU-Net's own.

    Attributes:
        loss: registered name, see `nnunet_imbal.registry.list_losses`.
        weight: factor, at least 0; a term of weight 0 is not computed at all.
        kwargs: constructor words of the loss, e.g. ``{"connectivity": 6}``.
        from_epoch: first epoch in which the term counts.
    """

    loss: str
    weight: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    from_epoch: int = 0

    @classmethod
    def from_dict(cls, entry: Any) -> "Term":
        """Check one entry of ``terms``.

        Raises:
            ConfigError: an unknown or missing key, a wrong type, an unknown loss.
        """
        values = _mapping("a term", entry, cls)
        if "loss" not in values:
            raise ConfigError(f'a term needs the key "loss", got {dict(values)}')
        name = _typed("loss", values["loss"], str)
        get_loss(name)
        weight = float(_typed("weight", values.get("weight", 1.0), int, float))
        if not 0 <= weight < float("inf"):
            raise ConfigError(f"weight of {name} must be a finite number of at least 0, got {weight}")
        kwargs = _typed("kwargs", values.get("kwargs", {}), Mapping)
        from_epoch = _typed("from_epoch", values.get("from_epoch", 0), int)
        return cls(name, weight, dict(kwargs), from_epoch)


@dataclass(frozen=True)
class ImbalConfig:
    """What `ImbalTrainer` adds to stock nnU-Net.

    Attributes:
        base: ``"nnunet"`` keeps nnU-Net's Dice + CE (or BCE) under the terms, ``"none"`` trains on the terms alone.
        terms: losses that are added.

    Example:
        >>> ImbalConfig.from_dict({"terms": [{"loss": "cc_dice", "weight": 0.5}]}).terms[0].weight
        0.5
        >>> ImbalConfig.from_dict({"terns": []})
        Traceback (most recent call last):
        nnunet_imbal.errors.ConfigError: imbal: unknown key 'terns'; did you mean 'terms'? Known: base, terms, version.
    """

    base: str = "nnunet"
    terms: tuple[Term, ...] = ()

    @classmethod
    def from_dict(cls, entry: Any) -> "ImbalConfig":
        """Check the ``imbal`` entry of a plans file.

        Raises:
            ConfigError: says which key or value is wrong and what would be right.
        """
        values = _mapping("imbal", entry, cls, also=("version",))
        base = _typed("base", values.get("base", "nnunet"), str)
        if base not in _BASES:
            raise ConfigError("imbal: " + unknown_name("base", base, _BASES))
        terms = _typed("terms", values.get("terms", []), list, tuple)
        config = cls(base, tuple(Term.from_dict(term) for term in terms))
        if base == "none" and not any(term.weight for term in config.terms):
            raise ConfigError('imbal: with "base": "none" at least one term needs a weight above 0')
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, every default written out."""
        return {"base": self.base, "terms": [asdict(term) for term in self.terms]}


def _mapping(what: str, entry: Any, cls: type, also: tuple[str, ...] = ()) -> Mapping[str, Any]:
    known = [*cls.__dataclass_fields__, *also]  # type: ignore[attr-defined]
    if not isinstance(entry, Mapping):
        raise ConfigError(f"{what} must be an object with the keys {', '.join(known)}; got {entry!r}")
    for key in entry:
        if key not in known:
            raise ConfigError(f"{what}: " + unknown_name("key", key, known))
    return entry


def _typed(key: str, value: Any, *types: type) -> Any:
    if not isinstance(value, types) or isinstance(value, bool):
        names = " or ".join(t.__name__ for t in types)
        raise ConfigError(f"imbal: {key} must be of type {names}, got {value!r} ({type(value).__name__})")
    return value
