"""Rendered faces whose class is known: what the embedded model was trained to draw.

They test the classifiers, and the model's images are compared with them. Needs the
extra `data`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ddpo_fair.embedded import dataset, ground_truth, occupations


class Renders(NamedTuple):
    """Images uint8 [N, 64, 64, 3] and their classes int [N], -1 without a face."""

    images: np.ndarray
    truth: np.ndarray

    def pixels(self, rows: np.ndarray) -> np.ndarray:
        """Images uint8 [n, 64, 64, 3] of rows [n]."""
        return self.images[rows]


def held_out(num_images: int, attribute: str = ground_truth.GENDER) -> Renders:
    """Images of all kinds that no pretraining has seen, with and without a face.

    Args:
        num_images: N.
        attribute: that `ground_truth` knows.
    """
    examples = [
        dataset.example(0, dataset.FIRST_TEST + index) for index in range(num_images)
    ]
    columns = {name: np.array([one[name] for one in examples]) for name in examples[0]}
    return Renders(columns["image"], ground_truth.classes(attribute, columns))


def balanced(prompts: Sequence[str], num_images: int) -> Renders:
    """Faces of the prompts' occupations, as many female as male.

    Prompts that name no occupation are left out; no prompt left means any clothes.
    """
    from ddpo_fair.embedded import faces, people  # numba takes a second

    nouns = [o for o in occupations.ALL if any(p.endswith(o.name) for p in prompts)]
    images, truth = [], []
    for index in range(num_images):
        rng = np.random.default_rng([0, dataset.FIRST_TEST, index])
        male = bool(index % 2)
        noun = nouns[index // 2 % len(nouns)] if nouns else None
        images.append(faces.render(people.sample(rng, male, noun), 64))
        truth.append(int(male))
    return Renders(np.stack(images), np.array(truth))
