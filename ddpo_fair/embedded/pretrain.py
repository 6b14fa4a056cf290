"""`python -m ddpo_fair.embedded.pretrain`: the embedded model, from renders to weights.

Renders the images, then trains the autoencoder, the classifiers and the text encoder
with the UNet; each stage resumes where it was stopped. Writes the official folders.
"""

import concurrent.futures
import json
import logging
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from absl import flags

from ddpo_fair import command_line, files, parallel, process
from ddpo_fair.classifiers import classes, classifier, classifier_training
from ddpo_fair.diffusion import prompt_tokens
from ddpo_fair.embedded import (
    dataset,
    ground_truth,
    pretrain_classifier,
    pretrain_diffusion,
    pretrain_flow,
    pretrain_tokenizer,
    pretrain_vae,
)
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import vae, vit, weights

SHARD = 1_000
VAE_IMAGES = 8_000  # the autoencoder needs no more
RECONSTRUCTIONS = 6_000  # that the classifier sees next to the renders
HOLDOUT = 1_000  # last images, kept from the classifier, for its temperature
# Of an example, kept in a shard.
COLUMNS = ("image", "caption", "male", "age", "skin_tone", "view")
STORED = jnp.float16  # halves the package; the weights become float32 when read

# Stages that make a classifier, and its folder, and what it classifies by.
FIRST = "classifier"
CLASSIFIERS = {
    FIRST: classes.GENDER,
    "skin_tone": classes.SKIN_TONE,
    "age": classes.AGE,
}
# Stages that make a text-to-image model, and its folder.
FOLDERS = {"diffusion": "text_to_image", "flow": "flow"}
MAKERS = {"diffusion": pretrain_diffusion, "flow": pretrain_flow}
STAGES = ["vae", *CLASSIFIERS, *FOLDERS]
SETTINGS, MOST_STEPS = "pretraining.json", 10**7


def render_shard(path: Path, seed: int, start: int) -> None:
    """Write `SHARD` examples from index `start` on to `path`."""
    rows = [dataset.example(seed, index) for index in range(start, start + SHARD)]
    columns = {name: np.array([row[name] for row in rows]) for name in COLUMNS}
    files.save_arrays(path, columns)


