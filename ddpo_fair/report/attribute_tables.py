"""The page's tables of each attribute: of its classes, cells, and prompts."""

import math

from ddpo_fair.report import changes, formatting, measurements
from ddpo_fair.report.changes import AttributeChange, Change
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.tables import Table, without_blanks
from ddpo_fair.statistics import bias


def classes(found: AttributeChange) -> Table:
    """A row for each class, one for images of none, one for the distance."""
    texts = formatting.with_interval
    rows = [
        [name, _target(one.target), texts(one.before), texts(one.after), _points(one)]
        for name, one in found.classes.items()
    ]
    none = [formatting.percent(x) if math.isfinite(x) else "" for x in found.none]
    rows.append(["no class recognised", "", *none, ""])
    if found.distance is not None:
        far = found.distance.before, found.distance.after
        far = [texts(x, "points") for x in far]
        rows.append(["distance from target", "", *far, _points(found.distance)])
    title = formatting.sentence(formatting.title(found.name))
    return without_blanks([title, "Target", "Before", "After", "Difference"], rows)


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


def prompts(found: AttributeChange, run: Record) -> Table | None:
    """A row for each of several prompts."""
    ends = changes.ends_by_prompt(run, found.name)
    if len(ends) < 2 or found.distance is None:
        return None
    names = list(found.classes)
    shown = names[:1] if len(names) == 2 else names
    rows = []
    for prompt, (*pair, _) in ends.items():
        target = measurements.target(run, found.name, [prompt])
        row = [prompt]
        for k in range(len(shown)):
            each = (
                formatting.percent(x.shares[k].estimate) if x else "?" for x in pair
            )
            wanted = "" if target is None else f", target {_target(target[k])}"
            row.append(f"{' to '.join(each)}{wanted}")
        for one in pair:
            far = one and target is not None and bias.of_shares(one.counts, target)
            row.append(formatting.with_interval(far, "points") if far else "")
        rows.append(row)
    return Table(["Prompt", *shown, "Distance before", "Distance after"], rows)


def _target(share: float) -> str:
    return formatting.percent(share) if math.isfinite(share) else ""


def _points(change: Change) -> str:
    found = change.difference
    return "" if found is None else formatting.with_interval(found, "points")
