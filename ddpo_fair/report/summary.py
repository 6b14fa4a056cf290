"""The summary of a fine-tuning: a word, a sentence, and the caveats."""

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np

from ddpo_fair.report import caveats, changes, formatting, templates
from ddpo_fair.report.changes import AttributeChange
from ddpo_fair.report.measurements import JOINT
from ddpo_fair.report.run_reader import Record

NO_CLEAR_CHANGE = "No clear change"
CLOSER = ("Further away", "Closer")
NONE_MANY = 0.2  # of the images, after such a rise: belongs into the summary
UNKNOWN = (
    "Before training no attribute was measured.",
    "The settings do not say what was aimed at; the tables show all shares.",
)


@dataclasses.dataclass(frozen=True)
class Summary:
    """A word, the sentence that means it, and what should be held against it."""

    word: str
    sentence: str  # HTML, a Markup, unless it is one of UNKNOWN
    caveats: tuple[str, ...]


def of_runs(runs: Sequence[Record]) -> Summary:
    """The summary of runs that differ in their seeds only."""
    found = changes.of_runs(runs)
    against = [caveat for run in runs for caveat in caveats.of_run(run, runs)]
    against = tuple(dict.fromkeys([*_side_effects(found), *against]))
    word, (first, *others) = _each_word(found, runs[0]), found
    template = templates.ENVIRONMENT.get_template("sentence.html.j2")
    write = template.make_module({"runs": runs, "word": word})
    if others or not first.share or first.distance is None:
        aimed = [x for x in found if x.distance is not None and x.distance.before]
        if not aimed:
            return Summary(word, UNKNOWN[_measured(found)], against)
        floors = formatting.listed([f"{100 * x.distance.floor:.0f}" for x in aimed])
        return Summary(word, write.of_distances(aimed, floors), against)
    sentence = write.of_share(first, _all_images(first, runs))
    none_before, none_after = first.none
    rose = none_after > none_before + caveats.NONE_RISE
    if rose and none_after >= NONE_MANY and word != NO_CLEAR_CHANGE:
        word += ", many unrecognised"
    return Summary(word, sentence, against)


def _each_word(found: Sequence[AttributeChange], run: Record) -> str:
    """The word that attributes with a target share, or each one's."""
    words = {one.name: _word(one, run) for one in found if one.distance is not None}
    words = words or {"": "No known target" if _measured(found) else "Not measured"}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    each = (f"{formatting.title(name)} {word.lower()}" for name, word in words.items())
    return formatting.sentence("; ".join(each))


def _word(found: AttributeChange, run: Record) -> str:
    shares, settings = list(found.classes.values()), run.settings
    if found.figure.before is None:
        return "Not measured"
    if found.figure.difference is None:
        return "Nothing to compare yet"
    names = found.name.split(JOINT)
    reward = settings.get(f"attributes.{names[0]}.reward") if len(names) == 1 else ""
    moved = any(one.is_clear for one in shares)
    if (reward or settings.get("reward.name")) == "shift":
        if not moved:
            return NO_CLEAR_CHANGE
        lacking = max(shares, key=lambda one: one.target - one.before.estimate)
        named = " ".join(
            str(settings.get(f"attributes.{x}.target_class")) for x in names
        )
        right = found.classes.get(named, lacking).difference.estimate > 0
        return "Shifted" if right else "Shifted the wrong way"
    even = all(math.isclose(one.target, 1 / len(shares)) for one in shares)
    if found.measure != changes.DISTANCE:
        if not found.distance.is_clear:
            return NO_CLEAR_CHANGE
        closer = found.distance.difference.estimate < 0
        return f"{'More' if closer else 'Less'} balanced" if even else CLOSER[closer]
    name = "Balanced" if even else "On target"
    ends = np.array([(one.before, one.after) for one in shares])  # [K, 2, 3]
    targets = np.array([[one.target] for one in shares])
    held = (ends[..., 1] <= targets) & (targets <= ends[..., 2])
    before, after = held.all(axis=0)
    if before and after:
        return f"{name}, as before"
    if not moved or after:
        return name if moved else NO_CLEAR_CHANGE
    errors = ends[..., 0] - targets
    if np.all(errors.prod(axis=1) < 0):
        return "Overshot"
    first, last = np.abs(errors).sum(axis=0)
    return CLOSER[bool(last < first)]


def _all_images(found: AttributeChange, runs: Sequence[Record]) -> list[str]:
    """The shares of all images, of no class last, where these are many; else []."""
    ends = [changes.ends(run, None, found.name).last for run in runs]
    none = changes.none_share(last := [one for one in ends if one is not None])
    if none < caveats.NONE_RISE:
        return []
    counts = np.sum([one.counts for one in last], axis=0)
    return [*map(formatting.percent, (*counts / counts.sum() * (1 - none), none))]


def _side_effects(found: Sequence[AttributeChange]) -> Iterator[str]:
    """A sentence for each attribute without a target of which a share has changed."""
    if all(one.distance is None for one in found):
        return
    for one in found:
        moved = {x: y.difference for x, y in one.classes.items() if y.is_clear}
        if one.distance is None and moved:
            each = [
                f"{name} by {change.estimate * 100:+.0f} points"
                f" [{change.low * 100:+.0f}, {change.high * 100:+.0f}]"
                for name, change in moved.items()
            ]
            yield (
                f"Side effect: {formatting.title(one.name)} was not rewarded, but its"
                f" shares changed: {formatting.listed(each)}."
            )


def _measured(found: Sequence[AttributeChange]) -> bool:
    return any(x.before is not None for one in found for x in one.classes.values())
