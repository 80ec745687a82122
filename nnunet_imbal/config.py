"""The ``imbal`` entry of an nnU-Net plans file, checked before any hour of training is spent."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from nnunet_imbal.errors import ConfigError
from nnunet_imbal.registry import get_loss, unknown_name

__all__ = ["Distributions", "ImbalConfig", "Sampling", "Semi", "Term"]

_BASES = ("nnunet", "none")
_MIRRORING = ("auto", "off", "stock", "swap")
_PREDICTORS = ("student", "teacher")


@dataclass(frozen=True)
class Term:
    """One loss added to nnU-Net's own.

    Attributes:
        loss: registered name, see `nnunet_imbal.registry.list_losses`.
        weight: factor, at least 0; a term of weight 0 is not computed at all.
        kwargs: constructor words of the loss, e.g. ``{"connectivity": 6}``.
        from_epoch: first epoch in which the term counts.
        ramp_epochs: epochs in which its weight then grows from 0 to ``weight`` in equal steps.
    """

    loss: str
    weight: float = 1.0
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    from_epoch: int = 0
    ramp_epochs: int = 0

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
        ramp_epochs = _count("ramp_epochs", values.get("ramp_epochs", 0), 0)
        return cls(name, weight, dict(kwargs), from_epoch, ramp_epochs)


@dataclass(frozen=True)
class Sampling:
    """Which training patches are drawn: forced ones balanced over instances, the others at random.

    Attributes:
        forced: share of patches that are forced to show an instance; None: nnU-Net's own, 0.33.
        class_exponent: see `nnunet_imbal.sampling.InstanceBalancedSampler`.
        instance_share: see `nnunet_imbal.sampling.InstanceBalancedSampler`.
        offset: see `nnunet_imbal.sampling.InstanceBalancedSampler`.
        repeat_factor: cases of random patches by `nnunet_imbal.sampling.case_weights` with this threshold; None:
            each case alike, as nnU-Net does.
        coin: decide for each patch alone whether it is forced, instead of always forcing the last ones of a batch.
            With batch size 1 it is always so, because nnU-Net's rounding would force none.
        min_voxels: smaller instances are no target; counted in preprocessed voxels.
        seed: makes the draws repeatable, as far as the order of nnU-Net's background workers allows; None: nnU-Net's
            own random numbers decide.
    """

    forced: float | None = None
    class_exponent: float = 1.0
    instance_share: float = 0.5
    offset: float = 0.7
    repeat_factor: float | None = None
    coin: bool = False
    min_voxels: int = 1
    seed: int | None = None

    @classmethod
    def from_dict(cls, entry: Any) -> "Sampling":
        """Check the entry ``sampling``.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range.

        Example:
            >>> Sampling.from_dict({"forced": 0.5}).instance_share
            0.5
        """
        values = _mapping("sampling", entry, cls)
        default, inf = cls(), float("inf")
        coin = values.get("coin", default.coin)
        if not isinstance(coin, bool):
            raise ConfigError(f"imbal: coin must be true or false, got {coin!r}")
        return cls(
            forced=_optional(values, "forced", 0, 1),
            class_exponent=_number(values, "class_exponent", default.class_exponent, 0, inf),
            instance_share=_number(values, "instance_share", default.instance_share, 0, 1),
            offset=_number(values, "offset", default.offset, 0, 1),
            repeat_factor=_optional(values, "repeat_factor", 1e-9, 1),
            coin=coin,
            min_voxels=_count("min_voxels", values.get("min_voxels", default.min_voxels), 1),
            seed=None if values.get("seed") is None else _count("seed", values["seed"], 0),
        )


@dataclass(frozen=True)
class Semi:
    """How `ImbalTrainerSemi` learns from voxels labelled ``ignore``: a mean teacher looks at them.

    Attributes:
        decay: of the teacher's running average, see `nnunet_imbal.semi.MeanTeacher`.
        consistency: weight, see `nnunet_imbal.semi.UnlabelledLoss`.
        pseudo_labels: weight, see `nnunet_imbal.semi.UnlabelledLoss`.
        proportion: weight of `nnunet_imbal.losses.LabelProportion` on unlabelled patches; 0.1 is the published one. Off
            by default, because it cost Dice where we tried it.
        threshold: see `nnunet_imbal.semi.ConfidenceGate`.
        floor: see `nnunet_imbal.semi.ConfidenceGate`.
        ramp: share of the epochs in which the weights grow to their full value, see `nnunet_imbal.semi.ramp_up`.
        predict_with: whose weights predict after training and choose the best epoch, ``"student"`` (the network that
            was trained) or ``"teacher"`` (its running average).
    """

    decay: float = 0.99
    consistency: float = 1.0
    pseudo_labels: float = 0.5
    proportion: float = 0.0
    threshold: float = 0.95
    floor: float = 0.5
    ramp: float = 0.2
    predict_with: str = "student"

    @classmethod
    def from_dict(cls, entry: Any) -> "Semi":
        """Check the entry ``semi``.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range.

        Example:
            >>> Semi.from_dict({"threshold": 0.9}).decay
            0.99
        """
        values = _mapping("semi", entry, cls)
        highest = {
            "decay": 1 - 1e-6,
            "consistency": float("inf"),
            "pseudo_labels": float("inf"),
            "proportion": float("inf"),
        }
        numbers = {
            key: _number(values, key, default, 0, highest.get(key, 1))
            for key, default in asdict(cls()).items()
            if isinstance(default, float)
        }
        if not numbers["floor"] <= numbers["threshold"] > 0:
            raise ConfigError("imbal: semi needs a threshold above 0 and a floor that is not above the threshold")
        predict_with = _typed("predict_with", values.get("predict_with", cls.predict_with), str)
        if predict_with not in _PREDICTORS:
            raise ConfigError("imbal: " + unknown_name("predict_with", predict_with, _PREDICTORS))
        return cls(**numbers, predict_with=predict_with)


@dataclass(frozen=True)
class Distributions:
    """SCDL beside the loss: `ImbalTrainerSCDL` and `ImbalTrainerSemiSCDL` keep the features of classes apart.

    Attributes:
        weight: of the whole term, at least 0.
        ramp: share of the epochs in which the weight grows to its full value, see `nnunet_imbal.semi.ramp_up`.
        kwargs: constructor words of `nnunet_imbal.losses.scdl.SCDL`, e.g. ``{"form": "released"}``.
    """

    weight: float = 0.1
    ramp: float = 0.1
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, entry: Any) -> "Distributions":
        """Check the entry ``scdl``.

        Raises:
            ConfigError: an unknown key, a wrong type or a value out of range.
        """
        values = _mapping("scdl", entry, cls)
        weight = _number(values, "weight", cls.weight, 0, float("inf"))
        kwargs = _typed("kwargs", values.get("kwargs", {}), Mapping)
        return cls(weight, _number(values, "ramp", cls.ramp, 0, 1), dict(kwargs))


@dataclass(frozen=True)
class ImbalConfig:
    """What `ImbalTrainer` adds to stock nnU-Net.

    Attributes:
        base: ``"nnunet"`` keeps nnU-Net's Dice + CE (or BCE) under the terms, ``"none"`` trains on the terms alone.
        terms: losses that are added.
        sampling: how patches are drawn; None: nnU-Net's own loader, untouched.
        mirroring: along the axis from left to right, for classes whose names tell a side. ``"stock"`` mirrors images
            and leaves the names, ``"swap"`` exchanges the names of left/right pairs in training and does not mirror
            at test time, ``"off"`` does not mirror at all, ``"auto"`` swaps if all sided classes have a partner, is
            off if one has none, and stock if no class has a side.
        semi: learning from unlabelled voxels, for `ImbalTrainerSemi`; None: they are ignored.
        scdl: class distributions among the features, for `ImbalTrainerSCDL`; None: none.
        unlabelled_share: of the training patches, how many come from cases that nobody annotated, from 0 (these
            are left out) to 0.9. By default half of them with ``semi``, else none.

    Example:
        >>> ImbalConfig.from_dict({"terms": [{"loss": "cc_dice", "weight": 0.5}]}).terms[0].weight
        0.5
        >>> ImbalConfig.from_dict({"terns": []})
        Traceback (most recent call last):
        nnunet_imbal.errors.ConfigError: imbal: unknown key 'terns'; did you mean 'terms'? Known: base, ...
    """

    base: str = "nnunet"
    terms: tuple[Term, ...] = ()
    sampling: Sampling | None = None
    mirroring: str = "stock"
    semi: Semi | None = None
    scdl: Distributions | None = None
    unlabelled_share: float = 0.0

    @classmethod
    def from_dict(cls, entry: Any) -> "ImbalConfig":
        """Check the ``imbal`` entry of a plans file.

        Raises:
            ConfigError: says which key or value is wrong and what would be right.
        """
        values = _mapping("imbal", entry, cls, also=("version", "learned", "recipe"))
        base = _typed("base", values.get("base", "nnunet"), str)
        if base not in _BASES:
            raise ConfigError("imbal: " + unknown_name("base", base, _BASES))
        terms = _typed("terms", values.get("terms", []), list, tuple)
        sampling = None if values.get("sampling") is None else Sampling.from_dict(values["sampling"])
        mirroring = _typed("mirroring", values.get("mirroring", cls.mirroring), str)
        if mirroring not in _MIRRORING:
            raise ConfigError("imbal: " + unknown_name("mirroring", mirroring, _MIRRORING))
        semi = None if values.get("semi") is None else Semi.from_dict(values["semi"])
        scdl = None if values.get("scdl") is None else Distributions.from_dict(values["scdl"])
        share = _number(values, "unlabelled_share", 0.0 if semi is None else 0.5, 0, 0.9)
        config = cls(base, tuple(Term.from_dict(term) for term in terms), sampling, mirroring, semi, scdl, share)
        if base == "none" and not any(term.weight for term in config.terms):
            raise ConfigError('imbal: with "base": "none" at least one term needs a weight above 0')
        return config

    def to_dict(self) -> dict[str, Any]:
        """Plain form for JSON, every default written out."""
        terms = [asdict(term) for term in self.terms]
        sampling = self.sampling and asdict(self.sampling)
        semi, scdl = self.semi and asdict(self.semi), self.scdl and asdict(self.scdl)
        return {
            "base": self.base,
            "terms": terms,
            "sampling": sampling,
            "mirroring": self.mirroring,
            "semi": semi,
            "scdl": scdl,
            "unlabelled_share": self.unlabelled_share,
        }


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


def _number(values: Mapping[str, Any], key: str, default: float, lowest: float, highest: float) -> float:
    number = float(_typed(key, values.get(key, default), int, float))
    if not (lowest <= number <= highest and number < float("inf")):
        raise ConfigError(f"imbal: {key} must be a finite number from {lowest:g} to {highest:g}, got {number:g}")
    return number


def _optional(values: Mapping[str, Any], key: str, lowest: float, highest: float) -> float | None:
    return None if values.get(key) is None else _number(values, key, 0.0, lowest, highest)


def _count(key: str, value: Any, lowest: int) -> int:
    if _typed(key, value, int) < lowest:
        raise ConfigError(f"imbal: {key} must be at least {lowest}, got {value}")
    return int(value)
