"""The attributes of a config: who classifies them, and their targets by prompt."""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import files
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
MOST_CLASSES = 100
LEAST_WEIGHT = 0.001
MOST_NAMED = 8  # entries that one message lists
FORM = 'its form is {"a prompt": {"gender": {"female": 0.3, "male": 0.7}}}'


def of(config: ConfigDict) -> dict[str, classes.Attribute]:
    """Each attribute of a config by its name; raises as `classes.attribute` does."""
    return {
        name: classes.attribute(name, one.classes)
        for name, one in config.attributes.items()
    }


def targets(config: ConfigDict) -> dict[str, dict[str, tuple[float, ...]]]:
    """Shares of the file `config.targets`, by attribute and prompt; or a UserError."""
    if not config.targets:
        return {}
    name = f"targets={shown(config.targets)}"
    path = files.given("targets", config.targets)
    try:
        text = files.content(path)
        table = json.loads(text.decode("utf-8-sig"), object_pairs_hook=files.once)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{name} cannot be read as JSON ({error}); {FORM}.") from None
    found: dict[str, dict[str, tuple[float, ...]]] = {}
    problems = []
    for prompt, attribute, shares in _entries(table):
        where, known = f"{name}: {shown(prompt)}", config.attributes
        if prompt not in config.prompts:
            problems.append(
                f"{where} is none of the prompts; train it, or leave it out"
            )
        elif attribute not in known:
            given = f"{shown(attribute)} is none of the attributes {', '.join(known)}"
            problems.append(f"{where}: {given}")
        else:
            names = known[attribute].classes
            if isinstance(shares, Mapping) and shares.keys() <= set(names):
                shares = [shares.get(name) for name in names]
            if distribution(shares, len(names)):
                found.setdefault(attribute, {})[prompt] = tuple(map(float, shares))
            else:
                problems.append(
                    f"{where}: {attribute} must have a share of each of"
                    f" {', '.join(names)}, not negative, with sum 1"
                )
        if len(problems) == MOST_NAMED:  # there may be thousands
            break
    if problems or not found:
        raise UserError(f"{'; '.join(problems or [f'{name} holds none'])}; {FORM}.")
    return found


def by_attribute(
    flag: str, values: Sequence[str], names: Iterable[str]
) -> dict[str, str]:
    """What a flag says of each attribute: NAME=VALUE of one, VALUE of all others.

    A UserError for an attribute that is not among them, or two things of one.
    """
    given: dict[str, str] = {}  # "" is of all others
    for value in values:
        name, equals, said = value.partition("=")
        if equals and name in classes.DEFAULTS and name not in names:
            raise UserError(
                f"--{flag}={shown(value)} is about {name}, but the attributes are"
                f" {', '.join(names)}; add it, or leave this out."
            )
        name, said = (name, said) if equals and name in names else ("", value)
        if (before := given.setdefault(name, said)) != said:
            several = not name and len([*names]) > 1
            raise UserError(
                f"--{flag} is given twice, as {shown(before)} and {shown(said)}; leave"
                " out one"
                + ", or say of which attributes they are, with NAME= before" * several
                + "."
            )
    return {x: given.get(x, given.get("")) for x in names if {x, ""} & given.keys()}


def _entries(table: Any) -> Iterator[tuple[str, str, Any]]:
    """Prompt, attribute and shares of each entry of a table."""
    for prompt, attributes in table.items() if isinstance(table, dict) else ():
        if not isinstance(attributes, dict):
            yield prompt, "", None
            continue
        for attribute, shares in attributes.items():
            yield prompt, attribute, shares


def shares(text: str) -> tuple[float, ...]:
    """Numbers with commas between them; () for anything else."""
    try:
        return tuple(map(float, text.strip("() ").split(",")))
    except ValueError:
        return ()


def distribution(shares: Any, count: int) -> bool:
    """Whether these are `count` shares, none of them negative, that sum to 1."""
    return (
        isinstance(shares, list | tuple)
        and len(shares) == count
        and all(type(x) in (int, float) and 0 <= x <= 1 for x in shares)
        and math.isclose(sum(shares), 1, abs_tol=1e-6)
    )


def rule_of_target(names: Sequence[str]) -> str:
    """What a target of these classes must be, in words."""
    even = (round(1 / len(names), 4),) * len(names)
    return (
        f"must be the wanted shares classified as {', '.join(names)}, not negative,"
        f" with sum 1, e.g. {even}."
    )


