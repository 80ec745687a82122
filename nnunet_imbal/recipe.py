"""The recipe: what a dataset's fingerprint says is imbalanced, and what `ImbalTrainer` does about it.

Nothing imbalanced gives stock nnU-Net. The limits of rare, thin and the rest are those of `nnunet_imbal.fingerprint`,
which no training had a say in. Weights were chosen in short trainings on cases that no study tests on, see
``docs/recipe.md``.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_imbal.config import ImbalConfig, Sampling, Term
from nnunet_imbal.errors import LabelError
from nnunet_imbal.fingerprint import RARE_CASES, Fingerprint, Trait, describe, is_tree
from nnunet_imbal.laterality import paired_labels

__all__ = ["NO_CHANGE", "Choice", "Recipe", "choose_recipe", "print_recipe"]

NO_CHANGE = "no change"
_LATE, _RAMP = 0.5, 0.1  # of the epochs: first one of a centre-line term, and how long its weight then grows
_GENTLE = 0.25  # of CC-Dice: with 1, false alarms ate what it found
_OFTEN = 0.66  # of the patches show a piece; stock nnU-Net forces 0.33, which of a batch of two is one patch
_NAMED = 3  # classes in a sentence


@dataclass(frozen=True)
class Choice:
    """One decision.

    Attributes:
        what: a loss, ``"sampling"`` or ``"mirroring"``, as ``nnunet-imbal configure --without`` takes it, or
            `NO_CHANGE` for a finding that changes nothing.
        reason: one sentence: what was found, in which classes, and what follows.
    """

    what: str
    reason: str

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


@dataclass(frozen=True)
class Recipe:
    """What fits a dataset.

    Attributes:
        config: for the trainer.
        choices: how it came about, in the order of the rules; at least one.
    """

    config: ImbalConfig
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class _Facts:
    fingerprint: Fingerprint
    traits: Mapping[str, Trait]
    epochs: int
    in_slices: bool


def choose_recipe(fingerprint: Fingerprint, *, epochs: int = 1000, patch_size: Sequence[int] | None = None) -> Recipe:
    """Choose losses, sampling and mirroring for a dataset; exactly stock nnU-Net if nothing is imbalanced.

    Args:
        fingerprint: of the dataset.
        epochs: length of the training, by which late terms start.
        patch_size: voxels along each axis of the configuration, 2 or 3; None: 3.

    Example:
        >>> from nnunet_imbal.fingerprint import Together
        >>> balanced = Fingerprint("Dataset001_X", 4, [], 0.0, [1.0] * 3, [64.0] * 3, {}, Together(0, []), "")
        >>> choose_recipe(balanced).config == ImbalConfig()
        True
        >>> print(choose_recipe(balanced).choices[0])
        no change: nothing is imbalanced, stock nnU-Net is made for this
    """
    traits = {trait.key: trait for trait in describe(fingerprint)}
    in_slices = patch_size is not None and len(patch_size) == 2 and fingerprint.shape[0] > 1
    facts = _Facts(fingerprint, traits, epochs, in_slices)
    config, choices = ImbalConfig(), []
    for rule in _RULES:
        if (found := rule(facts, config)) is not None:
            config, choice = found
            choices.append(choice)
    balanced = Choice(NO_CHANGE, "nothing is imbalanced, stock nnU-Net is made for this")
    return Recipe(config, tuple(choices) or (balanced,))


def print_recipe(recipe: Recipe, console: Console | None = None) -> None:
    """Print each choice with its reason."""
    table = Table("ImbalTrainer chooses", "because", box=SIMPLE_HEAD, pad_edge=False)
    for choice in recipe.choices:
        table.add_row(escape(choice.what), escape(choice.reason))
    (console or Console()).print(table)


# ----------------------------------------------------------------------------------------------------------- rules

_Found = tuple[ImbalConfig, Choice] | None


def _sides(facts: _Facts, config: ImbalConfig) -> _Found:
    """Names that tell a side: mirroring exchanges them, or leaves out that axis where one has no partner."""
    classes = {name: each.labels for name, each in facts.fingerprint.classes.items()}
    try:
        pairs = paired_labels(classes)
    except LabelError as error:
        reason = f"{error}, so images are not mirrored from side to side"
    else:
        if not pairs:
            return None
        names = {values[0]: name for name, values in classes.items() if len(values) == 1}
        listed = _listed({f"{names[a]} and {names[b]}": "" for a, b in pairs})
        reason = f"{listed} are mirror images, so a flipped patch exchanges their names"
    return replace(config, mirroring="auto"), Choice("mirroring", reason)


def _pieces_in_loss(facts: _Facts, config: ImbalConfig) -> _Found:
    """Scattered classes: CC-Dice."""
    if (trait := facts.traits.get("scattered")) is None:
        return None
    reason = (
        f"pieces of very different size, most of them between: {_listed(trait.classes)}; the largest rules Dice, "
        "CC-Dice lets each count the same, at the price of more false alarms"
    )
    return replace(config, terms=(*config.terms, Term("cc_dice", _GENTLE))), Choice("cc_dice", reason)


def _pieces_in_patches(facts: _Facts, config: ImbalConfig) -> _Found:
    """Scattered classes, and pieces that stock nnU-Net can never centre on: patches forced to each piece alike."""
    traits = [facts.traits[key] for key in ("scattered", "lost") if key in facts.traits]
    if not traits:
        return None
    classes = dict.fromkeys((name for trait in traits for name in trait.classes), "")
    reason = f"stock nnU-Net aims at the largest pieces of {_listed(classes)}, so forced patches are drawn by piece"
    sampling = Sampling()
    if "scattered" in facts.traits:
        sampling, reason = Sampling(forced=_OFTEN, coin=True), f"{reason}, and two thirds of all patches are forced"
    if "lost" in facts.traits:
        reason += f"; of the smallest third it can never centre on a share: {_listed(facts.traits['lost'].classes)}"
    return replace(config, sampling=sampling), Choice("sampling", reason)


def _rare_in_patches(facts: _Facts, config: ImbalConfig) -> _Found:
    """Classes in few cases: forced patches choose the class first, random ones these cases more often."""
    if (trait := facts.traits.get("rare")) is None:
        return None
    by_volume = Sampling(instance_share=0.0)  # without lesions, small pieces are specks of wrong label
    sampling = replace(config.sampling or by_volume, repeat_factor=RARE_CASES)
    reason = (
        f"in few of {facts.fingerprint.cases} cases: {_listed(trait.classes)}; forced patches choose the class first, "
        "and random ones come from these cases more often"
    )
    return replace(config, sampling=sampling), Choice("sampling", reason)


def _centre_lines(facts: _Facts, config: ImbalConfig) -> _Found:
    """Thin classes, not in pieces, if all classes together are a tree: clDice, late."""
    if (trait := facts.traits.get("thin")) is None:
        return None
    found = f"long and thin, median radius: {_listed(trait.classes)}"
    if (obstacle := _no_vessels(facts, trait)) is not None:
        return config, Choice(NO_CHANGE, f"{found}; but {obstacle}")
    start, ramp = round(_LATE * facts.epochs), round(_RAMP * facts.epochs)
    # One tree: a gap between two classes counts as well, and a wrong name is left to Dice and cross-entropy.
    merge = len(facts.fingerprint.classes) > 1
    term = Term("cldice", kwargs={"alpha": 1.0, "merge": merge}, from_epoch=start, ramp_epochs=ramp)
    tree = " of all of them as one tree" if merge else ""
    reason = (
        f"{found}; a gap costs next to nothing in Dice, clDice looks at the centre lines{tree}, from epoch {start} "
        "on, because it needs a network that has learned where vessels are"
    )
    return replace(config, terms=(*config.terms, term)), Choice(term.loss, reason)


def _no_vessels(facts: _Facts, thin: Trait) -> str | None:
    if facts.in_slices:
        return "in single slices a vessel is a dot"
    scattered = facts.traits["scattered"].classes if "scattered" in facts.traits else {}
    if all(name in scattered for name in thin.classes):
        return "in pieces of very different size, as lesions are and vessels are not"
    return None if is_tree(facts.fingerprint) else "with the other classes they are no tree, and the term acts on all"


def _tiny(facts: _Facts, config: ImbalConfig) -> _Found:
    """Tiny classes that most cases show: stock nnU-Net draws each class of a case alike."""
    if (trait := facts.traits.get("tiny")) is None or config.sampling is not None:
        return None
    listed = _listed(trait.classes)
    reason = f"less than a thousandth of the volume: {listed}; but stock nnU-Net aims at each class of a case alike"
    return config, Choice(NO_CHANGE, reason)


def _not_annotated(facts: _Facts, config: ImbalConfig) -> _Found:
    """Voxels without labels: another trainer learns from them."""
    traits = [facts.traits[key] for key in ("unlabelled", "ignored") if key in facts.traits]
    if not traits:
        return None
    what = "; ".join(trait.what[0].lower() + trait.what[1:] for trait in traits)
    reason = f"{what}; ImbalTrainerSemi learns from them, which changed nothing in our own study"
    return config, Choice(NO_CHANGE, reason)


_RULES: tuple[Callable[[_Facts, ImbalConfig], _Found], ...] = (
    _sides,
    _pieces_in_loss,
    _pieces_in_patches,
    _rare_in_patches,
    _centre_lines,
    _tiny,
    _not_annotated,
)


def _listed(classes: Mapping[str, str]) -> str:
    named = [f"{name} ({value})" if value else name for name, value in classes.items()]
    more = len(named) - _NAMED
    return ", ".join(named) if more < 2 else f"{', '.join(named[:_NAMED])} and {more} more"
