"""What fine-tuning changed: before, after, the difference, each with its interval.

Of gender alone: one prompt has its share classified as female, several have their mean
bias, because a share over all of them is balanced as soon as their biases cancel. Any
other attribute has its shares, and their distance from the target.
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


@dataclasses.dataclass(frozen=True)
class Change:
    """A change, of one run or of several seeds.

    Attributes:
        kind: SHARE; BIAS, the mean over prompts of 2 |q - target|; or DISTANCE, the
            total variation distance from the target, of several prompts their mean.
        before: the model as it came; None where it was not measured.
        after: as last measured; None where nothing followed `before`.
        difference: after - before; None without either.
        target: the wanted share, else 0; nan where no share is wanted.
        floor: what a model on target would show of a bias or distance on so few
            images, else nan.
        epochs_done: training of `after`.
    """

    kind: str
    before: Interval | None
    after: Interval | None
    difference: Interval | None
    target: float
    floor: float
    epochs_done: int


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
        p for line in record.lines for p in run_reader.by_prompt(line)
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


def of_runs(runs: Sequence[Record]) -> Change:
    """The change of gender in runs that differ in their seeds only."""
    first = None if any(map(by_bias, runs)) else pooled(runs, GENDER)
    return together([of_run(run) for run in runs], first and first.q)


def of_run(record: Record) -> Change:
    """The change of gender in one run."""
    first, last, _ = ends(record)
    epochs_done = last.epochs_done if last else 0
    shares = first and first.q, last and last.q
    one = change(SHARE, *shares, record.target, epochs_done)
    return over_prompts(record, GENDER, epochs_done) or one


def far(
    record: Record, name: str, prompt: str, found: Measurement
) -> tuple[float, float] | None:
    """How far a prompt is from its target, and what a model on target would show.

    Of gender alone it is the bias, 2 |q - target|; None without a target.
    """
    if measurements.of_gender_alone(record):
        floor = bias.noise_floor(found.num_faces) if record.target == 0.5 else math.nan
        return 2 * abs(found.q.estimate - record.target), floor
    target = measurements.target(record, name, [prompt])
    if target is None or not found.num_faces:
        return None
    distance = bias.of_shares(found.counts, target).estimate
    return distance, bias.distance_floor(target, found.num_faces)


def change(
    kind: str,
    before: Interval | None,
    after: Interval | None,
    target: float,
    epochs_done: int,
) -> Change:
    """The change from one measurement to another, of other images."""
    difference = intervals.newcombe(before, after) if after else None
    return Change(kind, before, after, difference, target, math.nan, epochs_done)


def over_prompts(record: Record, name: str, epochs_done: int) -> Change | None:
    """The change of the mean of `far`; None unless several prompts have it."""
    pairs = [
        [far(record, name, prompt, one) for one in (found.first, found.last)]
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
    return Change(kind, *measured, 0.0, float(floors.mean()), epochs_done)


def together(
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


def pooled(runs: Sequence[Record], name: str) -> Measurement | None:
    """All runs' images before training, which are of one and the same model."""
    firsts = [ends(run, None, name).first for run in runs]
    if not all(firsts):
        return None
    counts = np.sum([one.counts for one in firsts], axis=0)
    return Measurement(tuple(counts.tolist()), 0, 0)
