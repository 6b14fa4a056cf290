"""How good and how varied generated images are, from features of any network.

NumPy only, in float64. Features are [N, F]; where two sets are "paired", row i of both
comes from the same noise and the same prompt.
"""

from typing import NamedTuple

import numpy as np

from ddpo_fair.errors import UserError
from ddpo_fair.statistics.intervals import Interval, Z, bootstrap


class KernelDistance(NamedTuple):
    """A kernel distance and the standard error of its mean over blocks.

    `estimate` is unbiased, hence about 0, or below, for sets of one distribution.
    """

    estimate: float
    standard_error: float


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Frechet distance of two Gaussians fitted to features (FID, Heusel et al. 2017).

    |m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2)), covariances with N - 1 as in the
    reference code. Biased upwards by about 1/N: compare only at equal N, and with what
    two samples of the same model show.

    Raises:
        UserError: for fewer than two images, features that do not match or are not
            finite.
    """
    first, second = _checked(first, second)
    means = first.mean(axis=0) - second.mean(axis=0)
    # With C1 = A'A and C2 = B'B, the root's trace is the nuclear norm of A B': exact
    # for singular covariances, too, where a matrix root is not. A may be triangular.
    left, right = (np.linalg.qr(_centred(x), mode="r") for x in (first, second))
    nuclear = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    traces = np.sum(left**2) + np.sum(right**2)
    return float(max(means @ means + traces - 2 * nuclear, 0.0))


def kernel_distance(
    first: np.ndarray,
    second: np.ndarray,
    rng: np.random.Generator,
    num_blocks: int = 100,
    block_size: int = 1000,
) -> KernelDistance:
    """Squared MMD with the kernel (x.y / F + 1)^3 (KID, Binkowski et al. 2018).

    The unbiased estimate, averaged over random blocks of both sets. Unlike the Frechet
    distance it may be compared across numbers of images.

    Args:
        first: [N, F].
        second: [M, F].
        rng: draws the blocks, e.g. `np.random.default_rng(0)`.
        num_blocks: blocks to average; one that holds everything needs no second.
        block_size: images of each set in a block, at most min(N, M).

    Raises:
        UserError: as for `frechet_distance`.
    """
    first, second = _checked(first, second)
    size = min(block_size, len(first), len(second))
    if size == len(first) == len(second):
        num_blocks = 1
    distances = np.array(
        [
            _squared_mmd(
                first[rng.choice(len(first), size, replace=False)],
                second[rng.choice(len(second), size, replace=False)],
            )
            for _ in range(num_blocks)
        ]
    )
    error = distances.std(ddof=1) / np.sqrt(num_blocks) if num_blocks > 1 else np.nan
    return KernelDistance(float(distances.mean()), float(error))


def paired_similarity(
    before: np.ndarray, after: np.ndarray, rng: np.random.Generator
) -> Interval:
    """Mean cosine of each image with itself before fine-tuning, 1 for no change.

    The interval is a bootstrap over images.

    Args:
        before: [N, F].
        after: [N, F], paired.
        rng: of the resamples.
    """
    before, after = _checked(before, after)
    if len(before) != len(after):
        raise UserError(
            f"Paired features need equal numbers, not {len(before)} and {len(after)}."
        )
    cosines = np.sum(_unit(before) * _unit(after), axis=1)
    return bootstrap(cosines, rng, num_resamples=2000)


def diversity(features: np.ndarray, groups: np.ndarray) -> Interval:
    """Mean cosine distance of two images of one prompt, averaged over prompts.

    0 if every prompt draws one and the same picture; a fall is a collapse of variety.
    The interval is the jackknife's, over the images of these prompts.

    Args:
        features: [N, F].
        groups: [N], the prompt of each image; prompts with one image are left out.

    Returns:
        nan if no prompt has two images.
    """
    directions = _unit(np.asarray(features, np.float64))
    found = [
        _mean_distance(directions[np.asarray(groups) == group])
        for group in np.unique(groups)
    ]
    found = [one for one in found if np.isfinite(one[0])]
    if not found:
        return Interval(np.nan, np.nan, np.nan)
    distances, variances = np.array(found).T
    mean, half = distances.mean(), Z * np.sqrt(variances.sum()) / len(found)
    return Interval(float(mean), float(mean - half), float(mean + half))


def _mean_distance(directions: np.ndarray) -> tuple[float, float]:
    """The mean over pairs of 1 - cosine, and its jackknife variance (nan below 3)."""
    count = len(directions)
    if count < 2:
        return np.nan, np.nan
    # |sum of unit vectors|^2 = count + the cosines of all ordered pairs
    total = directions.sum(axis=0)
    square = total @ total
    distance = 1 - (square - count) / (count * (count - 1))
    if count < 3:
        return distance, np.nan
    squares = square - 2 * directions @ total + 1  # without each image in turn
    left_out = 1 - (squares - (count - 1)) / ((count - 1) * (count - 2))
    return distance, (count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)


def _squared_mmd(first: np.ndarray, second: np.ndarray) -> float:
    """The unbiased estimate: no image is compared with itself."""
    size, width = first.shape
    within = 0.0
    for features in (first, second):
        kernel = (features @ features.T / width + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (size * (size - 1))
    across = ((first @ second.T / width + 1) ** 3).mean()
    return float(within - 2 * across)


def _centred(features: np.ndarray) -> np.ndarray:
    """A matrix A with A'A the covariance."""
    return (features - features.mean(axis=0)) / np.sqrt(len(features) - 1)


def _unit(features: np.ndarray) -> np.ndarray:
    """Each row over its length; a row of zeros stays."""
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(lengths > 0, lengths, 1.0)


def _checked(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(first, np.float64), np.asarray(second, np.float64)
    for features in (first, second):
        if features.ndim != 2 or len(features) < 2 or not np.isfinite(features).all():
            raise UserError(
                f"Features of shape {features.shape} cannot be compared: they must be"
                " finite, [images, features], of at least two images."
            )
    if first.shape[1] != second.shape[1]:
        raise UserError(
            f"Features of {first.shape[1]} and {second.shape[1]} numbers cannot be"
            " compared; take both from the same network."
        )
    return first, second
