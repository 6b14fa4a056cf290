"""The page's part about each attribute: tables of its classes, cells of several."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from ddpo_fair.report import changes, formatting, measurements
from ddpo_fair.report.changes import AttributeChange, Change
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.tables import Table
from ddpo_fair.statistics import bias


class Cell(NamedTuple):
    """A cell of a joint table, whose shade says its share, from 0 to 1."""

    share: str
    target: str
    side: str
    shade: float


class Cells(NamedTuple):
    """A joint table: the last attribute's classes are its columns."""

    title: str
    head: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


class Part(NamedTuple):
    """What the page says of an attribute of runs that differ in their seeds only."""

    classes: Table
    cells: Sequence[Cells]
    prompts: Table | None


def of_attribute(found: AttributeChange, runs: Sequence[Record]) -> Part:
    """The tables of an attribute, or of the cells of several."""
    joint = measurements.JOINT in found.name
    return Part(
        _classes(found),
        _cells(found, runs[0]) if joint else (),
        _prompts(found, runs[0]) if len(runs) == 1 else None,
    )


def _classes(found: AttributeChange) -> Table:
    texts, aimed = formatting.with_interval, found.distance is not None
    rows = [
        [name, _target(one.target), texts(one.before), texts(one.after), _points(one)]
        for name, one in found.classes.items()
    ]
    none = [formatting.percent(x) if math.isfinite(x) else "" for x in found.none]
    rows.append(["no class recognised", "", *none, ""])
    if aimed:
        far = [
            texts(x, "points") for x in (found.distance.before, found.distance.after)
        ]
        rows.append(["distance from target", "", *far, _points(found.distance)])
    title = formatting.sentence(formatting.title(found.name))
    head = [title, "Target", "Before", "After", "Difference"]
    kept = [k for k in range(len(head)) if k != 1 or aimed]
    rows = [[row[k] for k in kept] for row in rows]
    return Table([head[k] for k in kept], rows)


def _cells(found: AttributeChange, record: Record) -> list[Cells]:
    """The cells before training and after it."""
    names = found.name.split(measurements.JOINT)
    columns = measurements.classes_of(record, names[-1])
    cells = list(found.classes.items())
    if len(cells) % len(columns) or not cells[0][0].endswith(columns[0]):
        return []
    epochs = formatting.count(cells[0][1].epochs_done, "epoch")
    head = [" and ".join(map(formatting.title, names[:-1])), *columns]
    tables = []
    for title, field in (("Before training", "before"), (f"After {epochs}", "after")):
        if getattr(cells[0][1], field) is None:
            continue
        rows = []
        for start in range(0, len(cells), len(columns)):
            row = cells[start : start + len(columns)]
            name = row[0][0].removesuffix(columns[0]).strip()
            rows.append((name, [_cell(one, field) for _, one in row]))
        tables.append(Cells(title, head, rows))
    return tables


def _cell(change: Change, field: str) -> Cell:
    share, low, high = getattr(change, field)
    side = ""
    if math.isfinite(change.target):
        side = "too many" if low > change.target else ""
        side = "too few" if high < change.target else side
    shade = share if math.isfinite(share) else 0.0
    target = f"target {_target(change.target)}" if math.isfinite(change.target) else ""
    return Cell(formatting.percent(share), target, side, shade)


def _prompts(found: AttributeChange, run: Record) -> Table | None:
    """A row for each of several prompts."""
    ends = changes.ends_by_prompt(run, found.name)
    if len(ends) < 2 or found.distance is None:
        return None
    names = list(found.classes)
    shown = names[:1] if len(names) == 2 else names
    rows = []
    for prompt, (first, last, _) in ends.items():
        target = measurements.target(run, found.name, [prompt])
        row = [prompt]
        for k in range(len(shown)):
            each = [
                formatting.percent(one.shares[k].estimate) if one else "?"
                for one in (first, last)
            ]
            wanted = "" if target is None else f", target {_target(target[k])}"
            row.append(f"{' to '.join(each)}{wanted}")
        for one in (first, last):
            far = one and target is not None and bias.of_shares(one.counts, target)
            row.append(formatting.with_interval(far, "points") if far else "")
        rows.append(row)
    head = ["Prompt", *shown, "Distance before", "Distance after"]
    return Table(head, rows)


def _target(share: float) -> str:
    return formatting.percent(share) if math.isfinite(share) else ""


def _points(change: Change) -> str:
    if change.difference is None:
        return ""
    return formatting.with_interval(change.difference, "points")
