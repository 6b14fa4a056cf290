"""What fine-tuning did to the images themselves: quality in figures with intervals.

A distance between finite samples is never 0. So each stands beside the same distance
between two halves of the base model's own images, which share no seed.
"""

from typing import Any

import numpy as np

from ddpo_fair.statistics import estimates, image_quality
from ddpo_fair.statistics.intervals import Interval

NUM_SPLITS = 20
FEWEST = 8  # images in a half that are worth a distance


def of_pairs(
    before: np.ndarray, after: np.ndarray, prompts: np.ndarray
) -> dict[str, Any]:
    """Similarity, distances and diversity of paired images.

    Args:
        before: features [N, F] of the base model's images.
        after: of the fine-tuned model's, from the same seeds.
        prompts: int [N].
    """
    rng = np.random.default_rng(0)
    similarity = image_quality.paired_similarity(before, after, rng)
    figures = {
        "images": len(before),
        "similarity_to_base": estimates.interval(similarity),
        "diversity_before": estimates.interval(
            image_quality.diversity(before, prompts)
        ),
        "diversity_after": estimates.interval(image_quality.diversity(after, prompts)),
    }
    if len(before) >= 2 * FEWEST:
        figures |= _distances(before, after, rng)
    return figures


def to_reference(
    reference: np.ndarray, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """Distances of both models' images to given ones, e.g. balanced renders.

    Their ranges come from random halves; `reference_itself` compares the reference's
    halves.
    """
    rng = np.random.default_rng(0)
    found: dict[str, list[tuple[float, float]]] = {
        "before": [],
        "after": [],
        "reference_itself": [],
    }
    if min(len(reference), len(before)) < 2 * FEWEST:
        return {}
    for _ in range(NUM_SPLITS):
        here, there = _halves(len(reference), rng)
        rows, _ = _halves(len(before), rng)
        rows = rows[: len(here)]
        other = reference[there]
        found["before"].append(_both(before[rows], other))
        found["after"].append(_both(after[rows], other))
        found["reference_itself"].append(_both(reference[here], other))
    return {name: _ranges(pairs) for name, pairs in found.items()}


def _distances(
    before: np.ndarray, after: np.ndarray, rng: np.random.Generator
) -> dict[str, Any]:
    own, tuned = [], []
    for _ in range(NUM_SPLITS):
        here, there = _halves(len(before), rng)
        own.append(_both(before[here], before[there]))
        tuned.append(_both(after[here], before[there]))
    return {"distance_to_base": _ranges(tuned), "base_to_itself": _ranges(own)}


def _both(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    kernel = image_quality.kernel_distance(first, second, rng, num_blocks=1)
    return image_quality.frechet_distance(first, second), kernel.estimate


def _halves(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    order = rng.permutation(count)
    return order[: count // 2], order[count // 2 : 2 * (count // 2)]


def _ranges(pairs: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Mean and central 95 % of the splits, of both distances."""
    figures = {}
    for name, values in zip(("frechet", "kernel"), np.array(pairs).T, strict=True):
        low, high = np.quantile(values, [0.025, 0.975])
        figures[name] = estimates.interval(Interval(values.mean(), low, high))
    return figures
