"""The verdict on a fine-tuning: one sentence, and what should be held against it."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from ddpo_fair.fairness import findings, markup, records
from ddpo_fair.fairness.findings import Finding
from ddpo_fair.fairness.markup import Markup
from ddpo_fair.fairness.records import Record
from ddpo_fair.fairness.statistics import Interval

WIDE = 0.1  # half an interval that leaves much open
NONE_RISE = 0.1  # of the share of unrecognised pictures: worth a word
COLOUR_SHIFT = 5.0  # CIE Delta E; same-seed grids of untainted runs stay below 2
FEW_PROMPTS = 8  # for the bootstrap over prompts
DECIDED_FALL = 0.15  # of the polarisation


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A word, the sentence that means it, and the reasons for doubt."""

    word: str
    sentence: Markup
    doubts: tuple[Markup, ...]
    finding: Finding


def of_runs(runs: Sequence[Record]) -> Verdict:
    """The verdict on runs that differ in their seeds only."""
    finding = findings.of_runs(runs)
    word = _word(finding, runs[0].settings)
    doubts = tuple(dict.fromkeys(d for run in runs for d in _doubts(run, runs)))
    return Verdict(word, _sentence(finding, word, runs), doubts, finding)


def percent(share: float) -> str:
    """A share as a percentage, e.g. "49 %"."""
    return f"{100 * share:.0f}\N{NO-BREAK SPACE}%" if math.isfinite(share) else "none"


def with_interval(interval: Interval | None, unit: str = "%") -> str:
    """A share and its interval, e.g. "49 % [41, 58]"."""
    if interval is None:
        return "not measured"
    if not math.isfinite(interval.estimate):
        return "no face"
    space = "\N{NO-BREAK SPACE}"
    low, high = f"{100 * interval.low:.0f}", f"{100 * interval.high:.0f}"
    return f"{100 * interval.estimate:.0f}{space}{unit} [{low},{space}{high}]"


def _word(finding: Finding, settings: dict[str, Any]) -> str:
    before, after, change = finding.before, finding.after, finding.difference
    if before is None:
        return "Not measured"
    if after is None or change is None:
        return "Nothing to compare yet"
    moved = not change.low <= 0 <= change.high
    if finding.kind == findings.GAP:
        if not moved:
            return "No clear change"
        return "More balanced" if change.estimate < 0 else "Less balanced"
    if settings.get("reward.name") == "shift":
        if not moved:
            return "No clear change"
        wanted = {"female": 1, "male": -1}.get(settings.get("reward.target_class"))
        wanted = wanted or (1 if before.estimate < finding.target else -1)
        return "Shifted" if change.estimate * wanted > 0 else "Shifted the wrong way"
    return _word_of_share(finding, moved)


def _word_of_share(finding: Finding, moved: bool) -> str:
    before, after, target = finding.before, finding.after, finding.target
    name = "Balanced" if target == 0.5 else "On target"
    if after.low <= target <= after.high:
        if before.low <= target <= before.high:
            return f"{name}, as before"
        return name if moved else "No clear change"
    if not moved:
        return "No clear change"
    if (before.estimate - target) * (after.estimate - target) < 0:
        return "Overshot"
    nearer = abs(after.estimate - target) < abs(before.estimate - target)
    return "Closer" if nearer else "Further away"


def _sentence(finding: Finding, word: str, runs: Sequence[Record]) -> Markup:
    after = finding.after
    prompts = runs[0].prompts
    seeds = f", over {len(runs)} seeds" if len(runs) > 1 else ""
    what = markup.quoted(prompts[0]) if len(prompts) == 1 else "the prompts"
    if finding.before is None:
        return markup.text("No epoch has measured the share of female yet.")
    if after is None:
        text = f"Before training, {with_interval(finding.before)} of the recognised"
        return markup.join([text, " faces for ", what, " are classified as female."])
    when = f"After {_count(finding.epochs_done, 'epoch')}{seeds}, "
    if finding.kind == findings.GAP:
        floor = ""
        if math.isfinite(finding.floor):
            floor = (
                f"; on so few images a perfectly fair model would show about"
                f" {100 * finding.floor:.0f}"
            )
        return markup.text(
            f"{when}the mean gap between female and male over {len(prompts)} prompts is"
            f" {with_interval(after, 'points')}, from"
            f" {with_interval(finding.before, 'points')} before training{floor}."
        )
    return markup.join(
        [
            f"{when}{with_interval(after)} of the recognised faces for ",
            what,
            f" are classified as female, from {with_interval(finding.before)} before"
            " training: ",
            _meaning(finding, word),
        ]
    )


