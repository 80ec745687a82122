"""The report's plots as inline SVG that follows the page's light or dark theme."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import Locator, LogLocator, MaxNLocator

from nnunet_imbal.report._words import volume, volume_range

__all__ = [
    "ENOUGH_FOR_BOX",
    "INK",
    "MAX_CLASSES",
    "PRIMARY",
    "class_rows",
    "dice_figure",
    "recall_figure",
    "size_figure",
    "to_svg",
    "volume_axis",
]

MAX_CLASSES = 12
ENOUGH_FOR_BOX = 5  # quartiles of fewer values say more than is known
_LONGEST_NAME = 28

# Stand-ins that matplotlib writes into the SVG and _to_svg swaps for what only the browser knows.
INK, PRIMARY, _MISSED, _GRID = "#010203", "#010204", "#010205", "#010206"
_THEME = {INK: "currentColor", PRIMARY: "var(--found)", _MISSED: "var(--missed)", _GRID: "var(--line)"}
_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": _GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "figure.facecolor": "none",
    "font.size": 10,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": _GRID,
    "xtick.labelcolor": INK,
    "ytick.color": _GRID,
    "ytick.labelcolor": INK,
    "ytick.left": False,
}
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}


def recall_figure(summary: dict[str, Any], noun: str = "lesion") -> Markup:
    """Share of lesions found in each size group (decile), one panel per class.

    Args:
        summary: ``summary`` of the evaluation file; classes without lesions are left out.
        noun: what one of them is called.
    """
    panels = {name: entry["recall_by_size"] for name, entry in summary.items() if entry["recall_by_size"]}

    def draw(figure: Figure) -> None:
        figure.set_layout_engine("constrained", h_pad=0.12)
        axes = figure.subplots(len(panels), squeeze=False)
        for panel, (name, bins) in zip(axes.flat, panels.items(), strict=True):
            _draw_recall(panel, _shorten(name) if len(panels) > 1 else "", bins)
        figure.legend(*axes.flat[0].get_legend_handles_labels(), ncols=2, frameon=False, loc="outside upper right")
        axes.flat[-1].set_xlabel(f"{noun} volume, small to large")

    return to_svg("recall", (9.0, 2.6 * len(panels) + 0.2), draw)


def dice_figure(cases: Sequence[dict[str, Any]], names: Sequence[str]) -> Markup:
    """Dice of every case as a point, from five cases on with a box of the quartiles, one row per class.

    Args:
        cases: ``cases`` of the evaluation file; undefined (null) values are left out.
        names: classes to draw, top to bottom.
    """
    values = [[v for case in cases if (v := case["classes"][name]["dice"]) is not None] for name in names]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        boxes = [dice if len(dice) >= ENOUGH_FOR_BOX else [] for dice in values]
        axes.boxplot(boxes, orientation="horizontal", **_box_style())
        for row, dice in enumerate(values, start=1):
            axes.scatter(dice, row + _spread(len(dice)), s=22, color=PRIMARY, alpha=0.75, linewidths=0, zorder=3)
        axes.set(xlim=(-0.02, 1.02), xlabel="Dice per case (1 = perfect overlap)")
        class_rows(axes, names)

    return to_svg("dice", (9.0, 1.1 + 0.55 * len(names)), draw)


def size_figure(cases: Sequence[dict[str, Any]], names: Sequence[str], noun: str = "lesion") -> Markup:
    """Volume of every lesion, found ones above missed ones, one row per class.

    Args:
        cases: ``cases`` of the evaluation file.
        names: classes to draw, top to bottom.
        noun: what one of the lesions is called.
    """

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for row, name in enumerate(names, start=1):
            lesions = [lesion for case in cases for lesion in case["classes"][name]["lesions"]]
            for found, (offset, colour, marker) in {
                True: (-0.2, PRIMARY, "o"),
                False: (0.2, _MISSED, "X"),
            }.items():
                volumes = [lesion["volume_mm3"] for lesion in lesions if lesion["detected"] == found]
                label = ("found" if found else "missed") if row == 1 else None
                heights = row + offset + 0.5 * _spread(len(volumes))
                axes.scatter(volumes, heights, s=30, color=colour, marker=marker, alpha=0.8, linewidths=0, label=label)
        volume_axis(axes, f"{noun.capitalize()} volume")
        axes.legend(ncols=2, frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0)
        class_rows(axes, names)

    return to_svg("size", (9.0, 1.4 + 0.8 * len(names)), draw)


def _draw_recall(axes: Axes, title: str, bins: Sequence[dict[str, Any]]) -> None:
    heights = [entry["recall"] for entry in bins]
    axes.bar(range(len(bins)), heights, color=PRIMARY, width=0.82, zorder=2, label="found")
    axes.bar(
        range(len(bins)),
        [1 - height for height in heights],
        bottom=heights,
        color=_MISSED,
        alpha=0.28,
        width=0.82,
        zorder=2,
        label="missed",
    )
    for index, entry in enumerate(bins):
        text = f"{entry['detected']}/{entry['lesions']}"
        axes.text(index, 1.03, text, ha="center", va="bottom", fontsize=9)
    labels = [volume_range(entry["low_mm3"], entry["high_mm3"]).replace(" to ", " to\n") for entry in bins]
    axes.set_xticks(range(len(bins)), labels, fontsize=9)
    axes.set_yticks([0, 0.5, 1], ["0 %", "50 %", "100 %"])
    axes.set(ylim=(0, 1.0), ylabel="found")
    axes.set_title(title, pad=20)
    axes.grid(visible=False, axis="x")


def _volume_ticks(low: float, high: float) -> Locator:
    """As many volumes as fit side by side, yet enough for lesions of similar size to have numbers on the axis."""
    if high < 10 * low:
        return MaxNLocator(3)
    return LogLocator(subs=(1, 3)) if high < 1000 * low else LogLocator(numticks=6)


def volume_axis(axes: Axes, label: str) -> None:
    """Volumes along x on a log scale."""
    axes.set(xscale="log", xlabel=label)
    low, high = axes.get_xlim()
    middle = np.sqrt(low * high)
    # Between nearly equal volumes every number would round to the same.
    axes.set_xlim(min(low, middle / 1.5), max(high, middle * 1.5))
    axes.xaxis.set_major_locator(_volume_ticks(*axes.get_xlim()))
    axes.xaxis.set_major_formatter(lambda value, _: volume(value))
    axes.xaxis.set_minor_formatter(lambda *_: "")


def class_rows(axes: Axes, names: Sequence[str]) -> None:
    """One row per class, the first on top."""
    axes.set_yticks(range(1, len(names) + 1), [_shorten(name) for name in names])
    axes.set_ylim(len(names) + 0.5, 0.5)
    axes.grid(visible=False, axis="y")


def _box_style() -> dict[str, Any]:
    line = {"color": INK, "linewidth": 1.2}
    return {
        "widths": 0.5,
        "showfliers": False,
        "boxprops": {"color": INK, "linewidth": 0.8},
        "whiskerprops": {"color": INK, "linewidth": 0.8},
        "capprops": {"linewidth": 0},
        "medianprops": {**line, "linewidth": 2},
    }


def _shorten(name: str) -> str:
    """A name of any length must leave room for the plot."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}"


def _spread(amount: int) -> Any:
    """Fixed up-and-down offsets that keep equal values apart; the same data give the same picture."""
    return 0.16 * np.sin(np.arange(amount) * 2.4)


def to_svg(prefix: str, size: tuple[float, float], draw: Callable[[Figure], None]) -> Markup:
    """Draw a figure in the theme of the page; ``prefix`` keeps its ids apart from those of other figures."""
    stream = io.StringIO()
    with mpl.rc_context({**_STYLE, "svg.hashsalt": prefix}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(stream, format="svg", metadata=_NO_METADATA)
    svg = stream.getvalue()
    svg = svg[svg.index("<svg") :]
    # Several figures share one page: their ids must not collide.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for stand_in, colour in _THEME.items():
        svg = svg.replace(stand_in, colour)
    return Markup(svg)  # noqa: S704 - matplotlib escapes every text it writes
