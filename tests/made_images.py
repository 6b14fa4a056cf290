"""Images that a classifier can tell apart by their shape alone: stripes."""

from pathlib import Path

import numpy as np
from PIL import Image

from ddpo_fair.classifiers import classes


def stripes(kind: int, index: int, size: int = 24) -> np.ndarray:
    """An image uint8 [size, size, 3] of a class: across for 0, upright for 1."""
    draw = np.random.default_rng([kind, index])
    steps = np.linspace(0, np.pi * draw.uniform(4, 6), size) + draw.uniform(0, 6)
    wave = np.broadcast_to(np.sin(steps), (size, size))
    wave = wave.T if kind == 0 else wave
    pixels = 128 + wave[..., None] * draw.uniform(40, 110, 3)
    return np.uint8(np.clip(pixels + draw.normal(0, 8, pixels.shape), 0, 255))


def folder(root: Path, counts: dict[str, tuple[int, ...]]) -> Path:
    """SPLIT/CLASS/x.png of so many images of each class; "" is no split."""
    for first, (split, numbers) in enumerate(counts.items()):
        for kind, count in enumerate(numbers):
            place = root / split / classes.CLASSES[kind]
            place.mkdir(parents=True)
            for index in range(count):
                image = Image.fromarray(stripes(kind, 1000 * first + index))
                image.save(place / f"{index:03d}.png")
    return root
