"""Images that an audit draws and keeps as PNGs: what is there is not drawn again."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ddpo_fair import config as configuration
from ddpo_fair import files, parallel, prompts
from ddpo_fair.auditing import image_list
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.evaluation import (
    evaluation_models,
    evaluation_parts,
    evaluation_plan,
    evaluation_run,
)
from ddpo_fair.evaluation.evaluation_plan import BEFORE, Job, Sampler
from ddpo_fair.loggers import progress
from ddpo_fair.models import lora_files, sources
from ddpo_fair.report import formatting
from ddpo_fair.training import assembly

PLAN, IMAGES, TABLE = "drawing.json", "images", "prompts.jsonl"
SURPLUS = "images that were drawn before, more than --images-per-prompt now asks for"


class Plan(NamedTuple):
    """All that decides what image number i of a prompt is."""

    engine: str
    model: str
    variant: str  # of its files
    fingerprint: str  # of its files
    lora: str  # of its adapters' file; "" without
    dtype: str
    seed: int
    prompts: tuple[str, ...]
    steps: int | None  # None, and below, for the pipeline's own
    guidance_scale: float | None
    eta: float | None


# A whole plan; draws so many of each prompt in a folder, what is not there yet.
Prepared = tuple[Plan, Callable[[Path, int], image_list.ImageList]]


def prepare(planned: Plan, lora_file: str | None, batch: int | None) -> Prepared:
    """A plan of our own networks with what was not given, and what draws it.

    Loads no weights but those of --lora, to see that they fit. `batch` images are drawn
    on a device together, None for as many as in training. A UserError if the model
    cannot draw that.
    """
    folder = sources.model_folder(planned.model, planned.variant)
    configs = stable_diffusion.read_configs(folder)
    model = stable_diffusion.of_configs(folder, configs, jnp.float32)
    if lora_file is not None:
        lora_files.load(lora_file, model.params)
    kind = assembly.variant_of(configs)
    usual = configuration.choose_model(configuration.defaults(), kind)
    given = {
        "steps": usual.sample.num_steps,
        "guidance_scale": usual.sample.guidance_scale,
        "eta": usual.sample.eta,
    }
    given |= {x: y for x in given if (y := getattr(planned, x)) is not None}
    found = sources.identity("model", planned.model, planned.variant)["fingerprint"]
    planned = planned._replace(fingerprint=found, **given)
    batch = batch or usual.sample.batch_per_device
    return planned, partial(_draw_all, planned, lora_file or "", batch)


def _draw_all(
    planned: Plan, lora_file: str, batch: int, output: Path, num_images: int
) -> image_list.ImageList:
    """Draws what a folder has not yet of a whole plan; returns its images.

    They are the same whatever the devices and the batch, but for float32's rounding.
    `num_images` are of each prompt. A UserError for the folder of another plan.
    """
    names, devices = begin(output, planned, num_images), parallel.num_devices()
    how = Sampler(planned.eta, planned.guidance_scale, planned.steps)
    texts = tuple(prompts.Prompt(x, prompts.TRAINED) for x in planned.prompts)
    sizes = num_images, planned.seed, batch * devices, devices
    plan = evaluation_plan.Plan({}, (how,), texts, *sizes)
    jobs = [job for job in evaluation_plan.jobs(plan) if job.model == BEFORE]

    def places(job: Job) -> list[Path]:
        pairs = zip(job.prompts[: job.count], job.images[: job.count], strict=True)
        return [names[prompt][image] for prompt, image in pairs]

    drawn = evaluation_parts.is_image
    missing = [job for job in jobs if not all(map(drawn, places(job)))]
    if missing:
        variant, dtype = planned.variant or None, jnp.dtype(planned.dtype)
        folder = sources.model_folder(planned.model, planned.variant)
        given = dtype, False, variant, lora_file, planned.prompts
        model = stable_diffusion.load(folder, *given)
        models = evaluation_models.of_model(model, plan)
        policy = evaluation_models.make_policy(models, how)

        def start(job: Job) -> jax.Array:
            trajectory = evaluation_models.sample(models, policy, job)
            return evaluation_models.decode(models, trajectory)

        def finish(job: Job, images: jax.Array, bar: progress.Progress) -> None:
            bar.wait([images], "images")
            pixels = evaluation_run.pixels(images)[: job.count]
            for path, image in zip(places(job), pixels, strict=True):
                if not drawn(path):
                    evaluation_parts.save_image(path, image)

        evaluation_run.in_turn(
            opening(planned, names, ", ".join(parallel.describe())),
            output,
            len(jobs),
            missing,
            start,
            finish,
        )
    return listed(output)


def begin(output: Path, planned: Plan, num_images: int) -> list[list[Path]]:
    """Keeps what is planned, and which image is of which prompt: their places [P][N].

    The order of the prompts says nothing. A UserError for a folder of another plan.
    """
    ordered = sorted(planned.prompts)
    plan = planned._asdict() | {"prompts": ordered}
    files.bind(output / PLAN, plan, "--output")
    names = [
        [
            evaluation_parts.image_name(ordered.index(text), text, image)
            for image in range(num_images)
        ]
        for text in planned.prompts
    ]
    rows = [
        json.dumps({"file": name.as_posix(), "prompt": text}) + "\n"
        for text, own in zip(planned.prompts, names, strict=True)
        for name in own
    ]
    files.replace(output / TABLE, "".join(rows))
    return [[output / IMAGES / name for name in own] for own in names]


def opening(planned: Plan, places: list[list[Path]], devices: str) -> str:
    """The line that says what is drawn, with what, and how much is there."""
    each = [path for own in places for path in own]
    how = {x: getattr(planned, x) for x in ("steps", "guidance_scale", "eta")}
    said = ", ".join(f"{x} {y:g}" for x, y in how.items() if y is not None)
    return (
        f"Drawing {formatting.count(len(places[0]), 'image')} of each of"
        f" {formatting.count(len(places), 'prompt')} with {planned.model}"
        f"{' and a LoRA' * bool(planned.lora)}"
        f" ({said or 'its own steps and guidance'}), on {devices};"
        f" {sum(map(evaluation_parts.is_image, each)):,} of {len(each):,} are there."
    )


def listed(output: Path) -> image_list.ImageList:
    """The images of a drawing that is complete."""
    return image_list.of_folder(output / IMAGES, None, str(output / TABLE), SURPLUS)
