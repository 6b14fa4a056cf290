"""What fine-tuning changed: before, after, the difference, each with its interval.

Of each attribute the shares, and their distance from the target: of several prompts its
mean, because shares over all of them are on target as soon as their biases cancel. Of
gender alone that mean is of the bias, 2 |q - target|.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpo_fair.report import measurements, run_reader
from ddpo_fair.report.measurements import GENDER, Measurement
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import bias, intervals
from ddpo_fair.statistics.intervals import Interval

SHARE, BIAS, DISTANCE = "share", "bias", "distance"


class Ends(NamedTuple):
    """The first and the last measurement of a run, and whether on fresh images."""

    first: Measurement | None
    last: Measurement | None
    fresh: bool

    @property
    def difference(self) -> Interval | None:
        """Of the share of the first class."""
        return self.last and intervals.newcombe(self.first.q, self.last.q)

    @property
    def epochs_done(self) -> int:
        """Training of `last`; 0 without it."""
        return self.last.epochs_done if self.last else 0


@dataclasses.dataclass(frozen=True)
class Change:
    """A change, of one run or of several seeds.

    It is a SHARE; a BIAS, the mean over prompts of 2 |q - target|; or a DISTANCE, the
    total variation distance from the target, of several prompts their mean.
    """

    kind: str
    before: Interval | None  # the model as it came; None where it was not measured
    after: Interval | None  # as last measured; None where nothing followed `before`
    difference: Interval | None
    target: float  # the wanted share, else 0; nan where no share is wanted
    floor: float  # what a model on target would show on so few images; nan of a share
    epochs_done: int  # training of `after`

    @property
    def is_clear(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        found = self.difference
        return found is not None and not found.low <= 0 <= found.high


@dataclasses.dataclass(frozen=True)
class AttributeChange:
    """What changed of an attribute, or of the cells of several."""

    name: str  # as in metrics.jsonl
    classes: dict[str, Change]  # of each one's share, with intervals that hold together
    distance: Change | None  # from the target; None where there is none
    none: tuple[float, float]  # the share of images of no class, before and after

    @property
    def figure(self) -> Change:
        """Of gender alone: its mean bias, or the share of the first class."""
        first = next(iter(self.classes.values()))
        by_bias = self.distance is not None and self.distance.kind == BIAS
        return self.distance if by_bias else first


def ends(record: Record, prompt: str | None = None, name: str = GENDER) -> Ends:
    """The ends of an attribute of a run, or of one of its prompts.

    Evaluations count first; without two of them, the images of the first and last
    epoch's training.
    """
    evaluations, trainings = (
        measurements.of_run(record, fresh, name, prompt) for fresh in (True, False)
    )
    fresh = len(evaluations) > 1 or not len(trainings) > 1
    found = evaluations if fresh else trainings
    first = found[0] if found else None
    return Ends(first, found[-1] if len(found) > 1 else None, fresh)


def ends_by_prompt(record: Record, name: str = GENDER) -> dict[str, Ends]:
    """The ends of each prompt."""
    prompts = dict.fromkeys(
        p for line in record.lines for p in run_reader.parts(line, "prompts")
    )
    if not prompts:
        return {", ".join(record.prompts) or record.name: ends(record, None, name)}
    return {prompt: ends(record, prompt, name) for prompt in prompts}


def by_bias(record: Record) -> bool:
    """Whether the figure of a run is its mean over prompts."""
    return len(ends_by_prompt(record)) > 1


def none_share(found: Sequence[Measurement]) -> float:
    """The share of images that were of no class; 0 without any."""
    images = sum(one.num_none + one.num_faces for one in found)
    return sum(one.num_none for one in found) / max(images, 1)


def of_runs(runs: Sequence[Record]) -> list[AttributeChange]:
    """The changes of all attributes in runs that differ in their seeds only."""
    return [_of_attribute(runs, name) for name in measurements.names(runs[0])]


def over_time(record: Record, fresh: bool, name: str = GENDER) -> np.ndarray:
    """Epochs done, the mean of `_far` over prompts, its floor, float [E, 3].

    `fresh` means evaluations, rather than the images of training.
    """
    rows = []
    for line in record.lines:
        parts = run_reader.parts(line, "prompts").items()
        found = {
            x: measurements.of_line(y, line["epoch"], fresh, name) for x, y in parts
        }
        seen = {x: one for x, one in found.items() if one and one.num_faces}
        far = [_far(record, name, *pair) for pair in seen.items()]
        if far and None not in far:
            done = next(iter(seen.values())).epochs_done
            rows.append((done, *np.mean(far, axis=0)))
    return np.array(rows, np.float64).reshape(-1, 3)


def _of_attribute(runs: Sequence[Record], name: str) -> AttributeChange:
    classes = measurements.classes_of(runs[0], name)
    target = measurements.target(runs[0], name, runs[0].prompts)
    found = [ends(run, None, name) for run in runs]
    firsts, before = [one.first for one in found], None
    if all(firsts):  # all runs' images before training are of one and the same model
        before = intervals.goodman(np.sum([one.counts for one in firsts], 0).tolist())
    shares = {}
    for k, class_ in enumerate(classes):
        wanted = math.nan if target is None else float(target[k])
        singles = [
            _change(SHARE, *(one and one.shares[k] for one in pair[:2]), wanted, pair)
            for pair in found
        ]
        shares[class_] = _together(singles, before and before[k], len(classes))
    distance = None
    if target is not None:
        distance = _together([_distance(run, name, target) for run in runs])
    whole = [pair[:2] for pair in found if pair.last is not None]
    none = tuple(map(none_share, zip(*whole, strict=True)))
    return AttributeChange(name, shares, distance, none or (math.nan, math.nan))


def _distance(record: Record, name: str, target: np.ndarray) -> Change:
    """The change of the distance from the target, of several prompts their mean."""
    pair = ends(record, None, name)
    of_prompts = _over_prompts(record, name, pair)
    if of_prompts is not None:
        return of_prompts
    far = [one and bias.of_shares(one.counts, target) for one in pair[:2]]
    newest = pair.last or pair.first
    floor = bias.distance_floor(target, newest.num_faces) if newest else math.nan
    return dataclasses.replace(_change(DISTANCE, *far, 0.0, pair), floor=floor)


def _far(
    record: Record, name: str, prompt: str, found: Measurement
) -> tuple[float, float] | None:
    """How far a prompt is from its target, and what a model on target would show."""
    if measurements.of_gender_alone(record):
        floor = bias.noise_floor(found.num_faces) if record.target == 0.5 else math.nan
        return 2 * abs(found.q.estimate - record.target), floor
    target = measurements.target(record, name, [prompt])
    if target is None or not found.num_faces:
        return None
    distance = bias.of_shares(found.counts, target).estimate
    return distance, bias.distance_floor(target, found.num_faces)


def _change(
    kind: str, before: Interval | None, after: Interval | None, target: float, of: Ends
) -> Change:
    """The change from one measurement to another, of other images."""
    difference = intervals.newcombe(before, after) if after else None
    return Change(kind, before, after, difference, target, math.nan, of.epochs_done)


def _over_prompts(record: Record, name: str, of: Ends) -> Change | None:
    """The change of the mean of `_far`; None unless several prompts have it."""
    pairs = [
        [_far(record, name, prompt, one) for one in (found.first, found.last)]
        for prompt, found in ends_by_prompt(record, name).items()
        if found.last is not None
    ]
    pairs = [pair for pair in pairs if None not in pair]
    if len(pairs) < 2:
        return None
    (before, after), floors = np.array(pairs)[..., 0].T, np.array(pairs)[:, 1, 1]
    measured = [
        intervals.mean(before, share=True),
        intervals.mean(after, share=True),
        intervals.mean(after - before),
    ]
    kind = BIAS if measurements.of_gender_alone(record) else DISTANCE
    return Change(kind, *measured, 0.0, float(floors.mean()), of.epochs_done)


def _together(
    singles: Sequence[Change], before: Interval | None = None, num_classes: int = 2
) -> Change:
    """The change over seeds; `before` of all their images, as they have one model."""
    whole = [single for single in singles if single.difference is not None]
    if len(whole) < 2:
        return (whole or singles)[0]
    befores = [single.before for single in singles if single.before is not None]
    after, difference = (
        intervals.over_seeds([getattr(x, field) for x in whole], lowest, num_classes)
        for field, lowest in (("after", 0.0), ("difference", -1.0))
    )
    return dataclasses.replace(
        whole[0],
        before=before or intervals.over_seeds(befores, 0.0, num_classes),
        after=after,
        difference=difference,
        floor=float(np.mean([single.floor for single in whole])),
        epochs_done=min(single.epochs_done for single in whole),
    )
