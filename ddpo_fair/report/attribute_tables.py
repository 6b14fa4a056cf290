"""The page's tables of each attribute: of its classes, cells, and prompts."""

import math

from ddpo_fair.report import changes, formatting, measurements
from ddpo_fair.report.changes import AttributeChange, Change
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.tables import Table, without_blanks

RANGES = (
    "Of recognised images, from 0 to 100 %. Hollow: before. Filled: after. Bars: 95 %"
    " intervals. Long tick: the target."
)
HEAD = ("Target", "Before", "After", "Difference")


def classes(found: AttributeChange) -> Table:
    """A row for each class, one for images of none, one for the distance."""
    rows = [[name, *_texts(one)] for name, one in found.classes.items()]
    none = [formatting.percent(x) if math.isfinite(x) else "" for x in found.none]
    rows.append(["no class recognised", "", *none, ""])
    if found.distance is not None:
        rows.append([found.measure, *_texts(found.distance, "points")])
    title = formatting.sentence(formatting.title(found.name))
    return without_blanks([title, *HEAD], rows)


def cells(found: AttributeChange, run: Record) -> Table | None:
    """Of a joint goal the changes of its cells: a column for each last class."""
    names = found.name.split(measurements.JOINT)
    columns = measurements.classes_of(run, names[-1])
    last, whole = columns[0], len(found.classes) % len(columns) == 0
    if len(names) == 1 or not whole or not next(iter(found.classes)).endswith(last):
        return None
    rows = []
    for k, (name, one) in enumerate(found.classes.items()):
        if k % len(columns) == 0:
            rows.append([name.removesuffix(last).strip()])
        rows[-1].append(one)
    return Table([" and ".join(map(formatting.title, names[:-1])), *columns], rows)


def prompts(run: Record, name: str) -> Table | None:
    """Rows for each of several prompts, each with its change to draw.

    Of two classes the first says all; of more the distance stands below them.
    """
    texts, rows, what = measurements.prompts(run), [], "Share"
    if len(texts) < 2:
        return None
    for prompt in texts:
        found = changes.of_attribute([run], name, prompt)
        if found.share:
            what = f"Share classified as {found.share}"
            rows.append([prompt, *_texts(found.figure), found.figure])
            continue
        for class_, one in found.classes.items():
            rows.append([f"{prompt}: {class_}", *_texts(one), one])
        if (far := found.distance) is not None:
            title = f"{prompt}: {found.measure}"
            rows.append([title, *_texts(far, "points"), far])
    return Table(["Prompt", *HEAD, what], rows, "prompts", [RANGES])


def _texts(one: Change, unit: str = "%") -> list[str]:
    """Target, before, after and the difference of a change."""
    wanted = formatting.percent(one.target) if unit == "%" and one.target >= 0 else ""
    ends = [formatting.with_interval(x, unit) for x in (one.before, one.after)]
    moved = one.difference and formatting.with_interval(one.difference, "points")
    return [wanted, *ends, moved or ""]
