"""The fields of a line of metrics.jsonl: of an epoch's images, updates, evaluation."""

import math
from typing import Any

import jax
import numpy as np

from ddpo_fair.classifiers import classes
from ddpo_fair.statistics import accuracy, intervals

NUM_BINS = 10  # of the histogram of P(female)


def shares(labels: np.ndarray) -> dict[str, Any]:
    """q with its 95 % Wilson interval and its counts; q is nan without a face.

    Args:
        labels: int [N], FEMALE, MALE or NONE.
    """
    num_female = int(np.sum(labels == classes.FEMALE))
    num_male = int(np.sum(labels == classes.MALE))
    q = intervals.wilson(num_female, num_female + num_male)
    return {
        "q": q.estimate,
        "q_low": q.low,
        "q_high": q.high,
        "num_female": num_female,
        "num_male": num_male,
        "num_none": int(np.sum(labels == classes.NONE)),
    }


def of_images(
    labels: np.ndarray, rewards: np.ndarray, finite: np.ndarray
) -> dict[str, Any]:
    """The fields of images that were rewarded.

    Args:
        labels: int [N].
        rewards: float32 [N].
        finite: bool [N], False where the classifier's answer is NaN.
    """
    values = rewards.astype(np.float64)
    return {
        "reward_mean": float(values.mean()),
        "reward_std": float(values.std()),
        **shares(labels),
        "num_not_finite": int(np.sum(~finite)),
    }


def of_updates(measured: list[dict[str, jax.Array]]) -> dict[str, float]:
    """The fields of an epoch's updates: means of those that were not skipped.

    `ratio_deviation` is that of the first update, when sampler and learner must agree;
    `kl_last` that of the last; `skipped_updates` is their number. NaN where there is
    nothing to say.
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


def of_evaluation(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The eval_ fields: q, and whether the faces are decided or ambiguous.

    Args:
        probabilities: float [N, 2].
        labels: int [N].
    """
    measured = {f"eval_{name}": value for name, value in shares(labels).items()}
    num_none = measured.pop("eval_num_none")
    known = probabilities[classes.finite(probabilities)]
    female, margin, mean = known[:, classes.FEMALE], math.nan, math.nan
    if len(known):
        margin = accuracy.mean_confidence_margin(known)
        mean = float(np.mean(female, dtype=np.float64))
    histogram, _ = np.histogram(female, bins=NUM_BINS, range=(0.0, 1.0))
    return {
        **measured,
        "eval_none": num_none,
        "eval_num_not_finite": len(probabilities) - len(known),
        "eval_p_female": mean,
        "eval_p_female_histogram": histogram.tolist(),
        "eval_polarisation": margin,
    }


def join(line: dict[str, Any], further: dict[str, Any]) -> dict[str, Any]:
    """A line with further fields; those of each prompt join what it has."""
    first, second = line.get("prompts", {}), further.get("prompts", {})
    prompts = {x: first.get(x, {}) | second.get(x, {}) for x in first | second}
    line = {name: x for name, x in (line | further).items() if name != "prompts"}
    return line | ({"prompts": prompts} if prompts else {})
