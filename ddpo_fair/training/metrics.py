"""The fields of a line of metrics.jsonl: of an epoch's images, updates, evaluation."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from ddpo_fair.classifiers import classes
from ddpo_fair.learning import scoring
from ddpo_fair.statistics import accuracy, intervals
from ddpo_fair.training.assembly import Run

NUM_BINS = 10  # of the histogram of P(female)


def shares(labels: np.ndarray) -> dict[str, Any]:
    """q of labels int [N] with its 95 % Wilson interval; nan without a face. Counts."""
    kinds = classes.FEMALE, classes.MALE, classes.NONE
    female, male, none = (int(np.sum(labels == kind)) for kind in kinds)
    q = intervals.wilson(female, female + male)
    share = {"q": q.estimate, "q_low": q.low, "q_high": q.high}
    return {**share, "num_female": female, "num_male": male, "num_none": none}


def of_attributes(
    run: Run, prompts: Sequence[str], labels: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Of each attribute and joint goal: counts, shares, and how far from the target.

    The distance is the total variation, half the sum of |share - target|, to the mean
    target of the prompts; nan without weight. {} for gender alone, see `shares`.
    """
    if list(labels) == [classes.GENDER.name]:
        return {}
    targets = {goal.name: goal.target(prompts) for goal in run.goals}
    known = {name: one.classes for name, one in run.config.attributes.items()}
    found = {
        name: _shares_of(own, known[name], targets.get(name))
        for name, own in labels.items()
    }
    for goal in run.goals:
        if len(goal.attributes) > 1:
            names = [known[name] for name in goal.attributes]
            cells = [" ".join(cell) for cell in itertools.product(*names)]
            own = goal.labels(labels)
            found[goal.name] = _shares_of(own, cells, targets[goal.name])
    return found


def _shares_of(
    labels: np.ndarray, names: Sequence[str], target: np.ndarray | None
) -> dict[str, Any]:
    counts = np.array([np.sum(labels == k) for k in range(len(names))])
    shares = counts / counts.sum() if counts.any() else np.full(len(names), math.nan)
    distance = math.nan if target is None else np.abs(shares - target).sum() / 2
    return {
        "counts": dict(zip(names, counts.tolist(), strict=True)),
        "num_none": int(np.sum(labels == classes.NONE)),
        "shares": dict(zip(names, shares.tolist(), strict=True)),
        "distance": float(distance),
    }


def of_images(
    run: Run, scores: scoring.Scores, rows: np.ndarray, prompts: Sequence[str]
) -> dict[str, Any]:
    """The fields of images that were rewarded, in the rows, bool [N], of prompts."""
    values = scores.rewards[rows].astype(np.float64)
    labels = {name: own[rows] for name, own in scores.labels.items()}
    gender = labels.get(classes.GENDER.name)
    attributes = of_attributes(run, prompts, labels)
    return {
        "reward_mean": float(values.mean()),
        "reward_std": float(values.std()),
        **({} if gender is None else shares(gender)),
        "num_not_finite": int(np.sum(~scores.finite[rows])),
        **({"attributes": attributes} if attributes else {}),
    }


def of_updates(measured: list[dict[str, jax.Array]]) -> dict[str, float]:
    """The fields of an epoch's updates: means of those that were not skipped.

    `ratio_deviation` is that of the first update, when sampler and learner must agree,
    `kl_last` that of the last; NaN if all were skipped.
    """
    host = [{name: float(value) for name, value in m.items()} for m in measured]
    taken = [m for m in host if not m["skipped_updates"]]
    line = {
        name: float(np.mean([m[name] for m in taken])) if taken else math.nan
        for name in host[0]
    }
    line["ratio_deviation"] = host[0]["ratio_deviation"]
    line["kl_last"] = taken[-1]["kl"] if taken else math.nan
    line["skipped_updates"] = len(host) - len(taken)
    return line


def of_evaluation(
    run: Run,
    probabilities: dict[str, np.ndarray],
    labels: dict[str, np.ndarray],
    rows: np.ndarray,
    prompts: Sequence[str],
) -> dict[str, Any]:
    """The eval_ fields, of each attribute's probabilities [N, K] and labels int [N]."""
    gender, line = classes.GENDER.name, {}
    labels = {name: own[rows] for name, own in labels.items()}
    if gender in labels:
        line = {f"eval_{name}": x for name, x in shares(labels[gender]).items()}
        every, num_none = probabilities[gender][rows], line.pop("eval_num_none")
        known = every[classes.finite(every)]
        female, margin, mean = known[:, classes.FEMALE], math.nan, math.nan
        if len(known):
            margin = float(np.mean(accuracy.confidence_margins(known)))
            mean = float(np.mean(female, dtype=np.float64))
        histogram, _ = np.histogram(female, bins=NUM_BINS, range=(0.0, 1.0))
        line |= {
            "eval_none": num_none,
            "eval_num_not_finite": len(every) - len(known),
            "eval_p_female": mean,
            "eval_p_female_histogram": histogram.tolist(),
            "eval_polarisation": margin,
        }
    attributes = {
        name: {f"eval_{field}": value for field, value in one.items()}
        for name, one in of_attributes(run, prompts, labels).items()
    }
    return line | ({"attributes": attributes} if attributes else {})


def by_prompt(
    run: Run,
    measure: Callable[[np.ndarray, Sequence[str]], dict[str, Any]],
    rows: np.ndarray,
    names: np.ndarray,
) -> dict[str, Any]:
    """What is measured of the rows, bool [N]; also by prompt, if there are several."""
    prompts = run.config.prompts
    line = measure(rows, prompts)
    if len(prompts) > 1:
        line["prompts"] = {x: measure(names == x, [x]) for x in prompts}
    return line


def join(line: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """A line with further fields; those of each prompt and attribute join its own."""
    joined = line | further
    for part in ("attributes", "prompts"):
        first, second = line.get(part, {}), further.get(part, {})
        if first or second:
            names = first | second
            joined[part] = {x: join(first.get(x, {}), second.get(x, {})) for x in names}
    return joined
