"""What an evaluation keeps: images and figures of each batch, grids of the images."""

import re
from pathlib import Path

import numpy as np
from PIL import Image

from ddpo_fair import files
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation import evaluation_plan
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Job, Plan, Sampler
from ddpo_fair.loggers import run_log

GRID_IMAGES = 64
SHEET = "samplers.png"
SHEET_IMAGES = 8  # of each sampler and model

# The images of sampler, model and prompt's number, in the order of their seeds.
Places = dict[tuple[Sampler, str, int], list[Path]]


def load_part(folder: Path, job: Job) -> dict[str, np.ndarray] | None:
    """The figures of a finished job; None if it is not finished, or of other rows."""
    found = files.load_arrays(folder / "parts" / f"{job.name}.npz")
    if found is not None and all(
        np.array_equal(found.get(name), getattr(job, name)[: job.count])
        for name in ("prompts", "images")
    ):
        return found
    return None


def save_part(folder: Path, job: Job, arrays: dict[str, np.ndarray]) -> None:
    """Writes a job's figures, whole or not at all."""
    files.save_arrays(folder / "parts" / f"{job.name}.npz", arrays)


def image_path(folder: Path, job: Job, plan: Plan, row: int) -> Path:
    """Where the image of a job's row lies."""
    place = folder / "images" / job.sampler.name / job.model
    prompt = int(job.prompts[row])
    return place / image_name(prompt, plan.prompts[prompt].text, job.images[row])


def image_name(prompt: int, text: str, image: int) -> Path:
    """A folder of a prompt's number and words, and an image's number in it."""
    words = re.sub(r"[^a-z0-9]+", "_", text.lower())[-60:].strip("_")
    return Path(f"{prompt:03d}_{words}", f"{image:04d}.png")


def save_image(path: Path, image: np.ndarray) -> None:
    """Writes an image uint8 [H, W, 3] as a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.replacing(path) as part:
        Image.fromarray(image).save(part, "PNG")


def is_image(path: Path) -> bool:
    """Whether the PNG of `save_image` is there, whole and sound by its checksums."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except MemoryError:  # of a sound file
        raise
    except Exception:  # a damaged file raises whatever its reader pleases
        return False
    return True


def write_grids(folder: Path, plan: Plan) -> None:
    """Writes the grids of each prompt before and after, and samplers.png.

    The grids of training's sampler lie in images/, those of the others in the folders
    of their images.
    """
    places = _places(folder, plan)
    for (how, model, prompt), paths in places.items():
        home = folder / "images" / ("" if how == plan.samplers[0] else how.name)
        target = home / f"{model}_{paths[0].parent.name}.png"
        caption = f"{model} | {plan.prompts[prompt].text}"
        _grid(paths[:GRID_IMAGES], caption).save(target)
    if len(plan.samplers) > 1:
        _sheet(plan, places).save(folder / SHEET)


def _sheet(plan: Plan, places: Places) -> Image.Image:
    """A row for each sampler: the same seeds of one prompt, before and after training.

    The prompt is the first that all samplers draw.
    """
    prompt = next(prompt for how, _, prompt in places if how == plan.samplers[-1])
    rows = []
    for how in plan.samplers:
        name = f"eta {how.eta:g}, guidance {how.guidance_scale:g}"
        for model in (BEFORE, AFTER):
            paths = places[how, model, prompt][:SHEET_IMAGES]
            rows.append(_grid(paths, f"{model} | {name}, {how.num_steps} steps"))
    width, height = rows[0].size
    page = Image.new("RGB", (2 * width, height * len(plan.samplers)), "white")
    for index, row in enumerate(rows):
        page.paste(row, (index % 2 * width, index // 2 * height))
    return page


def _places(folder: Path, plan: Plan) -> Places:
    places: Places = {}
    for job in evaluation_plan.jobs(plan):
        for row in range(job.count):
            path = image_path(folder, job, plan, row)
            key = (job.sampler, job.model, int(job.prompts[row]))
            places.setdefault(key, []).append(path)
    return places


def _grid(paths: list[Path], caption: str) -> Image.Image:
    pixels = []
    for path in paths:
        with Image.open(path) as image:
            pixels.append(np.asarray(image.convert("RGB")))
    if len({one.shape for one in pixels}) > 1:
        raise UserError(
            f"{paths[0].parent} holds images of several sizes; remove it, and the same"
            " command draws it again."
        )
    return run_log.grid(np.stack(pixels) / np.float32(255), caption)
