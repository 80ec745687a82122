"""The fingerprint for people: a table, and what stands out, in sentences."""

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nnunet_imbal.fingerprint.dataset import ClassFingerprint, Fingerprint

__all__ = ["RARE_CASES", "RARE_VOLUME", "describe", "is_scattered", "is_thin", "print_fingerprint"]

RARE_CASES = 0.5  # a class seen in fewer of the labelled cases is rare
RARE_VOLUME = 0.001  # a class with less of the annotated volume is tiny: one voxel in a thousand
_MANY = 3  # components in a case: from here on they are lesions rather than an organ with a speck
_SPREAD = 10  # largest over smallest component (95 % over 5 %)
_TUBE = 3.0  # tubularity of a tube five times as long as wide
_THIN_VOXELS = 3.0  # radius
_LOST = 0.1  # of the smallest third of the components


def is_scattered(found: ClassFingerprint) -> bool:
    """Whether the class comes in several pieces of very different size, as lesions do."""
    if not found.cases:
        return False
    return found.components_per_case[3] >= _MANY and found.component_mm3[4] >= _SPREAD * found.component_mm3[0]


def is_thin(found: ClassFingerprint, spacing_mm: list[float]) -> bool:
    """Whether the class is long and a few voxels thin, as vessels are."""
    return found.cases > 0 and found.tubularity >= _TUBE and found.radius_mm[2] < _THIN_VOXELS * min(spacing_mm)


def describe(fingerprint: Fingerprint) -> list[str]:
    """Say in sentences what is imbalanced; empty if nothing is.

    Example:
        >>> describe(Fingerprint("Dataset001_X", 4, ["c9"], 0.0, [1.0] * 3, [64.0] * 3, {}, ""))
        ['1 case is unlabelled.']
    """
    said = [sentence for sentence in _traits(fingerprint) if sentence]
    if fingerprint.unlabelled:
        number = len(fingerprint.unlabelled)
        said.append(f"{number} case{' is' if number == 1 else 's are'} unlabelled.")
    if fingerprint.ignored_share > 0:
        said.append(f"{fingerprint.ignored_share:.2%} of the voxels of labelled cases are not annotated.")
    return said


def print_fingerprint(fingerprint: Fingerprint, console: Console | None = None) -> None:
    """Print the table of classes and what stands out."""
    console = console or Console()
    console.print(_table(fingerprint))
    for sentence in describe(fingerprint) or ["Nothing is imbalanced: stock nnU-Net is made for this."]:
        console.print(f"- {escape(sentence)}", highlight=False)


def _traits(fingerprint: Fingerprint) -> Iterator[str]:
    """One sentence per trait, which names the classes that have it."""
    classes = fingerprint.classes
    yield _list("No labelled case shows", {name: "" for name, each in classes.items() if not each.cases})
    shown = {name: each for name, each in classes.items() if each.cases}
    yield _list(
        f"Rare, of {fingerprint.cases} cases",
        {name: f"{each.cases}" for name, each in shown.items() if each.prevalence < RARE_CASES},
    )
    yield _list(
        "Tiny, of the annotated volume",
        {name: f"{each.volume_share:.1g}" for name, each in shown.items() if each.volume_share < RARE_VOLUME},
    )
    yield _list(
        "In pieces of very different size, most of them between",
        {
            name: f"{each.component_mm3[0]:,.0f} and {each.component_mm3[4]:,.0f} mm³"
            for name, each in shown.items()
            if is_scattered(each)
        },
    )
    yield _list(
        "Long and thin, median radius",
        {name: f"{each.radius_mm[2]:.2g} mm" for name, each in shown.items() if is_thin(each, fingerprint.spacing_mm)},
    )
    yield _list(
        "Never in the middle of a forced patch of stock nnU-Net, of the smallest third of the pieces",
        {name: f"{each.no_centre:.0%}" for name, each in shown.items() if each.no_centre >= _LOST},
    )
    pairs = sorted({tuple(sorted((name, each.partner))) for name, each in shown.items() if each.partner})
    yield _list("Mirror images of each other", {f"{a} and {b}": "" for a, b in pairs})


def _list(trait: str, classes: dict[str, str]) -> str:
    named = ", ".join(f"{name} ({value})" if value else name for name, value in classes.items())
    return f"{trait}: {named}." if named else ""


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
