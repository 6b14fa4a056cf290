"""What fine-tuning changed: before, after, the difference, each with its interval.

One prompt has its share classified as female. Several prompts have their mean bias,
because a share over all of them is balanced as soon as their biases
cancel.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpo_fair.report import run_reader
from ddpo_fair.report.run_reader import Record, Share
from ddpo_fair.statistics import bias, intervals
from ddpo_fair.statistics.intervals import Interval

SHARE, BIAS = "share", "bias"


class Ends(NamedTuple):
    """The first and the last measurement of a run, and whether on fresh images."""

    first: Share | None
    last: Share | None
    fresh: bool


@dataclasses.dataclass(frozen=True)
class Change:
    """A change, of one run or of several seeds.

    Attributes:
        kind: SHARE, or BIAS: the mean over prompts of 2 |q - target|.
        before: the model as it came; None where it was not measured.
        after: as last measured; None where nothing followed `before`.
        difference: after - before; None without either.
        target: the wanted share classified as female, or 0 for a bias.
        floor: what a model on target would show of a bias on so few images, else nan.
        epochs_done: training of `after`.
    """

    kind: str
    before: Interval | None
    after: Interval | None
    difference: Interval | None
    target: float
    floor: float
    epochs_done: int


def ends(record: Record, prompt: str | None = None) -> Ends:
    """The ends of a run, or of one of its prompts.

    Evaluations count first; without two of them, the images of the first and last
    epoch's training.
    """
    evaluations, trainings = (
        run_reader.shares(record, fresh, prompt) for fresh in (True, False)
    )
    fresh = len(evaluations) > 1 or not len(trainings) > 1
    shares = evaluations if fresh else trainings
    first = shares[0] if shares else None
    return Ends(first, shares[-1] if len(shares) > 1 else None, fresh)


def ends_by_prompt(record: Record) -> dict[str, Ends]:
    """The ends of each prompt."""
    names = dict.fromkeys(
        p for line in record.lines for p in run_reader.by_prompt(line)
    )
    if not names:
        return {", ".join(record.prompts) or record.name: ends(record)}
    return {name: ends(record, name) for name in names}


def by_bias(record: Record) -> bool:
    """Whether the figure of a run is its mean bias over prompts."""
    return len(ends_by_prompt(record)) > 1


def of_runs(runs: Sequence[Record]) -> Change:
    """The change of runs that differ in their seeds only."""
    singles = [of_run(run) for run in runs]
    whole = [single for single in singles if single.difference is not None]
    if len(whole) < 2:
        return (whole or singles)[0]
    before = [single.before for single in singles if single.before is not None]
    return dataclasses.replace(
        whole[0],
        before=_pooled(runs) or intervals.over_seeds(before),
        after=intervals.over_seeds([single.after for single in whole]),
        difference=intervals.over_seeds([single.difference for single in whole], -1.0),
        floor=float(np.mean([single.floor for single in whole])),
        epochs_done=min(single.epochs_done for single in whole),
    )


def of_run(record: Record) -> Change:
    """The change of one run."""
    first, last, _ = ends(record)
    pairs = [
        (prompt.first, prompt.last)
        for prompt in ends_by_prompt(record).values()
        if prompt.last is not None
    ]
    epochs_done = last.epochs_done if last else 0
    if len(pairs) > 1:
        return _of_biases(pairs, record.target, epochs_done)
    return Change(
        SHARE,
        first.q if first else None,
        last.q if last else None,
        intervals.newcombe(first.q, last.q) if last else None,
        record.target,
        math.nan,
        epochs_done,
    )


def biases_over_time(record: Record, fresh: bool) -> np.ndarray:
    """Epochs done, mean bias over prompts and its noise floor, float [E, 3].

    Args:
        record: of several prompts.
        fresh: evaluations, rather than the images of training.
    """
    rows = []
    for line in record.lines:
        parts = run_reader.by_prompt(line).values()
        shares = [run_reader.share(part, line["epoch"], fresh) for part in parts]
        seen = [share for share in shares if share is not None and share.num_faces]
        if seen:
            biases = [2 * abs(share.q.estimate - record.target) for share in seen]
            floor = _floor(seen, record.target)
            rows.append((seen[0].epochs_done, np.mean(biases), floor))
    return np.array(rows, np.float64).reshape(-1, 3)


def _of_biases(
    pairs: list[tuple[Share, Share]], target: float, epochs_done: int
) -> Change:
    """The change of the mean bias, from each prompt's first and last measurement."""
    shares = np.array([[one.q.estimate, two.q.estimate] for one, two in pairs])
    before, after = 2 * np.abs(shares - target).T
    measured = [
        intervals.mean(before, share=True),
        intervals.mean(after, share=True),
        intervals.mean(after - before),
    ]
    floor = _floor([two for _, two in pairs], target)
    return Change(BIAS, *measured, 0.0, floor, epochs_done)


def _floor(shares: Sequence[Share], target: float) -> float:
    """The mean bias that a fair model shows; nan for another target than 1/2."""
    if target != 0.5:
        return math.nan
    return float(np.mean([bias.noise_floor(share.num_faces) for share in shares]))


def _pooled(runs: Sequence[Record]) -> Interval | None:
    """q before training from all runs' images, which are of one and the same model."""
    firsts = [ends(run).first for run in runs if not by_bias(run)]
    if len(firsts) < len(runs) or not all(firsts):
        return None
    female = sum(round(share.q.estimate * share.num_faces) for share in firsts)
    return intervals.wilson(female, sum(share.num_faces for share in firsts))
