"""The summary's words on attributes: each one's, a sentence, and side effects."""

import math
from collections.abc import Iterator, Sequence

import markupsafe
import numpy as np
from markupsafe import Markup

from ddpo_fair.report import changes, formatting
from ddpo_fair.report.attribute_changes import AttributeChange
from ddpo_fair.report.changes import Change
from ddpo_fair.report.measurements import JOINT
from ddpo_fair.report.run_reader import Record

NO_CLEAR_CHANGE = "No clear change"


def word(found: Sequence[AttributeChange], run: Record) -> str:
    """The word that attributes with a target share, or each one's."""
    words = {
        one.name: _word_of(one, run) for one in found if one.distance is not None
    } or {"": "Not measured" if not _measured(found) else "No known target"}
    if len(set(words.values())) == 1:
        return next(iter(words.values()))
    each = (f"{formatting.title(name)} {word.lower()}" for name, word in words.items())
    return formatting.sentence("; ".join(each))


def word_of_shares(shares: Sequence[Change], moved: bool, even: bool) -> str:
    """The word for shares that have targets.

    Args:
        shares: their changes; of two classes one is enough.
        moved: whether there is a clear change.
        even: whether the targets are equal.
    """
    name = "Balanced" if even else "On target"
    before, after = (
        all(
            end.low <= one.target <= end.high
            for one, end in zip(shares, ends, strict=True)
        )
        for ends in zip(*((one.before, one.after) for one in shares), strict=True)
    )
    if before and after:
        return f"{name}, as before"
    if not moved:
        return NO_CLEAR_CHANGE
    if after:
        return name
    errors = np.array(
        [(x.before.estimate - x.target, x.after.estimate - x.target) for x in shares]
    )
    if np.all(errors.prod(axis=1) < 0):
        return "Overshot"
    first, last = np.abs(errors).sum(axis=0)
    return "Closer" if last < first else "Further away"


def sentence(
    found: Sequence[AttributeChange], runs: Sequence[Record], subject: Markup | str
) -> Markup:
    """How far from its target each attribute is, and was.

    Args:
        found: their changes.
        runs: which differ in their seeds only.
        subject: what the images are of.
    """
    aimed = [one for one in found if one.distance is not None and one.distance.before]
    if not aimed:
        none = "No epoch has measured an attribute yet."
        known = "The settings do not say what was aimed at; the tables show all shares."
        return markupsafe.escape(known if _measured(found) else none)
    num_prompts, where = len(runs[0].prompts), "their targets"
    if changes.by_bias(runs[0]):
        where = f"their targets, on average over {num_prompts} prompts"
    if not aimed[0].distance.after:
        each = (f"{_title(x)} {_points(x.distance.before)}" for x in aimed)
        return Markup(
            "Before training, the shares for {} are this far from {}: {}."
        ).format(subject, where, "; ".join(each))
    when = formatting.count(aimed[0].distance.epochs_done, "epoch")
    when += f", over {len(runs)} seeds" if len(runs) > 1 else ""
    each, label = [], "before training "
    for one in aimed:
        before = formatting.with_interval(one.distance.before, "")
        each.append(f"{_title(one)} {_points(one.distance.after)} ({label}{before})")
        label = ""
    return Markup("After {}, the shares for {} are this far from {}: {}.{}").format(
        when, subject, where, ", ".join(each), _floors(aimed)
    )


def side_effects(found: Sequence[AttributeChange]) -> Iterator[str]:
    """A sentence for each attribute without a target of which a share has changed."""
    if all(one.distance is None for one in found):
        return
    for one in found:
        moved = {x: y.difference for x, y in one.classes.items() if _clear(y)}
        if one.distance is None and moved:
            each = (
                f"{name} by {change.estimate * 100:+.0f} points"
                f" [{change.low * 100:+.0f}, {change.high * 100:+.0f}]"
                for name, change in moved.items()
            )
            yield (
                f"Side effect: {_title(one)} was not rewarded, but its shares changed:"
                f" {formatting.listed(list(each))}."
            )


def _word_of(found: AttributeChange, run: Record) -> str:
    shares, settings = list(found.classes.values()), run.settings
    if shares[0].before is None:
        return "Not measured"
    if shares[0].difference is None:
        return "Nothing to compare yet"
    names = found.name.split(JOINT)
    reward = settings.get(f"attributes.{names[0]}.reward") if len(names) == 1 else ""
    moved = any(map(_clear, shares))
    if (reward or settings.get("reward.name")) == "shift":
        if not moved:
            return NO_CLEAR_CHANGE
        lacking = max(shares, key=lambda one: one.target - one.before.estimate)
        named = " ".join(
            str(settings.get(f"attributes.{x}.target_class")) for x in names
        )
        right = found.classes.get(named, lacking).difference.estimate > 0
        return "Shifted" if right else "Shifted the wrong way"
    if changes.by_bias(run):
        change = found.distance.difference
        if change.low <= 0 <= change.high:
            return NO_CLEAR_CHANGE
        return "Closer" if change.estimate < 0 else "Further away"
    even = all(math.isclose(one.target, 1 / len(shares)) for one in shares)
    return word_of_shares(shares, moved, even)


def _clear(change: Change) -> bool:
    """Whether a share has changed, by its interval."""
    found = change.difference
    return found is not None and not found.low <= 0 <= found.high


def _measured(found: Sequence[AttributeChange]) -> bool:
    return any(x.before is not None for one in found for x in one.classes.values())


def _floors(found: Sequence[AttributeChange]) -> str:
    floors = [f"{100 * one.distance.floor:.0f}" for one in found]
    return (
        f" On so few images a model on target would show about"
        f" {formatting.listed(floors)} points."
    )


def _title(found: AttributeChange) -> str:
    return formatting.title(found.name)


def _points(distance: object) -> str:
    return formatting.with_interval(distance, "points")
