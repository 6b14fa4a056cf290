"""What fine-tuning did to the images themselves, from features of any network.

NumPy only, in float64. Features are [N, F]; where two sets are "paired", row i of both
comes from the same noise and the same prompt. A distance between finite samples is
never 0: each stands beside the same distance between two halves of the base model's own
images, which share no seed.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ddpo_fair.errors import UserError
from ddpo_fair.statistics import diversity, intervals
from ddpo_fair.statistics.intervals import Interval

NUM_SPLITS = 20
FEWEST = 8  # images in a half that are worth a distance
KID_IMAGES = 1000  # of each set, as in the reference code


def of_pairs(
    before: np.ndarray, after: np.ndarray, prompts: np.ndarray
) -> dict[str, Any]:
    """Similarity, distances and diversity of paired images, for evaluation.json.

    Of the base and of the fine-tuned model; prompts are int [N].
    """
    figures = {
        "images": len(before),
        "similarity_to_base": paired_similarity(before, after)._asdict(),
        "diversity_before": diversity.of_features(before, prompts)._asdict(),
        "diversity_after": diversity.of_features(after, prompts)._asdict(),
    }
    if len(before) < 2 * FEWEST:
        return figures
    splits = list(_splits(len(before)))
    own = [_both(before[here], before[there]) for here, there in splits]
    tuned = [_both(after[here], before[there]) for here, there in splits]
    return figures | {"distance_to_base": _range(tuned), "base_to_itself": _range(own)}


def to_reference(
    reference: np.ndarray, before: np.ndarray, after: np.ndarray
) -> dict[str, Any]:
    """Distances of both models' images to given ones, e.g. balanced renders.

    Their ranges come from random halves; `reference_itself` compares the reference's
    halves.
    """
    if min(len(reference), len(before)) < 2 * FEWEST:
        return {}
    found: dict[str, list] = {"before": [], "after": [], "reference_itself": []}
    pairs = zip(_splits(len(reference)), _splits(len(before)), strict=True)
    for (here, there), (rows, _) in pairs:
        rows = rows[: len(here)]
        sets = before[rows], after[rows], reference[here]
        for distances, features in zip(found.values(), sets, strict=True):
            distances.append(_both(features, reference[there]))
    return {name: _range(distances) for name, distances in found.items()}


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (FID, Heusel et al. 2017).

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), covariances with N - 1 as in the
    reference code. Biased upwards by about 1/N: compare only at equal N, and with what
    two samples of the same model show. A UserError for fewer than two images, features
    that do not match or are not finite.
    """
    first, second = _checked(first, second)
    means = first.mean(axis=0) - second.mean(axis=0)
    # With C1 = A'A and C2 = B'B, the root's trace is the nuclear norm of A B': exact
    # for singular covariances, too, where a matrix root is not. A may be triangular.
    centred = (x - x.mean(axis=0) for x in (first, second))
    left, right = (np.linalg.qr(x / np.sqrt(len(x) - 1), mode="r") for x in centred)
    nuclear = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    traces = np.sum(left**2) + np.sum(right**2)
    return float(max(means @ means + traces - 2 * nuclear, 0.0))


def kernel_distance(
    first: np.ndarray, second: np.ndarray, rng: np.random.Generator
) -> float:
    """Squared MMD with the kernel (x.y / F + 1)^3 (KID, Binkowski et al. 2018).

    The unbiased estimate, hence about 0, or below, for sets of one distribution. Unlike
    the Frechet distance it may be compared across numbers of images: `rng` draws those
    that are compared where there are more than `KID_IMAGES`, or more in one set. A
    UserError as for `frechet_distance`.
    """
    first, second = _checked(first, second)
    size = min(KID_IMAGES, len(first), len(second))
    first, second = (
        x[rng.choice(len(x), size, replace=False)] for x in (first, second)
    )
    within = 0.0  # no image is compared with itself
    for features in (first, second):
        kernel = _kernel(features, features)
        within += (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
    return float(within - 2 * _kernel(first, second).mean())


def paired_similarity(before: np.ndarray, after: np.ndarray) -> Interval:
    """Mean cosine of each image with itself before fine-tuning, 1 for no change.

    The interval is over images.
    """
    before, after = _checked(before, after)
    if len(before) != len(after):
        raise UserError(
            f"Paired features need equal numbers, not {len(before)} and {len(after)}."
        )
    cosines = np.sum(diversity.unit(before) * diversity.unit(after), axis=1)
    return intervals.mean(cosines)


def _both(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Frechet and kernel distance."""
    kernel = kernel_distance(first, second, np.random.default_rng(0))
    return frechet_distance(first, second), kernel


def _splits(count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Halves of so many rows, drawn `NUM_SPLITS` times."""
    rng = np.random.default_rng(0)
    for _ in range(NUM_SPLITS):
        order = rng.permutation(count)
        yield order[: count // 2], order[count // 2 : 2 * (count // 2)]


def _range(distances: list[tuple[float, float]]) -> dict[str, dict[str, float]]:
    """Mean and central 95 % of the splits, of both distances."""
    low, high = np.quantile(distances, [0.025, 0.975], axis=0)
    names, means = ("frechet", "kernel"), np.mean(distances, axis=0)
    rows = zip(names, means, low, high, strict=True)
    return {name: Interval(*figures)._asdict() for name, *figures in rows}


def _kernel(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first @ second.T / first.shape[1] + 1) ** 3


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    alike = first.shape[1:] == second.shape[1:]
    for x in (first, second):
        if not alike or x.ndim != 2 or len(x) < 2 or not np.isfinite(x).all():
            raise UserError(
                f"Features of shapes {first.shape} and {second.shape} cannot be"
                " compared: they must be finite, [images, features], of at least two"
                " images, and from the same network."
            )
    return first, second
