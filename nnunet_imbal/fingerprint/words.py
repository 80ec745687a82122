"""The fingerprint for people: a table, and what stands out, in sentences."""

from collections.abc import Callable, Iterator
from math import prod
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_imbal.fingerprint.dataset import ClassFingerprint, Fingerprint

__all__ = [
    "BALANCED",
    "RARE_CASES",
    "RARE_VOLUME",
    "Trait",
    "describe",
    "is_scattered",
    "is_thin",
    "is_tree",
    "print_fingerprint",
]

BALANCED = "Nothing is imbalanced: stock nnU-Net is made for this."
RARE_CASES = 0.5  # a class seen in fewer of the labelled cases is rare
RARE_VOLUME = 0.001  # a class with less of the annotated volume is tiny: one voxel in a thousand
_MANY = 3  # components in a case: from here on they are lesions rather than an organ with a speck
_ONE, _SPECK = 0.9, 3  # of the volume in the largest component, and voxels of the others, beside which they are specks
_SPREAD = 10  # largest over smallest component (95 % over 5 %)
_TUBE = 3.0  # tubularity of a tube five times as long as wide
_THIN_VOXELS = 3.0  # radius
_LOST = 0.1  # of the smallest third of the components


def has_specks(found: ClassFingerprint, spacing_mm: list[float]) -> bool:
    """Whether the class is one piece with specks of a few voxels, rather wrong label than lesions."""
    return found.largest_share >= _ONE and found.component_mm3[1] <= _SPECK * prod(spacing_mm)


def is_scattered(found: ClassFingerprint, spacing_mm: list[float]) -> bool:
    """Whether the class comes in several pieces of very different size, as lesions do."""
    if not found.cases or has_specks(found, spacing_mm):
        return False
    return found.components_per_case[3] >= _MANY and found.component_mm3[4] >= _SPREAD * found.component_mm3[0]


def is_thin(found: ClassFingerprint, spacing_mm: list[float]) -> bool:
    """Whether the class is long and a few voxels thin, as vessels are."""
    return found.cases > 0 and found.tubularity >= _TUBE and found.radius_mm[2] < _THIN_VOXELS * min(spacing_mm)


def is_tree(fingerprint: Fingerprint) -> bool:
    """Whether all classes together are long and, along three quarters of their centre lines, a few voxels thin."""
    if len(fingerprint.classes) == 1:
        return is_thin(next(iter(fingerprint.classes.values())), fingerprint.spacing_mm)
    found, most = fingerprint.together, _THIN_VOXELS * min(fingerprint.spacing_mm)
    return bool(found.radius_mm) and found.tubularity >= _TUBE and found.radius_mm[3] < most


class Trait(NamedTuple):
    """Something imbalanced.

    Attributes:
        key: a word for programs: absent, rare, tiny, scattered, thin, lost, mirrored, unlabelled or ignored.
        what: what it is.
        classes: the classes that have it, each with its measure or "".
        advice: what it means for training.
    """

    key: str
    what: str
    classes: dict[str, str]
    advice: str

    def __str__(self) -> str:
        named = ", ".join(f"{name} ({value})" if value else name for name, value in self.classes.items())
        return f"{self.what}: {named}." if named else f"{self.what}."


def describe(fingerprint: Fingerprint) -> list[Trait]:
    """Say in sentences what is imbalanced, and what it means for training; empty if nothing is.

    Example:
        >>> from nnunet_imbal.fingerprint.dataset import Together
        >>> found = Fingerprint("Dataset001_X", 4, ["c9"], 0.0, [1.0] * 3, [64.0] * 3, {}, Together(0, []), "")
        >>> [str(trait) for trait in describe(found)]
        ['Cases without any label: 1 of 5.']
    """
    traits = [trait for trait in _class_traits(fingerprint) if trait.classes]
    if fingerprint.unlabelled:
        number = len(fingerprint.unlabelled)
        what = f"Cases without any label: {number} of {number + fingerprint.cases}"
        traits.append(Trait("unlabelled", what, {}, "Stock nnU-Net learns nothing from them."))
    if fingerprint.ignored_share > 0:
        what = f"Not annotated in labelled cases: {fingerprint.ignored_share:.2g} of the voxels"
        traits.append(Trait("ignored", what, {}, "No loss looks there."))
    return traits


