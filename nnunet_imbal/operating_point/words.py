"""An operating point as a table for people."""

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from nnunet_imbal.operating_point.channels import ClassPoint
from nnunet_imbal.operating_point.point import ClassChoice, OperatingPoint

__all__ = ["print_operating_point"]

_COLUMNS = (
    ("recall", "recall"),
    ("precision", "precision"),
    ("F1", "f1"),
    ("false+\nper case", "false_positives_per_case"),
    ("Dice", "dice"),
)


def print_operating_point(point: OperatingPoint, console: Console | None = None) -> None:
    """Print for each class what was chosen, why, and what it is worth on cases it was not chosen on."""
    console = console or Console()
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("class", ""):
        table.add_column(heading, overflow="fold")
    for heading in ("threshold", "smallest\nmm³", *(heading for heading, _ in _COLUMNS)):
        table.add_column(heading, justify="right")
    for name, choice in point.classes.items():
        _add_class(table, name, choice)
    console.print(f"{point.cases} validation cases. Wanted: {point.criterion}.", highlight=False)
    console.print(table)
    for name, choice in point.classes.items():
        console.print(f"{name}: {choice.reason}", highlight=False)
    console.print("fitted: on the cases it was chosen on; held out: each case at a point chosen without its fold")


def _add_class(table: Table, name: str, choice: ClassChoice) -> None:
    rows = [(name, "stock", ClassPoint(), choice.stock)]
    if choice.point != ClassPoint():
        rows += [
            ("", "fitted", choice.point, choice.fitted),
            ("", "held out", choice.point, choice.held_out),
        ]
    for heading, kind, at, scores in rows:
        numbers = [_text(getattr(scores, key)) for _, key in _COLUMNS]
        table.add_row(heading, kind, f"{at.threshold:g}", f"{at.min_volume_mm3:g}", *numbers)


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
