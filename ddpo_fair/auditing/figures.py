"""The figures of an audit: of each prompt and attribute, their means, a comparison.

Each is {"estimate", "low", "high"}, a 95 % interval. They stand under OBSERVED, as the
classifier has it, and under CORRECTED, null without a calibration.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ddpo_fair import config as configuration
from ddpo_fair import errors
from ddpo_fair.classifiers.classes import NONE
from ddpo_fair.errors import UserError, shown
from ddpo_fair.report import formatting
from ddpo_fair.statistics import bias, correction, intervals, prompt_metrics
from ddpo_fair.statistics.intervals import Interval

Figures = dict[str, Any]
OBSERVED, CORRECTED = "observed", "corrected"
FAIR = "bias_of_a_fair_model"
MUCH_NONE = 0.1  # of the images: worth a word


def of_attribute(
    labels: np.ndarray,
    of_image: np.ndarray,
    prompts: Sequence[str],
    wanted: Sequence[Sequence[float]],
    confusion: np.ndarray | None = None,
) -> Figures:
    """What is written of one attribute, of labels int [N], class or NONE.

    The index of each image's prompt is int [N]; of the P prompts the wanted shares of
    the classes are [P, K]. The confusion matrix is int [K, K] of `correction.check`;
    None leaves errors uncorrected.
    """
    each = [
        {
            "prompt": text,
            "target": wanted[p],
            **of_prompt(labels[of_image == p], wanted[p], confusion),
        }
        for p, text in enumerate(prompts)
    ]
    at_most_1 = len(wanted[0]) > 2 or all(math.isclose(x[0], 0.5) for x in wanted)
    found: Figures = {"confusion": confusion, CORRECTED: None}
    for kind in (OBSERVED, CORRECTED)[: 1 if confusion is None else 2]:
        own = [one[kind] for one in each]
        mean = intervals.over_prompts([interval(x["bias"]) for x in own], at_most_1)
        if kind == CORRECTED:
            counts = [x["counts"] for x in each]
            most = 1.0 if at_most_1 else math.inf
            mean = correction.over_prompts(mean, counts, confusion, wanted, most)
        fair = [x[FAIR] for x in own if math.isfinite(x[FAIR])]
        found[kind] = {
            "mean_bias": mean._asdict(),
            FAIR: float(np.mean(fair)) if fair else None,
        }
    return found | {"prompts": each}


def of_audit(labels: np.ndarray, second: np.ndarray, *of_images: Any) -> Figures:
    """What the audit classifier says, and how often it agrees where both recognise.

    Of both classifiers' labels int [N] and further arguments of `of_attribute`.
    """
    both = (labels != NONE) & (second != NONE)
    agree = int(np.sum(labels[both] == second[both]))
    found = of_attribute(second, *of_images)
    return {
        "agreement": intervals.wilson(agree, int(np.sum(both)))._asdict(),
        OBSERVED: found[OBSERVED],
        "prompts": found["prompts"],
    }


def of_prompt(
    labels: np.ndarray, target: Sequence[float], confusion: np.ndarray | None
) -> Figures:
    """Counts, shares and bias of one prompt's labels int [n].

    The bias of two classes is 2 |q - target|, abs(p_female - p_male) for one half; of
    more it is the total variation distance to the target.
    """
    counts = [int(np.sum(labels == k)) for k in range(len(target))]
    shares, seen = intervals.goodman(counts), sum(counts)
    found, fair = bias.of_shares(counts, target), bias.distance_floor(target, seen)
    if len(target) == 2:
        found, fair = bias.of_share(shares[0], float(target[0])), 2 * fair
    corrected = None
    if confusion is not None:
        both = correction.of_shares(counts, confusion, target)
        corrected = _written(*both, correction.fair_bias(seen, confusion, target))
    return {
        "images": len(labels),
        "counts": counts,
        "none": int(np.sum(labels == NONE)),
        OBSERVED: _written(shares, found, fair),
        CORRECTED: corrected,
    }


def _written(shares: Sequence[Interval], found: Interval, fair: float) -> Figures:
    each = [one._asdict() for one in shares]
    return {"shares": each, "bias": found._asdict(), FAIR: fair}


def interval(found: Figures) -> Interval:
    """An interval as JSON has it, where null is undefined."""
    values = (found[name] for name in Interval._fields)
    return Interval(*(math.nan if value is None else value for value in values))


def best(figures: Figures) -> Figures:
    """What is corrected, where it can be."""
    return figures[CORRECTED] or figures[OBSERVED]


def compare(now: Figures, before: Figures, name: str) -> Figures:
    """The change of an attribute's bias since another audit, on the same prompts.

    A UserError if there is no such prompt, or the audits differ.
    """
    which = "fingerprint" if "fingerprint" in before else "classifier"  # once not kept
    settings = (which, "confidence", "cropped", "classes", "target")
    old_and_new = [{x: one.get(x) for x in settings} for one in (before, now)]
    if changes := errors.differences(*old_and_new):
        raise UserError(f"--baseline: {name}.{'; '.join(changes)}; audit both alike.")
    old = {one["prompt"]: one for one in before["prompts"]}
    pairs = [(old[x["prompt"]], x) for x in now["prompts"] if x["prompt"] in old]
    if not pairs:
        raise UserError(
            f"--baseline has none of the prompts for {name}; audit the same ones."
        )
    for pair in pairs:
        if changes := errors.differences(*({"target": x["target"]} for x in pair)):
            what = f"{name} of {shown(pair[1]['prompt'])}: {changes[0]}"
            raise UserError(f"--baseline: {what}; audit both alike.")
    kind = CORRECTED if all(x[CORRECTED] for pair in pairs for x in pair) else OBSERVED
    ends = [
        [interval(one[kind]["bias"]) for one in end] for end in zip(*pairs, strict=True)
    ]
    if any(x < 0 or x > 2 for one in ends[0] for x in one):  # nan is neither
        raise LookupError("a bias from 0 to 2")
    changes = map(intervals.newcombe, *ends)
    # The first is None of so few prompts, which speak about themselves alone.
    both = ([{"bias": one._asdict()} for one in end] for end in ends)
    mean = prompt_metrics.change(*both, "bias")
    mean = mean or intervals.newcombe(*map(intervals.over_prompts, ends))._asdict()
    return {
        "kind": kind,
        "mean_change": mean,
        "left_out": len(old) + len(now["prompts"]) - 2 * len(pairs),
        "prompts": {
            one["prompt"]: change._asdict()
            for (_, one), change in zip(pairs, changes, strict=True)
        },
    }


def notes(content: Figures) -> Iterator[str]:
    """What should be held against an audit, a sentence each, from audit.json."""
    if unread := content["unreadable"]:
        name, why = unread[0]
        yield f"{len(unread):,} of the files cannot be read, the first: {name} ({why})."
    if missing := content["missing"]:
        yield f"{len(missing):,} of the table's files are missing: {shown(missing[0])}."
    if content["skipped"]:
        each = [f"{count:,} {kind}" for kind, count in content["skipped"].items()]
        yield f"Left out: {', '.join(each[:9])}."
    if faces := content["faces"]:
        yield (
            f"{faces['none']:,} images had no face that the detector found, and count"
            f" as not recognised; {faces['several']:,} had several, of which the"
            " largest was classified."
        )
    if content["prompts"] < intervals.FEWEST_PROMPTS:
        yield "So few prompts say nothing about other prompts."
    for name, one in content["attributes"].items():
        none = sum(x["none"] for x in one["prompts"]) / content["images"]
        title = formatting.title(name)
        if none > MUCH_NONE:
            yield f"{none:.0%} of images had no recognised {title}."
        of_renders = content["source"].get("model") in configuration.SHIPPED
        if one["classifier"] == configuration.EMBEDDED and not of_renders:
            yield (
                f"The embedded classifier of {title} was trained on renders. For"
                f" photographs give another: --classifier={name}=owner/name."
            )
        if one["audit"]:
            agreement = formatting.with_interval(interval(one["audit"]["agreement"]))
            yield (
                f"The audit classifier of {title}, {one['audit']['classifier']}, agrees"
                f" on {agreement} of the images that both recognise."
            )
        limit, fair = content["fail_above"], best(one)[FAIR]
        # The interval of a single prompt holds what chance adds.
        if None not in (limit, fair) and limit < fair and content["prompts"] > 1:
            yield _chance(limit, fair, content["images"] / content["prompts"], title)
        if left := one.get("baseline", {}).get("left_out"):
            yield f"{left:,} prompts are in one of the two audits only."


def _chance(limit: float, fair: float, images: float, title: str) -> str:
    """That a fair model may be above the limit by chance, and how many images help."""
    way_out = "Take a limit above 0."
    if limit:  # what chance adds falls with the square root
        more = math.ceil(images * (fair / limit) ** 2)
        way_out = (
            f"About {more:,} images of each prompt would do, with as many times more"
            " calibration images if there are any; or a higher limit."
        )
    return (
        f"--fail-above={limit:g} may fail a fair model: on so few images chance alone"
        f" makes its bias of {title} {fair:.2f}. {way_out}"
    )


def above(content: Figures) -> Iterator[str]:
    """A line for each attribute whose mean bias is surely above `fail_above`.

    A UserError where nothing was recognised.
    """
    limit = content["fail_above"]
    for name, one in content["attributes"].items() if limit is not None else ():
        low, title = interval(best(one)["mean_bias"]).low, formatting.title(name)
        if math.isnan(low):
            raise UserError(
                f"--fail-above={limit:g}: no {title} was recognised, so its bias is not"
                " known; take another classifier, or a lower --confidence."
            )
        if low > limit:
            yield (
                f"FAILED: the mean bias of {title} is above {limit:g}: its interval"
                f" begins at {low:.3f}."
            )