def _meaning(finding: Finding, word: str) -> str:
    """What follows the colon."""
    target = percent(finding.target)
    after = finding.after
    inside = after.low <= finding.target <= after.high
    change = with_interval(finding.difference, "points")
    if word.startswith("Shifted"):
        return f"a shift of {change}."
    if word == "No clear change":
        return f"so many images cannot tell this from no change ({change})."
    if inside:
        return f"the target of {target} lies within the interval."
    side = "below" if after.high < finding.target else "above"
    return (
        f"still {side} the target of {target}."
        if word != "Overshot"
        else (f"now {side} the target of {target}.")
    )


def _doubts(run: Record, runs: Sequence[Record]) -> Iterator[Markup]:
    """What should be held against the verdict, a sentence each."""
    name = f"{run.name}: " if len(runs) > 1 else ""
    first, last, fresh = findings.ends(run)
    done = len(run.lines)
    if done < run.num_epochs:
        yield markup.text(
            f"{name}{done} of {_count(run.num_epochs, 'epoch')} are finished; the same"
            " command continues the run."
        )
    if not fresh:
        yield markup.text(
            f"{name}Judged by the images it trained on, for lack of an evaluation on"
            " fresh seeds (eval.images, eval.every_epochs)."
        )
    if last is not None and len(runs) == 1 and last.num_faces:
        half = (last.q.high - last.q.low) / 2
        if half > WIDE or last.num_faces < 30:
            yield markup.text(
                f"{last.num_faces} faces leave ±{100 * half:.0f} points of doubt;"
                " 1,000 (--config.eval.images=1000) would leave ±3."
            )
    if first is not None and last is not None:
        rates = [
            share.num_none / max(share.num_none + share.num_faces, 1)
            for share in (first, last)
        ]
        if rates[1] > rates[0] + NONE_RISE:
            yield markup.text(
                f"{name}Pictures recognised as neither rose from {percent(rates[0])} to"
                f" {percent(rates[1])}: part of the change may be faces that became"
                " unclear."
            )
    if 1 < len(run.prompts) < FEW_PROMPTS:
        yield markup.text(
            f"{name}{len(run.prompts)} prompts are too few for an interval that speaks"
            " about other prompts; read the table of prompts."
        )
    yield from _measured_doubts(run, name)
    for note in run.notes:
        yield markup.text(f"{name}{note}")


def _measured_doubts(run: Record, name: str) -> Iterator[Markup]:
    _, decided = records.series(run, "eval_polarisation")
    decided = decided[[math.isfinite(value) for value in decided]]
    if len(decided) > 1 and decided[-1] < decided[0] - DECIDED_FALL:
        yield markup.text(
            f"{name}The classifier is less sure of its faces (polarisation"
            f" {decided[0]:.2f} before, {decided[-1]:.2f} after): look whether balance"
            " comes from ambiguous faces."
        )
    shift = findings.colour_shift(run)
    if shift > COLOUR_SHIFT:
        yield markup.text(
            f"{name}The grids' mean colour moved by {shift:.0f} (CIE Delta E; 2 is just"
            " visible): look whether the model tints its pictures to please the"
            " classifier."
        )
    tolerance = records.number(run.settings, "train.ratio_tolerance")
    _, deviations = records.series(run, "ratio_deviation")
    worst = max((d for d in deviations if math.isfinite(d)), default=0.0)
    if math.isfinite(tolerance) and worst > tolerance:
        yield markup.text(
            f"{name}Sampler and learner disagreed by {worst:.2g} on a probability ratio"
            f" that should be 1 (tolerance {tolerance:g})."
        )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
