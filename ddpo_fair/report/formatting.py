"""How the report words shares, intervals, numbers and settings."""

import json
import math
from collections.abc import Sequence
from typing import Any

from ddpo_fair.learning.goals import JOINT
from ddpo_fair.statistics.intervals import Interval

SPACE = "\N{NO-BREAK SPACE}"


def percent(share: float) -> str:
    """A share as a percentage, e.g. "49 %"."""
    return f"{100 * share:.0f}{SPACE}%" if math.isfinite(share) else "none"


def with_interval(interval: Interval | None, unit: str = "%") -> str:
    """A share and its interval, e.g. "49 % [41, 58]"."""
    if interval is None:
        return "not measured"
    if not math.isfinite(interval.estimate):
        return "no face"
    estimate, low, high = (f"{100 * bound:z.0f}" for bound in interval)  # no -0
    return f"{estimate}{SPACE if unit else ''}{unit} [{low},{SPACE}{high}]"


def title(name: str) -> str:
    """An attribute, or those of a joint goal, in words, e.g. "skin tone"."""
    return name.replace(JOINT, f"{SPACE}×{SPACE}").replace("_", " ")


def sentence(text: str) -> str:
    """`text` with a capital letter."""
    return text[:1].upper() + text[1:]


def listed(texts: Sequence[str]) -> str:
    """Texts as a list in words, e.g. "a, b and c"."""
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def count(number: int, noun: str) -> str:
    """A number of things, e.g. "3 epochs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def value_text(value: Any) -> str:
    """A setting as a reader would write it, a float in six digits."""
    if isinstance(value, list):
        return ", ".join(value_text(item) for item in value)
    if isinstance(value, float) and math.isfinite(value):
        value = float(f"{value:.6g}")
    return value if isinstance(value, str) else json.dumps(value)


def number_text(number: float) -> str:
    """A number in three digits; nothing where it is not finite."""
    if not math.isfinite(number):
        return ""
    return f"{number:,.0f}" if abs(number) >= 1000 else f"{number:.3g}"
