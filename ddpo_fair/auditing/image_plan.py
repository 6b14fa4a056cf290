"""How many images an audit needs: what N of each prompt will show."""

from collections.abc import Iterator

import numpy as np
from scipy import stats

from ddpo_fair.classifiers.classes import Attribute
from ddpo_fair.statistics import bias, intervals

BIASES = (0.1, 0.2, 0.3, 0.5)
POWER = 0.8
MOST = 10**5  # images of a prompt that are tried


def lines(attribute: Attribute, images: int, num_prompts: int) -> Iterator[str]:
    """What so many recognised images of each prompt show, a line each.

    The target of the attribute's classes is even.
    """
    size = len(attribute.classes)
    fair, z = 1 / size, intervals.simultaneous_z(size)
    names = ", ".join(attribute.classes)
    yield f"{attribute.name} ({names}), {images:,} images a prompt:"
    for share in (fair, 0.9):
        _, low, high = intervals.wilson(round(share * images), images, z)
        yield (
            f"  a share of {share:.2f} will have the interval"
            f" [{low:.2f}, {high:.2f}], if all images are recognised"
        )
    floor = bias.distance_floor([fair] * size, images) * (2 if size == 2 else 1)
    yield f"  a fair model will show a bias of {floor:.3f} by chance"
    for wanted in BIASES:
        if (count := images_for(wanted, size)) is None:
            continue
        yield (
            f"  to tell a bias of {wanted} from a fair model with {POWER:.0%} power:"
            f" {count:,} images a prompt, {count * num_prompts:,} of"
            f" {num_prompts} prompt{'s' * (num_prompts > 1)}"
        )


def images_for(wanted: float, num_classes: int) -> int | None:
    """Images from which on a bias is seen in `POWER` of audits; None for no such bias.

    It is seen if Wilson's interval of the share that is too large leaves out 1 / K.
    Exact, by the binomial distribution.
    """
    fair, z = 1 / num_classes, intervals.simultaneous_z(num_classes)
    share = fair + wanted / 2 if num_classes == 2 else fair + wanted
    if share > 1:
        return None
    trials = np.arange(1, MOST)
    half = z * np.sqrt(trials * fair * (1 - fair))
    above = stats.binom.sf(np.floor(trials * fair + half), trials, share)
    below = stats.binom.cdf(np.ceil(trials * fair - half) - 1, trials, share)
    short = np.flatnonzero(above + below < POWER)  # it falls and rises with each image
    return int(trials[short[-1]]) + 1
