"""Write a configuration with other losses or another sampling into a plans file, so that nobody edits JSON by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nnunet_imbal.config import ImbalConfig, Sampling, Term
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.io import write_atomically
from nnunet_imbal.registry import unknown_name

__all__ = ["add_configuration", "parse_term"]


def parse_term(words: str) -> Term:
    """Read ``name`` or ``name=weight``.

    Raises:
        ConfigError: an unknown loss, or a weight that is no number of at least 0.

    Example:
        >>> parse_term("cc_dice=0.5").weight
        0.5
    """
    name, _, weight = words.partition("=")
    try:
        return Term.from_dict({"loss": name, "weight": float(weight or 1)})
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"the weight in {words!r} is no number; write for example {name}=0.5") from None


def add_configuration(
    plans_file: Path, *, source: str, name: str, terms: Sequence[Term], sampling: Sampling | None = None
) -> Path:
    """Add a configuration that inherits from another one and names its losses and its sampling.

    The former plans stay beside it as ``<plans>.json.bak``. Training writes to a results folder of its own, because
    nnU-Net puts the name of the configuration into it.

    Args:
        plans_file: nnU-Net plans, e.g. ``nnUNet_preprocessed/Dataset004_X/nnUNetPlans.json``.
        source: configuration to inherit from.
        name: name of the new one; no double underscore, nnU-Net splits folder names there.
        terms: losses that are added to nnU-Net's own.
        sampling: how patches are drawn; None: as nnU-Net does.

    Returns:
        The plans file.

    Raises:
        ConfigError: ``source`` is unknown, or ``name`` is taken or not allowed. Nothing is written then.
        DataError: the plans cannot be read or written.
    """
    text, plans = _read(plans_file)
    configurations = plans.get("configurations", {})
    if source not in configurations:
        raise ConfigError(f"{plans_file}: " + unknown_name("configuration", source, configurations))
    if name in configurations:
        raise ConfigError(f"{plans_file} has a configuration {name!r} already; choose another name")
    if not name or "__" in name or "/" in name:
        raise ConfigError(f"{name!r} cannot name a configuration: use letters, digits and single underscores")
    imbal = ImbalConfig(terms=tuple(terms), sampling=sampling).to_dict()
    configurations[name] = {"inherits_from": source, "imbal": imbal}
    write_atomically(plans_file.with_suffix(".json.bak"), text)
    write_atomically(plans_file, json.dumps(plans, indent=4) + "\n")
    return plans_file


def _read(plans_file: Path) -> tuple[str, dict[str, Any]]:
    try:
        text = plans_file.read_text(encoding="utf-8")
        return text, json.loads(text)
    except OSError as error:
        raise DataError(f"cannot read {plans_file}: {error.strerror}; run nnUNetv2_plan_experiment first") from None
    except json.JSONDecodeError as error:
        raise DataError(f"{plans_file} is not valid JSON ({error}); restore it or plan again") from None
