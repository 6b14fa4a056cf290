"""What is rewarded: shares of an attribute's classes, or of cells of several's product.

A cell is one class of each attribute; cells are numbered as `np.ravel_multi_index` does
it, the last attribute's classes fastest.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair.classifiers.classes import NONE

JOINT = " x "  # between the attributes of a joint goal, in its name
# Wanted shares by attribute and prompt.
Targets = Mapping[str, Mapping[str, Sequence[float]]]


@dataclasses.dataclass(frozen=True)
class Goal:
    """Wanted shares of K classes or cells."""

    attributes: tuple[str, ...]  # names of one, or of those whose cells these are
    sizes: tuple[int, ...]  # number of classes of each
    reward: str  # shift, balance or balance_loo
    weight: float  # of its advantages among those of all goals
    targets: dict[str, np.ndarray]  # by prompt, float64 [K]

    @property
    def name(self) -> str:
        """The attributes' names, e.g. "gender x skin_tone"."""
        return JOINT.join(self.attributes)

    def labels(self, labels: Mapping[str, np.ndarray]) -> np.ndarray:
        """The class or cell of each image, int [N]; NONE if any attribute has none.

        `labels` are int [N] of each attribute.
        """
        own = np.stack([labels[name] for name in self.attributes])
        cells = np.ravel_multi_index(tuple(np.maximum(own, 0)), self.sizes)
        return np.where((own == NONE).any(axis=0), NONE, cells)

    def probabilities(self, probabilities: Mapping[str, np.ndarray]) -> np.ndarray:
        """The probability of each class or cell, [N, K]: attributes are independent."""
        own = [probabilities[name] for name in self.attributes]
        return functools.reduce(_cells, own)

    def target(self, prompts: Sequence[str]) -> np.ndarray:
        """The mean target of prompts, [K]."""
        return np.mean([self.targets[prompt] for prompt in prompts], axis=0)


def of(config: ConfigDict, targets: Targets) -> tuple[Goal, ...]:
    """The goals of a config's attributes; those with weight 0 have none.

    `targets` are those that differ from their attribute's.
    """
    rewarded = {x: one for x, one in config.attributes.items() if one.weight}
    joint = config.reward.combine == "joint"

    def shares(names: Sequence[str], prompt: str) -> np.ndarray:
        own = [targets.get(x, {}).get(prompt, rewarded[x].target) for x in names]
        return functools.reduce(_cells, [np.array([x], np.float64) for x in own])[0]

    return tuple(
        Goal(
            names,
            tuple(len(rewarded[x].classes) for x in names),
            rewarded[names[0]].reward or config.reward.name,
            1.0 if joint else rewarded[names[0]].weight,
            {prompt: shares(names, prompt) for prompt in config.prompts},
        )
        for names in ([tuple(rewarded)] if joint else [(x,) for x in rewarded])
    )


def _cells(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Products [N, K1 * K2] of [N, K1] and [N, K2]."""
    return (first[:, :, None] * second[:, None]).reshape(len(first), -1)
