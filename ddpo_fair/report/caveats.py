"""What should be held against a summary, a sentence each."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from ddpo_fair.report import changes, formatting, measurements, run_reader
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import appearance

WIDE = 0.1  # half an interval that leaves much open
FEW_FACES = 30
NONE_RISE = 0.1  # of the share of unrecognised images: worth a word
COLOUR_SHIFT = 5.0  # CIE Delta E; same-seed grids of untainted runs stay below 2
FEW_PROMPTS = 3  # for the interval over prompts
MARGIN_FALL = 0.15  # of the mean confidence margin
CAPTION = 20  # pixels at the top of a grid


def of_run(run: Record, runs: Sequence[Record]) -> Iterator[str]:
    """The caveats of one run among those that are summarised together."""
    name = f"{run.name}: " if len(runs) > 1 else ""
    for caveat in (*_of_measurements(run, len(runs) == 1), *_of_images(run)):
        yield f"{name}{caveat}"
    tolerance = run_reader.number(run.settings, "train.ratio_tolerance")
    _, deviations = run_reader.series(run, "ratio_deviation")
    worst = max((d for d in deviations if math.isfinite(d)), default=0.0)
    if math.isfinite(tolerance) and worst > tolerance:
        yield (
            f"{name}Sampler and learner disagreed by {worst:.2g} on a probability ratio"
            f" that should be 1 (tolerance {tolerance:g})."
        )
    yield from (f"{name}{note}" for note in run.notes)


def colour_shift(record: Record) -> float:
    """How far the grids' mean colour moved from the first to the last, CIE Delta E.

    About 2 is just visible; seeds are the same, so the model has changed, not the
    noise. nan without two readable grids.
    """
    paths = list(record.grids.values())
    if len(paths) < 2:
        return math.nan
    means = []
    try:
        for path in (paths[0], paths[-1]):
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB"))[CAPTION:]
            means.append(appearance.to_lab(pixels.reshape(-1, 3)).mean(axis=0))
    except Exception:  # Pillow raises whatever a broken file brings up
        return math.nan
    return float(np.linalg.norm(means[0] - means[1]))


def _of_measurements(run: Record, single: bool) -> Iterator[str]:
    """How much was measured, and on what."""
    found = {x: changes.ends(run, None, x) for x in measurements.names(run)}
    if len(run.lines) < run.num_epochs:
        yield (
            f"{len(run.lines)} of {formatting.count(run.num_epochs, 'epoch')} are"
            " finished; the same command continues the run."
        )
    if not any(ends.fresh for ends in found.values()):
        yield (
            "Measured on the images it trained on, for lack of an evaluation on fresh"
            " seeds (eval.images, eval.every_epochs)."
        )
    measured = {x: ends for x, ends in found.items() if ends.last is not None}
    if single and measured:
        last = [ends.last for ends in measured.values()]
        half = max((x.high - x.low) / 2 for one in last for x in one.shares)
        faces = min(one.num_faces for one in last)
        if half > WIDE or faces < FEW_FACES:
            yield (
                f"{faces} faces leave ±{100 * half:.0f} points;"
                " 1,000 (--config.eval.images=1000) would leave ±3."
            )
    for name, (first, last, _) in measured.items():
        before, after = changes.none_share([first]), changes.none_share([last])
        if after > before + NONE_RISE and measurements.JOINT not in name:
            yield (
                f"Images of no recognised {formatting.title(name)} rose from"
                f" {formatting.percent(before)} to {formatting.percent(after)}: part of"
                " the change may be faces that became unclear."
            )
    yield from _on_target_earlier(run)
    if 1 < len(run.prompts) < FEW_PROMPTS:
        yield (
            f"{len(run.prompts)} prompts are too few for an interval that speaks about"
            " other prompts; read the table of prompts."
        )


def _on_target_earlier(run: Record) -> Iterator[str]:
    """An earlier evaluation that held all targets, which the last one does not."""
    if run.settings.get("reward.name") == "shift" or measurements.prompts(run):
        return
    held: dict[int, list[bool]] = {}
    for name in measurements.names(run):
        if (target := measurements.target(run, name, run.prompts)) is not None:
            for one in measurements.of_run(run, True, name):
                held.setdefault(one.epochs_done, []).append(one.holds(target))
    earlier = [done for done, each in held.items() if all(each) and done]
    if earlier and earlier[-1] != list(held)[-1]:
        yield (
            "It was balanced on the way: all targets were held after"
            f" {formatting.count(earlier[-1], 'epoch')}. That checkpoint, or a run that"
            " ends there, is the one to use."
        )


def _of_images(run: Record) -> Iterator[str]:
    """What the images themselves may have lost."""
    _, margins = run_reader.series(run, "eval_polarisation")
    margins = margins[np.isfinite(margins)]
    if len(margins) > 1 and margins[-1] < margins[0] - MARGIN_FALL:
        yield (
            "The classifier is less certain of its faces (mean confidence margin"
            f" {margins[0]:.2f} before, {margins[-1]:.2f} after): look whether balance"
            " comes from ambiguous faces."
        )
    shift = colour_shift(run)
    if shift > COLOUR_SHIFT:
        yield (
            f"The grids' mean colour moved by {shift:.0f} (CIE Delta E; 2 is just"
            " visible): look whether the model tints its images to please the"
            " classifier."
        )
