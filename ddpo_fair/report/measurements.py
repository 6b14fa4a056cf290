"""What a run measured of its attributes: how many images of each class, and when.

Attributes have the names of metrics.jsonl, where "gender x skin_tone" stands for the
cells of both.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ddpo_fair import attribute_rules
from ddpo_fair import config as configuration
from ddpo_fair.classifiers import classes
from ddpo_fair.learning import goals
from ddpo_fair.report import run_reader
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics import correction, intervals

GENDER, JOINT = classes.GENDER.name, goals.JOINT


@dataclasses.dataclass(frozen=True)
class Measurement:
    """How many images were classified as what, once."""

    counts: tuple[int, ...]  # of each class
    num_none: int  # of no class
    epochs_done: int  # how much training the model had

    @property
    def num_faces(self) -> int:
        """Images of any class."""
        return sum(self.counts)

    @property
    def shares(self) -> list[intervals.Interval]:
        """The share of each class; the 95 % intervals hold together."""
        return intervals.goodman(self.counts)

    def holds(self, target: np.ndarray) -> bool:
        """Whether these images cannot tell the shares from the target."""
        pairs = zip(self.shares, target, strict=True)
        return all(share.low <= wanted <= share.high for share, wanted in pairs)


def names(record: Record) -> list[str]:
    """The attributes of a run: those of its metrics, of its settings, or gender."""
    lines = (run_reader.parts(line, "attributes") for line in record.lines)
    measured = dict.fromkeys(name for parts in lines for name in parts)
    found = map(configuration.ATTRIBUTE.fullmatch, record.settings)
    return list(measured or dict.fromkeys(x[1] for x in found if x)) or [GENDER]


def of_gender_alone(record: Record) -> bool:
    """Whether a run has gender only, and one target for all prompts."""
    return names(record) == [GENDER] and not record.settings.get("targets")


def classes_of(record: Record, name: str) -> tuple[str, ...]:
    """The classes of an attribute; those of gender where none was measured."""
    for line in record.lines:
        one = run_reader.parts(line, "attributes").get(name, {})
        for field in ("counts", "eval_counts"):
            if isinstance(one.get(field), dict) and one[field]:
                return tuple(one[field])
    return classes.CLASSES


def prompts(record: Record) -> list[str]:
    """The prompts that have figures of their own: several, or none."""
    parts = (run_reader.parts(line, "prompts") for line in record.lines)
    return list(dict.fromkeys(prompt for part in parts for prompt in part))


@functools.lru_cache(maxsize=64)
def goals_of(record: Record) -> dict[str, goals.Goal]:
    """What a run aims at, by name; {} where its settings do not say.

    Of a joint goal those of its attributes, too.
    """
    targets = record.about.get("targets") or {}
    if record.settings.get("targets") and not targets:
        return {}
    found = {}
    try:
        config = configuration.of_settings(record.settings)
        config.prompts = tuple(record.prompts)
        each = [one.target for one in config.attributes.values()]
        each += [shares for own in targets.values() for shares in own.values()]
        if not all(attribute_rules.distribution(x, len(x)) for x in each):
            return {}
        for combine in ("marginal", config.reward.combine):
            config.reward.combine = combine
            found |= {goal.name: goal for goal in goals.of(config, targets)}
        for goal in found.values():
            np.stack(list(goal.targets.values()))  # all of one length, or a ValueError
    except Exception:  # whatever a broken config.json brings up
        return {}
    return found


def target(record: Record, name: str, of: Sequence[str]) -> np.ndarray | None:
    """The wanted shares, the mean over prompts; None where there are none."""
    goal = goals_of(record).get(name)
    if goal is None or not goal.targets.keys() >= set(of):
        return None
    shares = goal.target(of)
    return shares if np.shape(shares) == (len(classes_of(record, name)),) else None


@functools.lru_cache(maxsize=64)
def calibration(record: Record, name: str) -> dict[str, Any] | None:
    """What the first calibration.json of an attribute's classifier has, if any."""
    field = f"attributes.{name}"
    weights = run_reader.parts(record.about, "weights").get(f"{field}.classifier", {})
    wanted = {
        "fingerprint": weights.get("fingerprint", ""),  # older runs kept none
        "confidence": record.settings.get(f"{field}.confidence_threshold"),
        "faces": False,
        "classes": list(classes_of(record, name)),
    }
    for content in record.calibrations:
        one = run_reader.parts(content, "attributes").get(name, {})
        if all(one.get(field) == value for field, value in wanted.items()):
            with contextlib.suppress(Exception):  # whatever a broken file brings up
                correction.check(np.array(one["confusion"]), wanted["classes"])
                return one | {"source": str(one["source"])}
    return None


def of_line(
    line: dict[str, Any], epoch: int, fresh: bool, name: str = GENDER
) -> Measurement | None:
    """An attribute of an epoch's evaluation, or of the images it trained on, if any.

    The line is of metrics.jsonl, or a prompt's part of it; `fresh` is the evaluation.
    Training draws its images before its updates. An evaluation on fresh seeds follows
    them, but epoch 0's is of the model before training.
    """
    prefix = "eval_" if fresh else ""
    part = run_reader.parts(line, "attributes").get(name, {})
    none = f"{prefix}num_none"
    numbers = part.get(f"{prefix}counts")
    if not isinstance(numbers, dict) and name == GENDER:
        part, none = line, "eval_none" if fresh else none
        numbers = {x: line.get(f"{prefix}num_{x}") for x in classes.CLASSES}
    if not isinstance(numbers, dict) or not numbers:
        return None
    counts = [run_reader.number(numbers, x) for x in numbers]
    if not all(count < run_reader.LARGEST_COUNT for count in counts):  # nan is not
        return None
    epochs_done = epoch + 1 if fresh and epoch else epoch
    counts = tuple(max(int(count), 0) for count in counts)
    return Measurement(counts, run_reader.count(part, none), epochs_done)


@functools.lru_cache(maxsize=256)  # of 100,000 epochs they take a second
def of_run(
    record: Record, fresh: bool, name: str = GENDER, prompt: str | None = None
) -> list[Measurement]:
    """What a run measured of an attribute, in order, wherever a class was recognised.

    `fresh` means evaluations, rather than the images of training; a prompt is one of
    several, None means all together.
    """
    found, num_classes = [], len(classes_of(record, name))
    for line in record.lines:
        part = line
        if prompt is not None:
            part = run_reader.parts(line, "prompts").get(prompt, {})
        one = of_line(part, line["epoch"], fresh, name)
        if one is not None and one.num_faces and len(one.counts) == num_classes:
            found.append(one)
    return found