def problems(config: ConfigDict) -> Iterator[str]:
    """A sentence for each rule that attributes, whose types are right, break."""
    if not config.attributes:
        yield "attributes is empty: give one, e.g. gender."
    for name, one in config.attributes.items():
        where = f"attributes.{name}"
        if not NAME.fullmatch(name):
            yield (
                f"attributes: the name {shown(name)} must be of lower case letters,"
                " digits and '_', at most 40, the first a letter."
            )
        if wrong := _of_classes(name, one.classes):
            yield f"{where}.classes={shown(one.classes)}: {wrong}"
            continue
        if not distribution(one.target, len(one.classes)):
            rule = rule_of_target(one.classes)
            yield f"{where}.target={shown(one.target)} {rule}"
        if one.target_class not in ("auto", *one.classes):
            yield (
                f"{where}.target_class={shown(one.target_class)} must be one of auto,"
                f" {', '.join(one.classes)}."
            )
        if (
            one.classifier == classes.TYPOLOGY
            and tuple(one.classes) != classes.SKIN_TONE.classes
        ):
            yield (
                f"{where}.classifier='typology' answers"
                f" {', '.join(classes.SKIN_TONE.classes)}; give these as"
                f" {where}.classes, or another classifier."
            )
    yield from _of_all(config)


def _of_classes(name: str, names: Sequence[str]) -> str:
    """What is wrong with the classes of an attribute, a sentence; "" if nothing is."""
    if any(not word.strip() or not word.isprintable() for word in names):
        return "a class needs a name that can be read."
    if len(names) > MOST_CLASSES:
        return f"an attribute has at most {MOST_CLASSES} classes; join some of them."
    try:
        classes.attribute(name, names)
    except UserError as error:
        return str(error)
    if name == classes.GENDER.name and names != classes.CLASSES:
        return (  # q and the explicit prompts count on it
            f"gender has the classes {classes.CLASSES}, in this order; give others to"
            " an attribute of another name."
        )
    return ""


def _of_all(config: ConfigDict) -> Iterator[str]:
    """Rules on all attributes together."""
    table: Mapping[str, Any] = {}
    try:
        table = targets(config)
    except UserError as error:
        yield str(error)
    rewarded = {x: one for x, one in config.attributes.items() if one.weight}
    kinds = {one.reward or config.reward.name for one in rewarded.values()}
    if not rewarded:
        yield (
            "No attribute has a weight above 0, so there is nothing to learn; give one,"
            " or use ddpo_fair.evaluate, which only measures."
        )
    if config.reward.combine == "joint" and kinds - {config.reward.name}:
        yield (
            "reward.combine='joint' has one reward for all cells, reward.name; leave"
            " attributes.*.reward empty, or give 'marginal'."
        )
    if rewarded and config.reward.soft and "balance_loo" not in kinds:
        yield (
            "reward.soft=True counts in balance_loo alone, not in"
            f" {' or '.join(sorted(kinds))}; give reward.name='balance_loo', or"
            " reward.soft=False."
        )
    if {one.classifier for one in rewarded.values()} == {classes.TYPOLOGY} and (
        config.reward.views > 1
    ):
        yield (
            f"reward.views={config.reward.views} averages answers of networks, and"
            " 'typology' is none; give reward.views=1."
        )
    if config.sample.explicit_share and classes.GENDER.name not in config.attributes:
        yield (
            f"sample.explicit_share={config.sample.explicit_share} is of prompts that"
            " say a gender, and needs the attribute gender, perhaps with weight=0; add"
            " it, or give 0."
        )
    for name, one in rewarded.items():
        where, kind = f"attributes.{name}", one.reward or config.reward.name
        if one.weight < LEAST_WEIGHT:
            yield (
                f"{where}.weight={one.weight} would teach nothing; give {LEAST_WEIGHT}"
                " or more, or 0."
            )
        if kind != "shift":
            if one.target_class != "auto":
                yield (
                    f"{where}.target_class={shown(one.target_class)} is of the reward"
                    f" shift, not of {kind}; give reward.name='shift', or"
                    f" {where}.target_class='auto'."
                )
            continue
        if name in table:
            yield (
                f"targets={shown(config.targets)} has shares of {name}, which reward"
                " 'shift' does not aim at; take balance or balance_loo."
            )
        if one.target_class == "auto" and not config.eval.images:
            yield (
                f"{where}.target_class='auto' needs the evaluation before training, but"
                " eval.images=0; give eval.images, or the class:"
                f" {' or '.join(one.classes)}."
            )
        if not np.allclose(one.target, one.target[:1]):  # they are uneven
            yield (
                f"{where}.target={shown(one.target)} is no aim of reward.name='shift',"
                " which goes on until all are of one class, see"
                f" {where}.target_class; leave the target out, or take balance or"
                " balance_loo."
            )
