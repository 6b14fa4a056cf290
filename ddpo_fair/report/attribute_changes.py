"""What fine-tuning changed of each attribute: shares, and how far from the target."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from ddpo_fair.report import changes, measurements, run_reader
from ddpo_fair.report.changes import Change
from ddpo_fair.report.measurements import GENDER
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import bias


@dataclasses.dataclass(frozen=True)
class AttributeChange:
    """What changed of an attribute, or of the cells of several.

    Attributes:
        name: as in metrics.jsonl.
        classes: the change of the share of each, over all prompts; the intervals of
            one column hold together.
        distance: from the target; None where there is none.
        none: the share of images of no class, before and after.
    """

    name: str
    classes: dict[str, Change]
    distance: Change | None
    none: tuple[float, float]


def of_runs(runs: Sequence[Record]) -> list[AttributeChange]:
    """The changes of all attributes in runs that differ in their seeds only."""
    return [_of_attribute(runs, name) for name in measurements.names(runs[0])]


def over_time(record: Record, fresh: bool, name: str = GENDER) -> np.ndarray:
    """Epochs done, the mean of `changes.far` over prompts, its floor, float [E, 3].

    Args:
        record: of several prompts.
        fresh: evaluations, rather than the images of training.
        name: of the attribute.
    """
    rows = []
    for line in record.lines:
        parts = run_reader.by_prompt(line).items()
        found = {
            x: measurements.of_line(y, line["epoch"], fresh, name) for x, y in parts
        }
        seen = {x: one for x, one in found.items() if one and one.num_faces}
        far = [changes.far(record, name, *pair) for pair in seen.items()]
        if far and None not in far:
            done = next(iter(seen.values())).epochs_done
            rows.append((done, *np.mean(far, axis=0)))
    return np.array(rows, np.float64).reshape(-1, 3)


def _of_attribute(runs: Sequence[Record], name: str) -> AttributeChange:
    classes = measurements.classes_of(runs[0], name)
    target = measurements.target(runs[0], name, runs[0].prompts)
    found = [changes.ends(run, None, name) for run in runs]
    pooled = changes.pooled(runs, name)
    shares = {}
    for k, class_ in enumerate(classes):
        singles = [
            changes.change(
                changes.SHARE,
                first and first.shares[k],
                last and last.shares[k],
                math.nan if target is None else float(target[k]),
                last.epochs_done if last else 0,
            )
            for first, last, _ in found
        ]
        before = pooled and pooled.shares[k]
        shares[class_] = changes.together(singles, before, len(classes))
    distance = None
    if target is not None:
        distance = changes.together([_distance(run, name, target) for run in runs])
    whole = [(first, last) for first, last, _ in found if last is not None]
    none = tuple(map(changes.none_share, zip(*whole, strict=True)))
    return AttributeChange(name, shares, distance, none or (math.nan, math.nan))


def _distance(record: Record, name: str, target: np.ndarray) -> Change:
    """The change of the distance from the target, of several prompts their mean."""
    first, last, _ = changes.ends(record, None, name)
    epochs_done = last.epochs_done if last else 0
    of_prompts = changes.over_prompts(record, name, epochs_done)
    if of_prompts is not None:
        return of_prompts
    pair = [one and bias.of_shares(one.counts, target) for one in (first, last)]
    newest = last or first
    floor = bias.distance_floor(target, newest.num_faces) if newest else math.nan
    found = changes.change(changes.DISTANCE, *pair, 0.0, epochs_done)
    return dataclasses.replace(found, floor=floor)
