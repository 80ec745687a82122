"""Numbers and findings in words a clinician would use."""

import re
from collections.abc import Sequence
from typing import Any

__all__ = [
    "count",
    "false_alarm_sentence",
    "keep_together",
    "lesion_sentence",
    "number",
    "percent",
    "volume",
    "volume_range",
]

_UNDEFINED = "\N{EN DASH}"
_ROUND_VOLUMES = [base * 10.0**power for power in range(-3, 9) for base in (1, 2, 3, 5)]


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


def lesion_sentence(lesions: Sequence[dict[str, Any]]) -> str:
    """Say how many lesions were missed and how small they are.

    Args:
        lesions: entries with ``volume_mm3`` and ``detected``.

    Example:
        >>> found = [{"volume_mm3": 400.0, "detected": True}] * 3
        >>> lesion_sentence([*found, {"volume_mm3": 12.0, "detected": False}])
        '1 of 4 lesions was missed; its volume is 12 mm³.'
    """
    if not lesions:
        return "The reference contains no lesion."
    missed = sorted(lesion["volume_mm3"] for lesion in lesions if not lesion["detected"])
    if not missed:
        return "The only lesion was found." if len(lesions) == 1 else f"All {len(lesions):,} lesions were found."
    if len(missed) == 1:
        return f"1 of {count(len(lesions), 'lesion')} was missed; its volume is {volume(missed[0])}."
    return f"{len(missed):,} of {len(lesions):,} lesions were missed; {_how_small(missed)}."


def false_alarm_sentence(false_alarms: int, cases: int) -> str:
    """Say how often the model marks something that is not there.

    Example:
        >>> false_alarm_sentence(8, 10)
        'There were 8 false alarms in 10 cases (0.8 per case).'
    """
    if not false_alarms:
        return f"There was no false alarm in {count(cases, 'case')}."
    verb = "was" if false_alarms == 1 else "were"
    per_case = f" ({false_alarms / cases:.1f} per case)" if cases > 1 else ""
    return f"There {verb} {count(false_alarms, 'false alarm')} in {count(cases, 'case')}{per_case}."


def _how_small(missed: Sequence[float]) -> str:
    """Describe sorted volumes by the smallest round number that at least four fifths stay below."""
    wanted = -(-4 * len(missed) // 5)
    limit = next((v for v in _ROUND_VOLUMES if missed[wanted - 1] < v), missed[-1])
    larger = sum(v >= limit for v in missed)
    who = {0: "all of them", 1: "all but one"}.get(larger, f"all but {larger}")
    return f"{who} are smaller than {volume(limit)}"
