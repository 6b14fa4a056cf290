"""Where an evaluation keeps the images and the figures of each batch."""

import re
import zipfile
from pathlib import Path

import numpy as np

from ddpo_fair import files
from ddpo_fair.evaluation.evaluation_plan import Job, Plan


def load_part(folder: Path, job: Job) -> dict[str, np.ndarray] | None:
    """The figures of a finished job; None if it is not finished, or of other rows."""
    found = load(folder / "parts" / f"{job.name}.npz")
    if found is not None and all(
        np.array_equal(found.get(name), getattr(job, name)[: job.count])
        for name in ("prompts", "images")
    ):
        return found
    return None


def save_part(folder: Path, job: Job, arrays: dict[str, np.ndarray]) -> None:
    """Writes a job's figures, whole or not at all."""
    save(folder / "parts" / f"{job.name}.npz", arrays)


def load(path: Path) -> dict[str, np.ndarray] | None:
    """Arrays of `save`; None if they are not there, or not whole."""
    try:
        with open(path, "rb") as file:
            return dict(np.load(file, allow_pickle=False))
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
        return None


def save(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes arrays, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def image_path(folder: Path, job: Job, plan: Plan, row: int) -> Path:
    """Where the image of a job's row lies."""
    prompt = int(job.prompts[row])
    words = re.sub(r"[^a-z0-9]+", "_", plan.prompts[prompt].text.lower())[-60:]
    place = folder / "images" / job.sampler.name / job.model
    return place / f"{prompt:03d}_{words.strip('_')}" / f"{job.images[row]:04d}.png"
