"""How the report words shares, intervals, numbers and times."""

import json
import math
from typing import Any

from ddpo_fair.statistics.intervals import Interval


def percent(share: float) -> str:
    """A share as a percentage, e.g. "49 %"."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else "none"


def with_interval(interval: Interval | None, unit: str = "%") -> str:
    """A share and its interval, e.g. "49 % [41, 58]"."""
    if interval is None:
        return "not measured"
    if not math.isfinite(interval.estimate):
        return "no face"
    space = "\N{NO-BREAK SPACE}"
    low, high = f"{100 * interval.low:.0f}", f"{100 * interval.high:.0f}"
    return f"{100 * interval.estimate:.0f}{space}{unit} [{low},{space}{high}]"


def count(number: int, noun: str) -> str:
    """A number of things, e.g. "3 epochs"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def value_text(value: Any) -> str:
    """A setting as a reader would write it."""
    if isinstance(value, list):
        return ", ".join(value_text(item) for item in value)
    return value if isinstance(value, str) else json.dumps(value)


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def number_text(number: float) -> str:
    """A number in three digits; nothing where it is not finite."""
    return f"{number:.3g}" if math.isfinite(number) else ""
