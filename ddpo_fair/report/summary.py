"""The verdict on a fine-tuning: one sentence, and what should be held against it."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from ddpo_fair.report import caveats, changes, formatting, html
from ddpo_fair.report.changes import Finding
from ddpo_fair.report.html import Markup
from ddpo_fair.report.run_reader import Record, Share

NONE_MANY = 0.2  # of the pictures, after such a rise: belongs into the verdict


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A word, the sentence that means it, and the reasons for doubt."""

    word: str
    sentence: Markup
    caveats: tuple[Markup, ...]
    finding: Finding


def of_runs(runs: Sequence[Record]) -> Verdict:
    """The verdict on runs that differ in their seeds only."""
    finding = changes.of_runs(runs)
    word = _word(finding, runs[0].settings)
    sentence = html.join([_sentence(finding, word, runs), _all_pictures(runs)])
    found = (doubt for run in runs for doubt in caveats.of_run(run, runs))
    first, last = (caveats.none_share(shares) for shares in _ends(runs))
    rose = last > first + caveats.NONE_RISE
    if rose and last >= NONE_MANY and word != "No clear change":
        word += ", many unrecognised"
    return Verdict(word, sentence, tuple(dict.fromkeys(found)), finding)


def _word(finding: Finding, settings: dict[str, Any]) -> str:
    before, after, change = finding.before, finding.after, finding.difference
    if before is None:
        return "Not measured"
    if after is None or change is None:
        return "Nothing to compare yet"
    moved = not change.low <= 0 <= change.high
    if finding.kind == changes.GAP:
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
    what = html.quoted(prompts[0]) if len(prompts) == 1 else "the prompts"
    if finding.before is None:
        return html.text("No epoch has measured the share classified as female yet.")
    if after is None:
        share = formatting.with_interval(finding.before)
        text = f"Before training, {share} of the recognised faces for "
        return html.join([text, what, " are classified as female."])
    when = f"After {formatting.count(finding.epochs_done, 'epoch')}{seeds}, "
    if finding.kind == changes.GAP:
        floor = ""
        if math.isfinite(finding.floor):
            floor = (
                f"; on so few images a perfectly fair model would show about"
                f" {100 * finding.floor:.0f}"
            )
        return html.text(
            f"{when}the mean gap between the shares classified as female and as male"
            f" over {len(prompts)} prompts is"
            f" {formatting.with_interval(after, 'points')},"
            f" from {formatting.with_interval(finding.before, 'points')} before"
            f" training{floor}."
        )
    return html.join(
        [
            f"{when}{formatting.with_interval(after)} of the recognised faces for ",
            what,
            " are classified as female, from"
            f" {formatting.with_interval(finding.before)} before training: ",
            _meaning(finding, word),
        ]
    )


def _ends(runs: Sequence[Record]) -> tuple[list[Share], list[Share]]:
    """The first and the last measurement of all runs that have both."""
    ends = [changes.ends(run)[:2] for run in runs]
    whole = [pair for pair in ends if None not in pair]
    return [first for first, _ in whole], [last for _, last in whole]


def _all_pictures(runs: Sequence[Record]) -> str:
    """What the share among recognised faces leaves out, where that is much."""
    shares = _ends(runs)[1]
    none, faces = caveats.none_share(shares), sum(share.num_faces for share in shares)
    if none < caveats.NONE_RISE or not faces:
        return ""
    female = sum(share.q.estimate * share.num_faces for share in shares) / faces
    parts = [female * (1 - none), (1 - female) * (1 - none), none]
    female, male, none = map(formatting.percent, parts)
    return (
        f" Of all pictures, {female} are classified as female, {male} as male and"
        f" {none} as neither."
    )


def _meaning(finding: Finding, word: str) -> str:
    """What follows the colon."""
    target = formatting.percent(finding.target)
    after = finding.after
    inside = after.low <= finding.target <= after.high
    change = formatting.with_interval(finding.difference, "points")
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