def render(folder: Path, seed: int, count: int) -> dict[str, np.ndarray]:
    """All examples' `COLUMNS`, rendered where not yet on disk."""
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, count, SHARD)
    paths = [folder / f"faces_{start:07d}.npz" for start in starts]
    shards = [files.load_arrays(path) for path in paths]
    every = zip(paths, starts, shards, strict=True)
    todo = [(path, start) for path, start, found in every if found is None]
    ignore = signal.signal, (signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for this one
    with concurrent.futures.ProcessPoolExecutor(None, None, *ignore) as pool:
        jobs = [pool.submit(render_shard, path, seed, start) for path, start in todo]
        done = concurrent.futures.as_completed(jobs)
        try:
            for job in tqdm.tqdm(done, total=len(jobs), desc="renders (thousands)"):
                job.result()
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    shards = [x or np.load(path) for x, path in zip(shards, paths, strict=True)]
    return {name: np.concatenate([shard[name] for shard in shards]) for name in COLUMNS}


def cached(path: Path, compute: Any) -> np.ndarray:
    """The array at `path`, computed and saved there the first time."""
    if (found := files.load_arrays(path)) is None:
        found = {"array": compute()}
        files.save_arrays(path, found)
    return found["array"]


def reconstruct(params: Any, images: np.ndarray) -> np.ndarray:
    """uint8 images after the autoencoder: what its decoder makes of a face."""
    network = vae.AutoencoderKL(vae.Config.from_dict(pretrain_vae.CONFIG))

    @jax.jit
    def both_ways(pixels: jax.Array) -> jax.Array:
        mean, _ = network.apply({"params": params}, pixels, method="encode")
        return network.apply({"params": params}, mean, method="decode")

    starts = range(0, len(images), 100)
    rows = [
        both_ways(pretrain_vae.scale(images[start : start + 100])) for start in starts
    ]
    pixels = np.clip(np.concatenate([np.asarray(row) for row in rows]), -1, 1)
    return np.round((pixels + 1) * 127.5).astype(np.uint8)


def classifier_stage(
    stage: str,
    work: Path,
    output: Path,
    data: dict,
    autoencoder: Any,
    options: flags.FlagValues,
) -> None:
    """Train, calibrate and write the classifier of a stage in `CLASSIFIERS`.

    Those after the first begin with its weights, which know faces already.
    """
    attribute, images = CLASSIFIERS[stage], data["image"]
    truth = ground_truth.classes(attribute.name, data)
    train = slice(0, len(images) - HOLDOUT)
    copies = cached(
        work / "reconstructions.npz",
        lambda: reconstruct(autoencoder, images[train][:RECONSTRUCTIONS]),
    )
    start, steps = None, options.classifier_steps
    if stage != FIRST:
        start = classifier.load(output / FIRST).params
        steps = options.further_steps
    config = pretrain_classifier.config(attribute.classes)
    params = pretrain_classifier.train(
        work / stage,
        np.concatenate([images[train], copies]),
        np.concatenate([truth[train], truth[train][:RECONSTRUCTIONS]]),
        config,
        start,
        steps,
        options.seed,
    )
    holdout = np.flatnonzero(truth[-HOLDOUT:] >= 0) - HOLDOUT
    network = vit.ImageClassifier(vit.Config.from_dict(config))
    pixels = pretrain_vae.scale(images[holdout])
    logits = np.asarray(jax.jit(network.apply)({"params": params}, pixels))
    params = classifier_training.calibrated(params, logits, truth[holdout])
    folder = output / stage
    weights.save(folder, params, config, "model.safetensors", dtype=STORED)
    write_json(folder / "preprocessor_config.json", pretrain_classifier.PREPROCESSOR)


def denoising_stage(
    stage: str,
    work: Path,
    output: Path,
    data: dict,
    autoencoder: Any,
    options: flags.FlagValues,
) -> None:
    """Train and write text encoders and denoising network of a stage in `FOLDERS`."""
    both = data["image"], data["image"][:, :, ::-1]  # mirrored
    latents = cached(
        work / "latents.npz",
        lambda: np.float16([pretrain_vae.encode(autoencoder, x) for x in both]),
    )
    folder = output / FOLDERS[stage]
    tokens = prompt_tokens.load(folder / "tokenizer")
    settings = {
        "padding": "max_length",
        "truncation": True,
        "max_length": pretrain_tokenizer.MAX_LENGTH,
    }
    ids = np.asarray(tokens(data["caption"].tolist(), **settings)["input_ids"])
    empty = np.asarray(tokens([""], **settings)["input_ids"])[0]
    maker, steps = MAKERS[stage], options.flag_values_dict()[f"{stage}_steps"]
    params = maker.train(
        work / stage, latents, ids, empty, steps, options.seed, len(tokens)
    )
    if stage == "flow":
        params["vae"] = autoencoder
    configs = maker.configs(len(tokens))
    for part, found in params.items():
        name = f"{'model' if 'text' in part else 'diffusion_pytorch_model'}.safetensors"
        weights.save(folder / part, found, configs[part], name, dtype=STORED)


def write_json(path: Path, value: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def write_layout(folder: Path, captions: list[str], maker: Any) -> None:
    """Everything in a diffusers folder that is no weight."""
    for name, value in maker.INDEX.items():
        if value == ["transformers", "CLIPTokenizer"]:
            pretrain_tokenizer.save(folder / name, captions)
    write_json(folder / "scheduler/scheduler_config.json", maker.SCHEDULER)
    write_json(folder / "model_index.json", maker.INDEX)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns its exit status."""
    return process.run(
        "ddpo_fair.embedded.pretrain",
        lambda: pretrain(_options(arguments)),
        "the same command continues",
    )


def pretrain(options: flags.FlagValues) -> None:
    """Runs the stages that the flags ask for; a UserError for what the user can fix."""
    if not options.stages or set(options.stages) - set(STAGES):
        stages = shown(",".join(options.stages))
        raise UserError(f"--stages={stages} must be of {', '.join(STAGES)}.")
    work = files.output("--work_dir", options.work_dir, SETTINGS)
    output = files.output("--output", options.output, SETTINGS)
    vae_folder = output / FOLDERS["diffusion"] / "vae"
    for first, folder, users in (
        ("vae", vae_folder, STAGES),
        (FIRST, output / FIRST, CLASSIFIERS),
    ):
        asked = options.stages
        if first not in asked and {*asked} & {*users} and not folder.is_dir():
            raise UserError(
                f"--stages={','.join(asked)} go on from {folder}, which does not"
                f" exist; name the stage {first}, too."
            )
    given = options.flag_values_dict()
    for name in ("work_dir", "output", "stages"):
        del given[name]
    files.bind(work / SETTINGS, given, "--work_dir")
    files.bind(output / SETTINGS, given, "--output")
    parallel.start(2)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("orbax").setLevel(logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    data = render(work / "faces", options.seed, options.images)
    for stage in FOLDERS:
        if stage in options.stages:
            captions = sorted(set(data["caption"].tolist()))
            write_layout(output / FOLDERS[stage], captions, MAKERS[stage])
    if "vae" in options.stages:
        images = data["image"][:VAE_IMAGES]
        trained = pretrain_vae.train(
            work / "vae", images, options.vae_steps, options.seed
        )
        trained = pretrain_vae.normalise(trained, images[:2_000])
        weights.save(vae_folder, trained, pretrain_vae.CONFIG, dtype=STORED)
    autoencoder = pretrain_vae.read(vae_folder)
    for stage in CLASSIFIERS:
        if stage in options.stages:
            classifier_stage(stage, work, output, data, autoencoder, options)
    for stage in FOLDERS:
        if stage in options.stages:
            denoising_stage(stage, work, output, data, autoencoder, options)


def _options(arguments: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    texts, whole, *_ = command_line.definers(values)
    texts("work_dir", "pretraining", "Renders, checkpoints: kept to resume")
    texts("output", "embedded_model", "Final folders, new")
    whole("seed", 0, "Of the renders and of the training", 0, 2**31 - 1)
    least = HOLDOUT + SHARD
    whole("images", dataset.NUM_TRAIN, "Renders, in thousands rounded up", least, 10**7)
    whole("vae_steps", 1_600, "Updates of the autoencoder", 1, MOST_STEPS)
    whole("classifier_steps", 1_500, "Updates of gender's classifier", 1, MOST_STEPS)
    whole("further_steps", 400, "Updates of a classifier after it", 1, MOST_STEPS)
    whole("diffusion_steps", 1_750, "Updates of text encoder and UNet", 1, MOST_STEPS)
    whole("flow_steps", 1_750, "Updates of the flow model", 1, MOST_STEPS)
    flags.DEFINE_list(
        "stages", STAGES, "To run; the first one before others", flag_values=values
    )
    return command_line.options(values, arguments, __doc__)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
