"""Images that an audit draws and keeps as PNGs: what is there is not drawn again."""

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import files, parallel, prompts
from ddpo_fair.auditing import image_list
from ddpo_fair.diffusion import networks, stable_diffusion
from ddpo_fair.errors import UserError
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


class Plan(NamedTuple):
    """All that decides what image number i of a prompt is."""

    model: str
    fingerprint: str  # of its files
    lora: str  # of its adapters; "" without
    dtype: str
    steps: int
    guidance_scale: float
    eta: float
    seed: int
    prompts: tuple[str, ...]


def plan(config: ConfigDict, file: str | None) -> tuple[Plan, lora.Adapters]:
    """What a config draws with the adapters of a file, and these; reads no weights.

    Raises:
        UserError: if that cannot be drawn.
    """
    wrong = list(prompts.problems(config.prompts))
    if config.model == configuration.EMBEDDED and not wrong:
        wrong = prompts.unknown(config.prompts)
    if wrong:
        raise UserError(f"--prompts: {' '.join(wrong)}")
    folder = sources.model_folder(config.model)
    configs = stable_diffusion.read_configs(folder)
    with options.of(folder):  # raises for networks of another kind
        networks.of_configs(configs, jnp.float32)
    adapters, found = {}, ""
    if file is not None:
        adapters = lora_files.load(file, saved_run.unet_template(folder))
        digest = hashlib.sha256()
        for array in jax.tree.leaves(adapters):
            digest.update(array.tobytes())
        found = digest.hexdigest()[:16]
    planned = Plan(
        model=config.model,
        fingerprint=sources.identity("model", config.model)["fingerprint"],
        lora=found,
        dtype=config.dtype,
        steps=config.sample.num_steps,
        guidance_scale=config.sample.guidance_scale,
        eta=config.sample.eta,
        seed=config.seed,
        prompts=tuple(config.prompts),
    )
    return planned, adapters


def draw(
    output: Path, planned: Plan, adapters: lora.Adapters, num_images: int, batch: int
) -> image_list.ImageList:
    """Draws what a folder has not yet; returns its images.

    They are the same whatever the devices and the batch, but for float32's rounding.

    Args:
        output: the folder; a UserError for that of another plan.
        planned: of `plan`.
        adapters: likewise.
        num_images: of each prompt.
        batch: most images together on a device.
    """
    names = begin(output, planned._asdict(), num_images)
    folder, devices = output / IMAGES, parallel.num_devices()
    how = Sampler(planned.eta, planned.guidance_scale, planned.steps)
    each = np.arange(len(names)), np.arange(num_images)
    of_rows = np.tile(each[0], num_images), np.repeat(each[1], len(names))
    cut = evaluation_plan.batches(*of_rows, batch * devices, devices)
    jobs = [Job(how, BEFORE, *one) for one in cut]

    def places(job: Job) -> list[Path]:
        pairs = zip(job.prompts[: job.count], job.images[: job.count], strict=True)
        return [folder / names[prompt][image] for prompt, image in pairs]

    missing = [job for job in jobs if not all(x.is_file() for x in places(job))]
    if missing:
        there = sum(path.is_file() for job in jobs for path in places(job))
        models = _load(planned, adapters)
        policy = evaluation_models.make_policy(models, how)

        def finish(job: Job, images: jax.Array, bar: progress.Progress) -> None:
            bar.wait([images], "images")
            drawn = evaluation_run.pixels(images)[: job.count]
            for path, image in zip(places(job), drawn, strict=True):
                if not path.is_file():
                    evaluation_parts.save_image(path, image)

        evaluation_run.in_turn(
            f"Drawing {num_images:,} images of each of {len(names):,} prompts with"
            f" {planned.model} ({how.name}), on {', '.join(parallel.describe())};"
            f" {there:,} of {len(of_rows[0]):,} are there.",
            folder,
            len(jobs),
            missing,
            lambda job: evaluation_models.draw(models, policy, job).images,
            finish,
        )
    return image_list.of_folder(folder, None, str(output / TABLE))


def begin(output: Path, planned: dict[str, Any], num_images: int) -> list[list[str]]:
    """Keeps what is planned, and which image is of which prompt: their names [P][N].

    Raises:
        UserError: if the folder is that of another plan.
    """
    files.bind(output / PLAN, planned, "--output")
    names = [
        [
            evaluation_parts.image_name(number, text, image).as_posix()
            for image in range(num_images)
        ]
        for number, text in enumerate(planned["prompts"])
    ]
    rows = [
        json.dumps({"file": name, "prompt": text}) + "\n"
        for text, own in zip(planned["prompts"], names, strict=True)
        for name in own
    ]
    files.replace(output / TABLE, "".join(rows))
    return names


def _load(planned: Plan, adapters: lora.Adapters) -> evaluation_models.EvaluationModels:
    folder = sources.model_folder(planned.model)
    model = stable_diffusion.load(folder, jnp.dtype(planned.dtype))
    models = evaluation_models.of_model(model, planned.prompts, planned.seed)
    if adapters:
        base = models.unets[BEFORE]
        models.unets[BEFORE] = jax.jit(lora.merge)(base, adapters)
    return models
