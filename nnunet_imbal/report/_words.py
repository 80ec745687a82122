"""Numbers and findings in words a clinician would use."""

import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

__all__ = [
    "code",
    "count",
    "false_alarm_sentence",
    "keep_together",
    "lesion_sentence",
    "number",
    "percent",
    "short_path",
    "volume",
    "volume_range",
]

_UNDEFINED = "\N{EN DASH}"
_ENOUGH_TO_SPLIT = 10


def number(value: float | None, digits: int = 2) -> str:
    """Fixed number of decimals; a dash where the value is not defined.

    Example:
        >>> number(0.8125), number(None)
        ('0.81', '–')
    """
    return _UNDEFINED if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    """Share between 0 and 1 as a whole percentage.

    Example:
        >>> percent(0.254)
        '25 %'
    """
    return _UNDEFINED if value is None else f"{100 * value:.0f} %"


def volume(mm3: float | None) -> str:
    """Volume in mm³, from one millilitre (1000 mm³) on in mL.

    Example:
        >>> volume(12.04), volume(0.5), volume(25_310)
        ('12 mm³', '0.5 mm³', '25.3 mL')
    """
    if mm3 is None:
        return _UNDEFINED
    if mm3 >= 1000:
        litres = mm3 / 1000
        return f"{litres:,.0f} mL" if litres >= 100 else f"{litres:.3g} mL"
    return f"{mm3:.0f} mm³" if mm3 >= 10 else f"{mm3:.2g} mm³"


def volume_range(low: float, high: float) -> str:
    """Two volumes; the unit is written once if both have the same.

    Example:
        >>> volume_range(12, 40), volume_range(914, 1160), volume_range(5, 5)
        ('12 to 40 mm³', '914 mm³ to 1.16 mL', '5 mm³')
    """
    (first, unit), last = volume(low).split(), volume(high)
    if volume(low) == last:
        return last
    return f"{first} to {last}" if last.endswith(unit) else f"{first} {unit} to {last}"


def count(amount: int, noun: str, plural: str = "") -> str:
    """Amount with its noun, in the plural where English wants it.

    Example:
        >>> count(1, "case"), count(0, "false alarm"), count(2, "class", "classes")
        ('1 case', '0 false alarms', '2 classes')
    """
    return f"{amount:,} {noun if amount == 1 else plural or noun + 's'}"


def keep_together(sentence: str) -> str:
    r"""Tie each number to its unit, so that no line ends between them.

    Example:
        >>> keep_together("smaller than 30 mm³")
        'smaller than 30\xa0mm³'
    """
    return re.sub(r"(?<=\d) (?=mm³|mL|%)", "\N{NO-BREAK SPACE}", sentence)


def code(sentence: str) -> Markup:
    """Set what stands between backticks as code.

    Example:
        >>> code("use `cc_dice` & rest")
        Markup('use <code>cc_dice</code> &amp; rest')
    """
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(part) if i % 2 else part for i, part in enumerate(parts))


def short_path(path: str | Path) -> str:
    """Last two parts of a path: enough to recognise it, without the names of people and disks before them.

    Example:
        >>> short_path("/home/anna/trial/labelsTs"), short_path("labelsTs")
        ('…/trial/labelsTs', 'labelsTs')
    """
    # The evaluation may come from Windows.
    parts = [part for part in re.split(r"[\\/]", str(path)) if part]
    return "/".join(parts) if len(parts) < 3 else "\N{HORIZONTAL ELLIPSIS}/" + "/".join(parts[-2:])


def lesion_sentence(lesions: Sequence[dict[str, Any]], noun: str = "lesion") -> str:
    """Say how many lesions were missed, small ones and large ones apart, and how large the largest was.

    Args:
        lesions: entries with ``volume_mm3`` and ``detected``.
        noun: what one of them is called.

    Example:
        >>> lesion_sentence([{"volume_mm3": 8.0, "detected": False}, {"volume_mm3": 30.0, "detected": True}])
        '1 of 2 lesions was missed; its volume is 8 mm³.'
    """
    if not lesions:
        return f"The reference contains no {noun}."
    missed = [lesion["volume_mm3"] for lesion in lesions if not lesion["detected"]]
    who = f"The only {noun}" if len(lesions) == 1 else f"All {len(lesions):,} {noun}s"
    if not missed:
        return f"{who} {'was' if len(lesions) == 1 else 'were'} found."
    if len(missed) == 1:
        first = who if len(lesions) == 1 else f"1 of {count(len(lesions), noun)}"
        return f"{first} was missed; its volume is {volume(missed[0])}."
    largest = volume(max(missed))
    if len(missed) == len(lesions):
        return f"{who} were missed; the largest has {largest}."
    share = f"{len(missed):,} of {len(lesions):,} {noun}s were missed{_by_size(lesions)}"
    return f"{share}; the largest missed one has {largest}."


def false_alarm_sentence(false_alarms: int, cases: int, silent: int = 0) -> str:
    """Say how often the model marks something that is not there, and how often it marks nothing at all.

    Args:
        false_alarms: amount in all cases.
        cases: amount of cases.
        silent: amount of cases where the model marked nothing: no false alarm there is no merit.

    Example:
        >>> false_alarm_sentence(8, 10)
        'There were 8 false alarms in 10 cases (0.8 per case).'
        >>> false_alarm_sentence(0, 5, silent=2)
        'There was no false alarm in 3 cases; in 2 of 5 cases the model marked nothing.'
    """
    if silent == cases:
        return "The model marked nothing." if cases == 1 else f"The model marked nothing in any of the {cases:,} cases."
    nothing = f"; in {silent:,} of {cases:,} cases the model marked nothing" if silent else ""
    if not false_alarms:
        return f"There was no false alarm in {count(cases - silent, 'case')}{nothing}."
    verb = "was" if false_alarms == 1 else "were"
    per_case = f" ({false_alarms / cases:.1f} per case)" if cases > 1 else ""
    return f"There {verb} {count(false_alarms, 'false alarm')} in {count(cases, 'case')}{per_case}{nothing}."


def _by_size(lesions: Sequence[dict[str, Any]]) -> str:
    """Missed lesions below the median volume and from it on; nothing where there are too few to split."""
    middle = median(lesion["volume_mm3"] for lesion in lesions)
    small = [lesion for lesion in lesions if lesion["volume_mm3"] < middle]
    if len(lesions) < _ENOUGH_TO_SPLIT or not small:
        return ""
    large = [lesion for lesion in lesions if lesion["volume_mm3"] >= middle]
    below, above = (sum(not lesion["detected"] for lesion in half) for half in (small, large))
    first = f"{below:,} of the {len(small):,} below the median volume of {volume(middle)}"
    return f": {first}, {above:,} of the other {len(large):,}"
