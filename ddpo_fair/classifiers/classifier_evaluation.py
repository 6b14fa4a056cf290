"""A classifier looks at pictures of known classes; what came out is written down."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ddpo_fair import parallel
from ddpo_fair.classifiers import classifier
from ddpo_fair.errors import UserError, shown
from ddpo_fair.evaluation import evaluation_plan, evaluation_summary
from ddpo_fair.report import plots
from ddpo_fair.statistics import accuracy

BATCH = 64  # of each device


def answers(
    judge: classifier.Classifier, pixels: Callable[[np.ndarray], np.ndarray], count: int
) -> np.ndarray:
    """Probabilities float32 [N, 2] of (female, male).

    Args:
        judge: the classifier.
        pixels: gives the uint8 pictures [n, H, W, 3] of rows [n].
        count: N.
    """
    params = parallel.replicate(judge.params)
    size = BATCH * parallel.num_devices()
    found = []
    for first in tqdm.trange(0, count, size, desc="classifier", disable=None):
        rows = np.arange(first, min(first + size, count))
        padded = np.resize(rows, size)  # every batch has the same shape
        images = pixels(padded).astype(np.float32) / np.float32(255)
        seen = parallel.gather(
            classifier.classify(judge, params, parallel.split(images))
        )
        found.append(seen[: len(rows)])
    return np.concatenate(found)


def write(
    stem: Path, found: dict[str, Any], source: dict[str, Any]
) -> tuple[Path, Path]:
    """Writes STEM.json and STEM.png; returns their paths.

    Args:
        stem: without an ending.
        found: of `accuracy.measure`.
        source: what was tested on what.

    Raises:
        UserError: if they cannot be written.
    """
    content = evaluation_summary.plain({"source": source, **found})
    text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    with plots.style():
        picture = plots.png(accuracy.sheet(found))
    paths = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.png")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        evaluation_plan.replace(paths[0], text.encode())
        evaluation_plan.replace(paths[1], picture)
    except OSError as error:
        raise UserError(
            f"--output={shown(str(stem))} cannot be written"
            f" ({error.strerror or error}); give another."
        ) from error
    return paths
