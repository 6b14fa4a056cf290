"""The summary of a fine-tuning: a word, a sentence, and the caveats."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import markupsafe
from markupsafe import Markup

from ddpo_fair.report import (
    attribute_changes,
    attribute_summary,
    caveats,
    changes,
    formatting,
    measurements,
)
from ddpo_fair.report.attribute_summary import NO_CLEAR_CHANGE
from ddpo_fair.report.changes import Change
from ddpo_fair.report.measurements import Measurement
from ddpo_fair.report.run_reader import Record

NONE_MANY = 0.2  # of the images, after such a rise: belongs into the summary
# A prompt in quotation marks; its writing direction stays inside them.
QUOTED = Markup("<q><bdi>{}</bdi></q>")


@dataclasses.dataclass(frozen=True)
class Summary:
    """A word, the sentence that means it, and what should be held against it."""

    word: str
    sentence: Markup
    caveats: tuple[str, ...]
    change: Change | None = None  # of gender alone


def of_runs(runs: Sequence[Record]) -> Summary:
    """The summary of runs that differ in their seeds only."""
    found = [caveat for run in runs for caveat in caveats.of_run(run, runs)]
    if not all(map(measurements.of_gender_alone, runs)):
        changed = attribute_changes.of_runs(runs)
        word = attribute_summary.word(changed, runs[0])
        sentence = attribute_summary.sentence(changed, runs, _subject(runs[0]))
        found = [*attribute_summary.side_effects(changed), *found]
        return Summary(word, sentence, tuple(dict.fromkeys(found)))
    change = changes.of_runs(runs)
    word = _word(change, runs[0].settings)
    sentence = _sentence(change, word, runs) + _all_images(runs)
    first, last = map(changes.none_share, _ends(runs))
    rose = last > first + caveats.NONE_RISE
    if rose and last >= NONE_MANY and word != NO_CLEAR_CHANGE:
        word += ", many unrecognised"
    return Summary(word, sentence, tuple(dict.fromkeys(found)), change)


def _word(change: Change, settings: dict[str, Any]) -> str:
    before, difference = change.before, change.difference
    if before is None:
        return "Not measured"
    if difference is None:
        return "Nothing to compare yet"
    moved = not difference.low <= 0 <= difference.high
    shift = settings.get("reward.name") == "shift"
    if not moved and (shift or change.kind == changes.BIAS):
        return NO_CLEAR_CHANGE
    if change.kind == changes.BIAS:
        return "More balanced" if difference.estimate < 0 else "Less balanced"
    if shift:
        wanted = {"female": 1, "male": -1}.get(
            settings.get("attributes.gender.target_class")
        )
        wanted = wanted or (1 if before.estimate < change.target else -1)
        right = difference.estimate * wanted > 0
        return "Shifted" if right else "Shifted the wrong way"
    return attribute_summary.word_of_shares([change], moved, change.target == 0.5)


def _subject(run: Record) -> Markup | str:
    """What the images are of: the only prompt, or all."""
    prompts = run.prompts
    return QUOTED.format(prompts[0]) if len(prompts) == 1 else "the prompts"


def _sentence(change: Change, word: str, runs: Sequence[Record]) -> Markup:
    what = _subject(runs[0])
    if change.before is None:
        return Markup("No epoch has measured the share classified as female yet.")
    if change.after is None:
        return Markup(
            "Before training, {} of the recognised faces for {} are classified as"
            " female."
        ).format(formatting.with_interval(change.before), what)
    seeds = f", over {len(runs)} seeds" if len(runs) > 1 else ""
    when = f"After {formatting.count(change.epochs_done, 'epoch')}{seeds}, "
    if change.kind == changes.BIAS:
        return markupsafe.escape(when + _bias_text(change, len(runs[0].prompts)))
    return Markup(
        "{}{} of the recognised faces for {} are classified as female, from {} before"
        " training: {}"
    ).format(
        when,
        formatting.with_interval(change.after),
        what,
        formatting.with_interval(change.before),
        _meaning(change, word),
    )


def _bias_text(change: Change, num_prompts: int) -> str:
    floor = ""
    if math.isfinite(change.floor):
        floor = (
            "; on so few images a perfectly fair model would show about"
            f" {100 * change.floor:.0f}"
        )
    return (
        "the mean bias (|share classified as female - as male|) over"
        f" {num_prompts} prompts is {formatting.with_interval(change.after, 'points')},"
        f" from {formatting.with_interval(change.before, 'points')} before"
        f" training{floor}."
    )


def _meaning(change: Change, word: str) -> str:
    """What follows the colon."""
    target = formatting.percent(change.target)
    difference = formatting.with_interval(change.difference, "points")
    if word.startswith("Shifted"):
        return f"a shift of {difference}."
    if word == NO_CLEAR_CHANGE:
        return f"so many images cannot tell this from no change ({difference})."
    if change.after.low <= change.target <= change.after.high:
        return f"the target of {target} lies within the interval."
    side = "below" if change.after.high < change.target else "above"
    still = "now" if word == "Overshot" else "still"
    return f"{still} {side} the target of {target}."


def _ends(runs: Sequence[Record]) -> tuple[list[Measurement], list[Measurement]]:
    """The first and the last measurement of all runs that have both."""
    whole = [ends for ends in map(changes.ends, runs) if ends.last is not None]
    return [ends.first for ends in whole], [ends.last for ends in whole]


def _all_images(runs: Sequence[Record]) -> str:
    """What the share among recognised faces leaves out, where that is much."""
    shares = _ends(runs)[1]
    none = changes.none_share(shares)
    if none < caveats.NONE_RISE:
        return ""
    faces = sum(share.num_faces for share in shares)
    female = sum(share.q.estimate * share.num_faces for share in shares) / faces
    parts = [female * (1 - none), (1 - female) * (1 - none), none]
    female, male, none = map(formatting.percent, parts)
    return (
        f" Of all images, {female} are classified as female, {male} as male and"
        f" {none} as neither."
    )
