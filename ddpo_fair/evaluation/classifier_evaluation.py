"""The test of a classifier on images of known classes, and the files that keep it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm

from ddpo_fair import files, parallel
from ddpo_fair.classifiers import classifier, labelled_images
from ddpo_fair.errors import shown
from ddpo_fair.report import figures, plots
from ddpo_fair.statistics import accuracy

if TYPE_CHECKING:  # the extra `data` may be missing
    from ddpo_fair.embedded import renders

BATCH = 64  # of each device
MARK = b'{\n "source": {'  # with which every STEM.json begins


def classify(
    model: classifier.AnyClassifier,
    images: "labelled_images.Split | renders.Renders",
    rows: np.ndarray,
) -> np.ndarray:
    """Probabilities float32 [n, K] of rows int [n] of images."""
    params = parallel.replicate(model.params)
    size = BATCH * parallel.num_devices()
    found = []
    for first in tqdm.trange(0, len(rows), size, desc="classifier", disable=None):
        batch = rows[first : first + size]
        padded = np.resize(batch, size)  # every batch has the same shape
        pixels = images.pixels(padded).astype(np.float32) / np.float32(255)
        placed = classifier.classify((model,), (params,), parallel.split(pixels))
        found.append(parallel.gather(placed)[: len(batch)])
    return np.concatenate(found)


def test(
    model: classifier.AnyClassifier,
    images: "labelled_images.Split | renders.Renders",
    rows: np.ndarray,
    confidence: float,
    stem: Path,
    source: dict[str, Any],
) -> tuple[str, tuple[Path, Path]]:
    """Classifies rows int [n] of images, writes how well: a sentence, `write`'s paths.

    An answer counts if its probability is above `confidence`; `stem` and `source` are
    `write`'s.
    """
    found = accuracy.measure(
        images.truth[rows],
        classify(model, images, rows),
        confidence,
        model.attributes[0].classes,
    )
    return accuracy.sentence(found), write(stem, found, source)


def paths(stem: Path) -> tuple[Path, Path]:
    """STEM.json and STEM.png."""
    return stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")


def write(
    stem: Path, found: dict[str, Any], source: dict[str, Any]
) -> tuple[Path, Path]:
    """Writes STEM.json and STEM.png; returns their paths, or raises a UserError.

    `found` is of `accuracy.measure`, `source` says what was tested on what.
    """
    with plots.style():
        image = plots.png(figures.accuracy_sheet(found))
    written = paths(stem)
    with files.writing(f"--output={shown(str(stem))}"):
        stem.parent.mkdir(parents=True, exist_ok=True)
        text = files.json_text({"source": source, **found}, indent=1)
        files.replace(written[0], text)
        files.replace(written[1], image)
    return written
