"""What fine-tuning changed: before, after, the difference, each with its interval.

One prompt is judged by its share classified as female. Several prompts are judged by
their mean gap, because a share over all of them is balanced as soon as their biases
cancel.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import special

from ddpo_fair.report import run_reader
from ddpo_fair.report.run_reader import Record, Share
from ddpo_fair.statistics import appearance, intervals
from ddpo_fair.statistics.intervals import Interval

SHARE, GAP = "share", "gap"
CAPTION = 20  # pixels at the top of a grid


@dataclasses.dataclass(frozen=True)
class Finding:
    """A change, of one run or of several seeds.

    Attributes:
        kind: SHARE, or GAP: the mean over prompts of 2 |q - target|.
        before: the model as it came; None where nobody measured it.
        after: as last measured; None where nothing followed `before`.
        difference: after - before; None without either.
        target: the wanted share classified as female, or 0 for a gap.
        floor: what a model on target would show of a gap on so few images, else nan.
        fresh: whether images were judged that were never trained on.
        epochs_done: training of `after`.
        num_faces: recognised, in `after`; of the smallest run.
    """

    kind: str
    before: Interval | None
    after: Interval | None
    difference: Interval | None
    target: float
    floor: float
    fresh: bool
    epochs_done: int
    num_faces: int


def ends(record: Record) -> tuple[Share | None, Share | None, bool]:
    """The first and the last measurement of a run, and whether on fresh images.

    Evaluations count first; without two of them, the images of the first and last
    epoch's training.
    """
    return _ends(record, None)


def ends_by_prompt(record: Record) -> list[tuple[str, Share | None, Share | None]]:
    """The first and last measurement of each prompt."""
    names = dict.fromkeys(
        p for line in record.lines for p in run_reader.by_prompt(line)
    )
    if not names:
        first, last, _ = ends(record)
        return [(", ".join(record.prompts) or record.name, first, last)]
    return [(name, *_ends(record, name)[:2]) for name in names]


def of_runs(runs: Sequence[Record]) -> Finding:
    """The finding of runs that differ in their seeds only."""
    singles = [of_run(run) for run in runs]
    if len(singles) == 1:
        return singles[0]
    whole = [single for single in singles if single.difference is not None]
    before = [single.before for single in singles if single.before is not None]
    if len(whole) < 2:
        return whole[0] if whole else singles[0]
    return dataclasses.replace(
        whole[0],
        before=_pooled(runs) or over_seeds(before),
        after=over_seeds([one.after for one in whole]),
        difference=over_seeds([one.difference for one in whole], -1.0),
        floor=float(np.mean([one.floor for one in whole])),
        fresh=all(one.fresh for one in whole),
        epochs_done=min(one.epochs_done for one in whole),
        num_faces=min(one.num_faces for one in whole),
    )


def _pooled(runs: Sequence[Record]) -> Interval | None:
    """q before training from all runs' images, which are of one and the same model."""
    firsts = [ends(run)[0] for run in runs if not is_gap(run)]
    if len(firsts) < len(runs) or not all(s and s.num_faces for s in firsts):
        return None
    female = sum(round(share.q.estimate * share.num_faces) for share in firsts)
    return intervals.wilson(female, sum(share.num_faces for share in firsts))


def is_gap(record: Record) -> bool:
    """Whether a run is judged by its mean gap over prompts."""
    return len(ends_by_prompt(record)) > 1


def of_run(record: Record) -> Finding:
    """The finding of one run."""
    first, last, fresh = ends(record)
    epochs_done = last.epochs_done if last else 0
    num_faces = last.num_faces if last else 0
    parts = [
        (one, two) for _, one, two in ends_by_prompt(record) if one and two is not None
    ]
    if len(parts) > 1:
        return _gap(record, parts, fresh, epochs_done)
    before, after = (share.q if share else None for share in (first, last))
    change = difference(first, last) if first and last else None
    return Finding(
        SHARE,
        before,
        after,
        change,
        record.target,
        math.nan,
        fresh,
        epochs_done,
        num_faces,
    )


