"""What should be held against a verdict, a sentence each."""

import math
from collections.abc import Iterator, Sequence

from ddpo_fair.report import changes, formatting, html, run_reader
from ddpo_fair.report.html import Markup
from ddpo_fair.report.run_reader import Record, Share

WIDE = 0.1  # half an interval that leaves much open
NONE_RISE = 0.1  # of the share of unrecognised pictures: worth a word
COLOUR_SHIFT = 5.0  # CIE Delta E; same-seed grids of untainted runs stay below 2
FEW_PROMPTS = 8  # for the bootstrap over prompts
DECIDED_FALL = 0.15  # of the polarisation


def of_run(run: Record, runs: Sequence[Record]) -> Iterator[Markup]:
    """What should be held against the verdict, a sentence each."""
    name = f"{run.name}: " if len(runs) > 1 else ""
    first, last, fresh = changes.ends(run)
    done = len(run.lines)
    if done < run.num_epochs:
        yield html.text(
            f"{name}{done} of {formatting.count(run.num_epochs, 'epoch')} are finished;"
            " the same command continues the run."
        )
    if not fresh:
        yield html.text(
            f"{name}Judged by the images it trained on, for lack of an evaluation on"
            " fresh seeds (eval.images, eval.every_epochs)."
        )
    if last is not None and len(runs) == 1 and last.num_faces:
        half = (last.q.high - last.q.low) / 2
        if half > WIDE or last.num_faces < 30:
            yield html.text(
                f"{last.num_faces} faces leave ±{100 * half:.0f} points of doubt;"
                " 1,000 (--config.eval.images=1000) would leave ±3."
            )
    if first is not None and last is not None:
        before, after = (none_share([share]) for share in (first, last))
        if after > before + NONE_RISE:
            yield html.text(
                f"{name}Pictures classified as neither rose from"
                f" {formatting.percent(before)} to {formatting.percent(after)}: part of"
                " the change may be faces that became unclear."
            )
        yield from _nearer(run, last, name)
    if 1 < len(run.prompts) < FEW_PROMPTS:
        yield html.text(
            f"{name}{len(run.prompts)} prompts are too few for an interval that speaks"
            " about other prompts; read the table of prompts."
        )
    yield from _measured_doubts(run, name)
    for note in run.notes:
        yield html.text(f"{name}{note}")


def none_share(shares: Sequence[Share]) -> float:
    """The share of pictures that were classified as neither; 0 where nobody said."""
    pictures = sum(share.num_none + share.num_faces for share in shares)
    return sum(share.num_none for share in shares) / max(pictures, 1)


def _nearer(run: Record, last: Share, name: str) -> Iterator[Markup]:
    """An earlier evaluation that held the target, which the last one does not."""
    target = run.target
    if run.settings.get("reward.name") == "shift" or changes.is_gap(run):
        return
    if last.q.low <= target <= last.q.high:
        return
    found = [run_reader.evaluated(line, line["epoch"]) for line in run.lines]
    held = [
        share
        for share in found[1:]
        if share is not None and share.q.low <= target <= share.q.high
    ]
    if held:
        yield html.text(
            f"{name}It was balanced on the way: {formatting.with_interval(held[-1].q)}"
            f" after {formatting.count(held[-1].epochs_done, 'epoch')}. That"
            " checkpoint, or a run that ends there, is the one to use."
        )


def _measured_doubts(run: Record, name: str) -> Iterator[Markup]:
    _, decided = run_reader.series(run, "eval_polarisation")
    decided = decided[[math.isfinite(value) for value in decided]]
    if len(decided) > 1 and decided[-1] < decided[0] - DECIDED_FALL:
        yield html.text(
            f"{name}The classifier is less sure of its faces (polarisation"
            f" {decided[0]:.2f} before, {decided[-1]:.2f} after): look whether balance"
            " comes from ambiguous faces."
        )
    shift = changes.colour_shift(run)
    if shift > COLOUR_SHIFT:
        yield html.text(
            f"{name}The grids' mean colour moved by {shift:.0f} (CIE Delta E; 2 is just"
            " visible): look whether the model tints its pictures to please the"
            " classifier."
        )
    tolerance = run_reader.number(run.settings, "train.ratio_tolerance")
    _, deviations = run_reader.series(run, "ratio_deviation")
    worst = max((d for d in deviations if math.isfinite(d)), default=0.0)
    if math.isfinite(tolerance) and worst > tolerance:
        yield html.text(
            f"{name}Sampler and learner disagreed by {worst:.2g} on a probability ratio"
            f" that should be 1 (tolerance {tolerance:g})."
        )
