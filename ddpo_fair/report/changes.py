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

from ddpo_fair.report import measurements
from ddpo_fair.report.measurements import GENDER, Measurement
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import bias, intervals
from ddpo_fair.statistics.intervals import Interval

DISTANCE, MEAN_DISTANCE = "distance from target", "mean distance from target"
MEAN_BIAS = "mean bias"


class Ends(NamedTuple):
    """The first and the last measurement of a run, and whether on fresh images."""

    first: Measurement | None
    last: Measurement | None
    fresh: bool


@dataclasses.dataclass(frozen=True)
class Change:
    """A change of a share, or of a distance from the target, of one run or of seeds."""

    before: Interval | None  # the model as it came; None where it was not measured
    after: Interval | None  # as last measured; None where nothing followed `before`
    difference: Interval | None
    target: float  # the wanted share, else 0; nan where no share is wanted
    floor: float  # what a model on target would show on so few images; nan of a share

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
    measure: str  # what that is: DISTANCE, MEAN_DISTANCE or MEAN_BIAS
    none: tuple[float, float]  # the share of images of no class, before and after
    epochs_done: int  # training of the models as last measured

    @property
    def share(self) -> str:
        """The class whose share says all; "" where the distance from a target does."""
        first, *others = self.classes
        return first if self.measure == DISTANCE and len(others) < 2 else ""

    @property
    def figure(self) -> Change | None:
        """The change of that share, or of the distance."""
        return self.classes[self.share] if self.share else self.distance

    @property
    def unit(self) -> str:
        """Of that figure."""
        return "%" if self.share else "points"


def ends(record: Record, prompt: str | None = None, name: str = GENDER) -> Ends:
    """The ends of an attribute of a run, or of one of its prompts.

    Evaluations count first; without two of them, the images of the first and last
    epoch's training. None where the model as it came was not measured.
    """
    both = [measurements.of_run(record, x, name, prompt) for x in (True, False)]
    begun = [found if found and not found[0].epochs_done else [] for found in both]
    fresh = len(begun[0]) > 1 or not len(begun[1]) > 1
    found = begun[0] if fresh else begun[1]
    first = found[0] if found else None
    return Ends(first, found[-1] if len(found) > 1 else None, fresh)


def none_share(found: Sequence[Measurement]) -> float:
    """The share of images that were of no class; 0 without any."""
    images = sum(one.num_none + one.num_faces for one in found)
    return sum(one.num_none for one in found) / max(images, 1)


def of_runs(runs: Sequence[Record]) -> list[AttributeChange]:
    """The changes of all attributes in runs that differ in their seeds only."""
    return [of_attribute(runs, name) for name in measurements.names(runs[0])]


def over_time(record: Record, fresh: bool, name: str = GENDER) -> np.ndarray:
    """Epochs done, the mean of `_far` over prompts, its floor, float [E, 3].

    `fresh` means evaluations, rather than the images of training.
    """
    found: dict[int, list[tuple[float, float]]] = {}
    for prompt in measurements.prompts(record):
        for one in measurements.of_run(record, fresh, name, prompt):
            if far := _far(record, name, prompt, one):
                found.setdefault(one.epochs_done, []).append(far)
    rows = [(done, *np.mean(found[done], axis=0)) for done in sorted(found)]
    return np.array(rows, np.float64).reshape(-1, 3)


def of_attribute(
    runs: Sequence[Record], name: str, prompt: str | None = None
) -> AttributeChange:
    """The change of an attribute, of one prompt or of all together."""
    classes = measurements.classes_of(runs[0], name)
    prompts = runs[0].prompts if prompt is None else [prompt]
    target = measurements.target(runs[0], name, prompts)
    found = [ends(run, prompt, name) for run in runs]
    firsts, before = [one.first for one in found], None
    if all(firsts):  # all runs' images before training are of one and the same model
        before = intervals.goodman(np.sum([one.counts for one in firsts], 0).tolist())
    shares = {}
    for k, class_ in enumerate(classes):
        wanted = math.nan if target is None else float(target[k])
        pairs = [[one and one.shares[k] for one in pair[:2]] for pair in found]
        singles = [_change(*pair, wanted, math.nan) for pair in pairs]
        shares[class_] = _together(singles, before and before[k], len(classes))
    distance, measure = None, DISTANCE
    if target is not None:
        far = [_distance(pair, target) for pair in found]
        means = [None if prompt else _over_prompts(run, name) for run in runs]
        if all(means):
            alone = measurements.of_gender_alone(runs[0])
            far, measure = means, MEAN_BIAS if alone else MEAN_DISTANCE
        distance = _together(far)
    whole = [pair[:2] for pair in found if pair.last is not None]
    none = tuple(map(none_share, zip(*whole, strict=True))) or (math.nan, math.nan)
    done = min((one.last.epochs_done for one in found if one.last), default=0)
    return AttributeChange(name, shares, distance, measure, none, done)


def _change(
    before: Interval | None, after: Interval | None, target: float, floor: float
) -> Change:
    """The change from one measurement to another, of other images."""
    difference = intervals.newcombe(before, after) if after else None
    return Change(before, after, difference, target, floor)


def _distance(pair: Ends, target: np.ndarray) -> Change:
    """The change of the distance from the target of all prompts' images together."""
    far = [one and bias.of_shares(one.counts, target) for one in pair[:2]]
    newest = pair.last or pair.first
    floor = bias.distance_floor(target, newest.num_faces) if newest else math.nan
    return _change(*far, 0.0, floor)


def _over_prompts(record: Record, name: str) -> Change | None:
    """The change of the mean of `_far`; None unless several prompts have it."""
    pairs = []
    for prompt in measurements.prompts(record):
        found = ends(record, prompt, name)
        far = [one and _far(record, name, prompt, one) for one in found[:2]]
        if None not in far:
            pairs.append(far)
    if len(pairs) < 2:
        return None
    (before, after), floors = np.array(pairs)[..., 0].T, np.array(pairs)[:, 1, 1]
    means = (intervals.mean(x, share=True) for x in (before, after))
    return Change(*means, intervals.mean(after - before), 0.0, float(floors.mean()))


def _far(
    record: Record, name: str, prompt: str, found: Measurement
) -> tuple[float, float] | None:
    """How far a prompt is from its target, and what a model on target would show."""
    target = measurements.target(record, name, [prompt])
    if target is None:
        return None
    scale = 2 if measurements.of_gender_alone(record) else 1  # |female - male|
    far = bias.of_shares(found.counts, target).estimate
    return scale * far, scale * bias.distance_floor(target, found.num_faces)


def _together(
    singles: Sequence[Change], before: Interval | None = None, num_classes: int = 2
) -> Change:
    """The change over seeds; `before` of all their images, as they have one model."""
    whole = [single for single in singles if single.difference is not None]
    if len(whole) < 2:
        return (whole or singles)[0]
    befores = [single.before for single in singles if single.before is not None]
    differences = [single.difference for single in whole]
    return dataclasses.replace(
        whole[0],
        before=before or intervals.over_seeds(befores, 0.0, num_classes),
        after=intervals.over_seeds([x.after for x in whole], 0.0, num_classes),
        difference=intervals.over_seeds(differences, -1.0, num_classes),
        floor=float(np.mean([single.floor for single in whole])),
    )