def _gap(
    record: Record, parts: list[tuple[Share, Share]], fresh: bool, epochs_done: int
) -> Finding:
    gaps = 2 * np.abs(
        np.array([[one.q.estimate, two.q.estimate] for one, two in parts])
        - record.target
    )
    gaps = gaps[np.isfinite(gaps).all(axis=1)]
    floors = [intervals.noise_floor(two.num_faces) for _, two in parts]
    if not len(gaps):
        return Finding(GAP, None, None, None, 0.0, math.nan, fresh, epochs_done, 0)
    measured = [
        intervals.bootstrap(values, np.random.default_rng(0), num_resamples=4000)
        for values in (gaps[:, 0], gaps[:, 1], gaps[:, 1] - gaps[:, 0])
    ]
    return Finding(
        GAP,
        *measured,
        target=0.0,
        floor=float(np.mean(floors)) if record.target == 0.5 else math.nan,
        fresh=fresh,
        epochs_done=epochs_done,
        num_faces=sum(two.num_faces for _, two in parts),
    )


def gaps_over_time(record: Record, fresh: bool) -> np.ndarray:
    """Epochs done, mean gap over prompts and its noise floor, float [E, 3].

    Args:
        record: of several prompts.
        fresh: evaluations, rather than the images of training.
    """
    read = run_reader.evaluated if fresh else run_reader.trained_on
    rows = []
    for line in record.lines:
        parts = [
            read(part, line["epoch"]) for part in run_reader.by_prompt(line).values()
        ]
        seen = [s for s in parts if s is not None and math.isfinite(s.q.estimate)]
        if seen:
            gaps = [2 * abs(share.q.estimate - record.target) for share in seen]
            floors = [intervals.noise_floor(share.num_faces) for share in seen]
            fair = np.mean(floors) if record.target == 0.5 else math.nan
            rows.append((seen[0].epochs_done, np.mean(gaps), fair))
    return np.array(rows, np.float64).reshape(-1, 3)


def difference(before: Share, after: Share) -> Interval:
    """After - before of independent images; interval of Newcombe (1998, method 10)."""
    change = after.q.estimate - before.q.estimate
    low = math.hypot(after.q.estimate - after.q.low, before.q.high - before.q.estimate)
    high = math.hypot(after.q.high - after.q.estimate, before.q.estimate - before.q.low)
    return Interval(change, change - low, change + high)


def colour_shift(record: Record) -> float:
    """How far the grids' mean colour moved from the first to the last, CIE Delta E.

    About 2 is just visible; seeds are the same, so it is the model that painted anew.
    nan without two readable grids.
    """
    colours = []
    for path in list(record.grids.values())[:: max(len(record.grids) - 1, 1)]:
        try:
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))[CAPTION:]
            colours.append(appearance.mean_colour(pixels))
        except Exception:  # Pillow raises whatever a broken file brings up
            return math.nan
    return (
        float(np.linalg.norm(np.subtract(*colours))) if len(colours) == 2 else math.nan
    )


def over_seeds(seeds: Sequence[Interval], lowest: float = 0.0) -> Interval:
    """The mean of several seeds with Student's t interval, within [lowest, 1].

    It holds both the noise of the images and the luck of the training. Few seeds may
    agree by chance: it is never narrower than the noise of all their images together.
    """
    seeds = [seed for seed in seeds if math.isfinite(seed.estimate)]
    found = np.asarray([seed.estimate for seed in seeds], np.float64)
    if len(found) == 0:
        return Interval(math.nan, lowest, 1.0)
    mean = float(found.mean())
    if len(found) == 1:
        return Interval(mean, lowest, 1.0)
    error = found.std(ddof=1) / math.sqrt(len(found))
    own = np.asarray([(seed.high - seed.low) / 2 for seed in seeds])
    noise = math.sqrt(np.sum(own**2)) / len(found)
    half = max(float(special.stdtrit(len(found) - 1, 0.975) * error), noise)
    return Interval(mean, max(mean - half, lowest), min(mean + half, 1.0))


def _ends(
    record: Record, prompt: str | None
) -> tuple[Share | None, Share | None, bool]:
    evaluations, trainings = [], []
    for line in record.lines:
        part = line if prompt is None else run_reader.by_prompt(line).get(prompt, {})
        for shares, read in (
            (evaluations, run_reader.evaluated),
            (trainings, run_reader.trained_on),
        ):
            share = read(part, line["epoch"])
            if share is not None and math.isfinite(share.q.estimate):
                shares.append(share)
    fresh = len(evaluations) > 1 or not len(trainings) > 1
    shares = evaluations if fresh else trainings
    return (
        shares[0] if shares else None,
        shares[-1] if len(shares) > 1 else None,
        fresh,
    )