def print_fingerprint(fingerprint: Fingerprint, console: Console | None = None) -> None:
    """Print the table of classes and what stands out."""
    console = console or Console()
    console.print(_table(fingerprint))
    traits = describe(fingerprint)
    for trait in traits:
        console.print(f"- {escape(str(trait))} [dim]{escape(trait.advice)}[/]", highlight=False)
    if not traits:
        console.print(BALANCED)


def _class_traits(fingerprint: Fingerprint) -> Iterator[Trait]:
    shown = {name: each for name, each in fingerprint.classes.items() if each.cases}
    spacing = fingerprint.spacing_mm

    def which(measure: Callable[[ClassFingerprint], str], has: Callable[[ClassFingerprint], bool]) -> dict[str, str]:
        return {name: measure(each) for name, each in shown.items() if has(each)}

    absent = {name: "" for name, each in fingerprint.classes.items() if not each.cases}
    yield Trait(
        "absent",
        "No labelled case shows",
        absent,
        "Nothing can be learnt about them: add cases, or drop the classes.",
    )
    yield Trait(
        "rare",
        f"Rare, of {fingerprint.cases} cases",
        which(lambda each: str(each.cases), lambda each: each.prevalence < RARE_CASES),
        "Most patches never show them: `--sampling` draws them as often as the others.",
    )
    yield Trait(
        "tiny",
        "Tiny, of the annotated volume",
        which(lambda each: f"{100 * each.volume_share:.1g} %", lambda each: each.volume_share < RARE_VOLUME),
        "Dice and cross-entropy hardly notice them; forced patches draw each class of a case alike already.",
    )
    yield Trait(
        "scattered",
        "In pieces of very different size, most of them between",
        which(
            lambda each: f"{each.component_mm3[0]:,.0f} and {each.component_mm3[4]:,.0f} mm³",
            lambda each: is_scattered(each, spacing),
        ),
        "The largest piece rules Dice: `cc_dice` lets each count the same.",
    )
    yield Trait(
        "thin",
        "Long and thin, median radius",
        which(lambda each: f"{each.radius_mm[2]:.2g} mm", lambda each: is_thin(each, spacing)),
        "A gap costs next to nothing in Dice: `cldice` or `agtal` look at the centre lines.",
    )
    yield Trait(
        "lost",
        "Never in the middle of a forced patch of stock nnU-Net, of the smallest third of the pieces",
        which(
            lambda each: f"{each.no_centre:.0%}",
            lambda each: each.no_centre >= _LOST and not has_specks(each, spacing),
        ),
        "`--sampling` remembers voxels of every piece.",
    )
    pairs = sorted({tuple(sorted((name, each.partner))) for name, each in shown.items() if each.partner})
    yield Trait(
        "mirrored",
        "Mirror images of each other",
        {f"{a} and {b}": "" for a, b in pairs},
        "A flipped patch must exchange the names: `ImbalTrainer` does, stock nnU-Net does not.",
    )


def _table(fingerprint: Fingerprint) -> Table:
    table = Table(title=f"{fingerprint.dataset}: {fingerprint.cases} labelled cases", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("class", overflow="fold")
    for column in (
        "cases",
        "% of volume",
        "mm³ per case",
        "pieces per case",
        "mm³ per piece",
        "radius mm",
        "tubularity",
    ):
        table.add_column(column, justify="right")
    for name, found in fingerprint.classes.items():
        table.add_row(escape(name), str(found.cases), *_cells(found))
    return table


def _cells(found: ClassFingerprint) -> list[str]:
    if not found.cases:
        return ["-"] * 6
    return [
        f"{100 * found.volume_share:.2g}",
        _middle(found.volume_mm3),
        f"{found.components_per_case[2]:g}",
        _middle(found.component_mm3),
        f"{found.radius_mm[2]:.2g}",
        f"{found.tubularity:.2g}",
    ]


def _middle(quantiles: list[float]) -> str:
    """Median, and in brackets where nine of ten lie."""
    low, _, median, _, high = (f"{value:,.0f}" for value in quantiles)
    return f"{median} ({low} to {high})"
