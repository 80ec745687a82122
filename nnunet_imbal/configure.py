"""Write a configuration with other losses or another sampling into a plans file, so that nobody edits JSON by hand."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nnunet_imbal.config import ImbalConfig, Sampling, Term
from nnunet_imbal.errors import ConfigError, DataError
from nnunet_imbal.io import write_atomically
from nnunet_imbal.registry import unknown_name

__all__ = ["add_configuration", "edit", "parse_term", "patch_size"]


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


def edit(
    config: ImbalConfig, *, terms: Sequence[Term] = (), sampling: Sampling | None = None, without: Sequence[str] = ()
) -> ImbalConfig:
    """A configuration with some parts put in the place of its own, or left out.

    Args:
        config: what to start from.
        terms: each takes the place of the term with the same loss, or is added.
        sampling: takes the place of what there is, unless it is None.
        without: names of losses, ``"sampling"`` or ``"mirroring"``.

    Raises:
        ConfigError: something to leave out is not there.

    Example:
        >>> lesions = ImbalConfig(terms=(Term("cc_dice"),), sampling=Sampling())
        >>> edited = edit(lesions, terms=[Term("cc_dice", 0.5)], without=["sampling"])
        >>> edited.terms[0].weight, edited.sampling
        (0.5, None)
    """
    parts = {term.loss: term for term in (*config.terms, *terms)}
    changed = {"sampling": config.sampling is not None, "mirroring": config.mirroring != "stock"}
    there = [*parts, *(name for name, is_changed in changed.items() if is_changed)]
    for name in without:
        if name not in there:
            raise ConfigError("cannot leave out: " + unknown_name("part of the recipe", name, there))
    return replace(
        config,
        terms=tuple(term for name, term in parts.items() if name not in without),
        sampling=None if "sampling" in without else sampling or config.sampling,
        mirroring="stock" if "mirroring" in without else config.mirroring,
    )


def patch_size(plans_file: Path, configuration: str) -> list[int]:
    """Voxels along each axis of the patches of a configuration, which it may inherit.

    Raises:
        ConfigError: there is no such configuration.
        DataError: the plans cannot be read, or name no patch size.
    """
    configurations = _read(plans_file)[1].get("configurations", {})
    name, seen = configuration, set()
    while name not in seen:
        if name not in configurations:
            raise ConfigError(f"{plans_file}: " + unknown_name("configuration", name, configurations))
        if "patch_size" in configurations[name]:
            return list(configurations[name]["patch_size"])
        seen.add(name)
        name = configurations[name].get("inherits_from", name)
    raise DataError(f"{plans_file}: the configuration {configuration!r} has no patch_size; plan again")


def add_configuration(plans_file: Path, *, source: str, name: str, config: ImbalConfig) -> Path:
    """Add a configuration that inherits from another one and names its losses, sampling and mirroring.

    The former plans stay beside it as ``<plans>.json.bak``. Training writes to a results folder of its own, because
    nnU-Net puts the name of the configuration into it.

    Args:
        plans_file: nnU-Net plans, e.g. ``nnUNet_preprocessed/Dataset004_X/nnUNetPlans.json``.
        source: configuration to inherit from.
        name: name of the new one; no double underscore, nnU-Net splits folder names there.
        config: what the trainer does.

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
    configurations[name] = {"inherits_from": source, "imbal": config.to_dict()}
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
