"""Images that an audit draws and keeps as PNGs: what is there is not drawn again."""

import json
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import files, parallel
from ddpo_fair.auditing import image_list
from ddpo_fair.diffusion import networks, stable_diffusion
from ddpo_fair.evaluation import (
    evaluation_models,
    evaluation_parts,
    evaluation_plan,
    evaluation_run,
)
from ddpo_fair.evaluation.evaluation_plan import BEFORE, Job, Sampler
from ddpo_fair.loggers import progress
from ddpo_fair.models import lora, lora_files, options, sources
from ddpo_fair.training import saved_run

PLAN, IMAGES, TABLE = "drawing.json", "images", "prompts.jsonl"
SURPLUS = "images that were drawn before, more than --images-per-prompt now asks for"


class Plan(NamedTuple):
    """All that decides what image number i of a prompt is."""

    engine: str
    model: str
    fingerprint: str  # of its files
    lora: str  # of its adapters' file; "" without
    dtype: str
    seed: int
    prompts: tuple[str, ...]
    steps: int | None  # None, and below, for the pipeline's own
    guidance_scale: float | None
    eta: float | None


def complete(planned: Plan, adapters: str | None) -> Plan:
    """A plan of our own networks with what was not given; loads no weights.

    A UserError if they cannot draw that with the adapters of --lora.
    """
    folder = sources.model_folder(planned.model)
    configs = stable_diffusion.read_configs(folder)
    with options.of(folder):  # raises for networks of another kind
        networks.of_configs(configs, jnp.float32)
    if adapters is not None:  # raises for what does not fit
        lora_files.load(adapters, saved_run.unet_template(folder))
    usual = _usual(planned.model)
    given = {
        "steps": usual.num_steps,
        "guidance_scale": usual.guidance_scale,
        "eta": usual.eta,
    }
    given |= {x: y for x in given if (y := getattr(planned, x)) is not None}
    found = sources.identity("model", planned.model)["fingerprint"]
    return planned._replace(fingerprint=found, **given)


def _usual(model: str) -> ConfigDict:
    """How training samples with a model."""
    variant = "embedded" if model == configuration.EMBEDDED else "sd15"
    return configuration.choose_model(configuration.defaults(), variant).sample


def draw_all(
    output: Path,
    planned: Plan,
    adapters: str | None,
    num_images: int,
    batch: int | None,
) -> image_list.ImageList:
    """Draws what a folder has not yet of a `complete` plan; returns its images.

    They are the same whatever the devices and the batch, but for float32's rounding.
    `num_images` are of each prompt, `batch` of them on a device together, None for as
    many as in training. A UserError for the folder of another plan.
    """
    names, devices = begin(output, planned, num_images), parallel.num_devices()
    batch = batch or _usual(planned.model).batch_per_device
    how = Sampler(planned.eta, planned.guidance_scale, planned.steps)
    each = np.arange(len(names)), np.arange(num_images)
    of_rows = np.tile(each[0], num_images), np.repeat(each[1], len(names))
    cut = evaluation_plan.batches(*of_rows, batch * devices, devices)
    jobs = [Job(how, BEFORE, *one) for one in cut]

    def places(job: Job) -> list[Path]:
        pairs = zip(job.prompts[: job.count], job.images[: job.count], strict=True)
        return [names[prompt][image] for prompt, image in pairs]

    missing = [job for job in jobs if not all(x.is_file() for x in places(job))]
    if missing:
        models = _load(planned, adapters)
        policy = evaluation_models.make_policy(models, how)

        def finish(job: Job, images: jax.Array, bar: progress.Progress) -> None:
            bar.wait([images], "images")
            drawn = evaluation_run.pixels(images)[: job.count]
            for path, image in zip(places(job), drawn, strict=True):
                if not path.is_file():
                    evaluation_parts.save_image(path, image)

        evaluation_run.in_turn(
            opening(planned, names, ", ".join(parallel.describe())),
            output,
            len(jobs),
            missing,
            lambda job: evaluation_models.draw(models, policy, job).images,
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
        f"Drawing {len(places[0]):,} images of each of {len(places):,} prompts with"
        f" {planned.model} ({said or 'its own steps and guidance'}), on {devices};"
        f" {sum(map(Path.is_file, each)):,} of {len(each):,} are there."
    )


def listed(output: Path) -> image_list.ImageList:
    """The images of a drawing that is complete."""
    return image_list.of_folder(output / IMAGES, None, str(output / TABLE), SURPLUS)


def _load(planned: Plan, adapters: str | None) -> evaluation_models.EvaluationModels:
    folder = sources.model_folder(planned.model)
    model = stable_diffusion.load(folder, jnp.dtype(planned.dtype))
    models = evaluation_models.of_model(model, planned.prompts, planned.seed)
    if adapters is not None:
        base = models.unets[BEFORE]
        found = lora_files.load(adapters, saved_run.unet_template(folder))
        models.unets[BEFORE] = jax.jit(lora.merge)(base, found)
    return models
