"""Drawing, classifying and comparing the images of an evaluation, on the devices."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import parallel, rng
from ddpo_fair.classifiers import classifier
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Job, Sampler
from ddpo_fair.models import lora, sources
from ddpo_fair.training import saved_run

LAST_NORM = "vit.layernorm"  # what the classifier's head sees


@dataclasses.dataclass(frozen=True)
class Studio:
    """A model before and after, and who looks at its pictures."""

    model: stable_diffusion.Model  # without its weights
    unets: dict[str, Any]  # UNet weights of BEFORE and AFTER
    vae_params: Any
    text: np.ndarray  # float32 [P, L, D]
    numbers: np.ndarray  # uint32 [P], from which each prompt's keys come
    null: jax.Array
    keys: Callable[..., jax.Array]
    decode: Callable[..., jax.Array]
    judges: tuple[tuple[Callable[..., Any], Any], ...]  # look and weights, of each


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A batch on its way; [D, n, ...] each."""

    images: jax.Array  # float32 [D, n, H, W, 3] in [0, 1]
    seen: list[tuple[jax.Array, jax.Array]]  # by each judge: probabilities, features
    latents: jax.Array  # [D, n, T+1, h, w, C]
    text: jax.Array


def load(
    saved: saved_run.SavedRun,
    checkpoint: int,
    prompts: Sequence[str],
    classifiers: Sequence[Path],
    seed: int,
) -> Studio:
    """The models of a run, before training and at a checkpoint.

    Args:
        saved: the run.
        checkpoint: its number.
        prompts: all texts that will be drawn.
        classifiers: folders; the first is the run's own.
        seed: of the images.

    Raises:
        UserError: for weights that are missing, damaged, or do not fit.
    """
    config = saved.config
    dtype = jnp.dtype(config.dtype)
    folder = sources.model_folder(config.model, config.variant)
    model = stable_diffusion.load(folder, dtype, variant=config.variant or None)
    text = stable_diffusion.encode_prompts(model, ["", *prompts])
    base = parallel.replicate(model.params["unet"])
    trained = saved_run.trained_params(saved, checkpoint, jax.eval_shape(lambda: base))
    if config.train.lora.rank:
        trained = jax.jit(lora.merge)(base, trained, config.train.lora.scale)
    light = dataclasses.replace(model, params={})
    return Studio(
        model=light,
        unets={BEFORE: base, AFTER: trained},
        vae_params=parallel.replicate(model.params["vae"]),
        text=text[1:],
        numbers=np.array([zlib.crc32(p.encode()) for p in prompts], np.uint32),
        null=parallel.replicate(text[0]),
        keys=_keys(seed),
        decode=functools.partial(sampler.decode, light),
        judges=tuple(_judge(place, dtype) for place in classifiers),
    )


def make_sampler(studio: Studio, how: Sampler) -> Callable[..., sampler.Trajectory]:
    """The pmapped sampler of these settings; compiles when first called.

    Raises:
        UserError: if the model's scheduler cannot do so many steps.
    """
    chain = ddim.schedule(studio.model.scheduler, how.num_steps, how.eta)
    policy = sampler.Policy(studio.model, chain, how.guidance_scale)
    return functools.partial(sampler.sample, policy)


def draw(studio: Studio, sample: Callable, job: Job) -> Drawn:
    """Starts drawing and looking at a job's batch."""
    keys = studio.keys(
        parallel.split(studio.numbers[job.prompts]),
        parallel.split(job.images.astype(np.int32)),
    )
    text = parallel.split(studio.text[job.prompts])
    trajectory = sample(studio.unets[job.model], keys, text, studio.null)
    images = studio.decode(studio.vae_params, trajectory.latents[:, :, -1])
    seen = [look(params, images) for look, params in studio.judges]
    return Drawn(images, seen, trajectory.latents, text)


def look_at(studio: Studio, images: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Probabilities [N, 2] and features [N, F] of given pictures, by each judge.

    Args:
        images: uint8 [N, H, W, 3].
    """
    padding = -len(images) % parallel.num_devices()
    padded = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    placed = parallel.split(padded.astype(np.float32) / np.float32(255))
    seen = [look(params, placed) for look, params in studio.judges]
    return [tuple(parallel.gather(x)[: len(images)] for x in one) for one in seen]


def make_chain_kl(studio: Studio, how: Sampler) -> Callable[[Drawn], jax.Array]:
    """A function from what AFTER drew to its KL from BEFORE, [D, n, T] nats a step.

    Both models look at the same latents, along the fine-tuned model's own chain; the
    sum over steps is an unbiased estimate of the chain's KL(after || before).
    """
    chain = ddim.schedule(studio.model.scheduler, how.num_steps, how.eta)

    def divergence(after, before, latents, text, null):
        def step(_, index):
            now, here = chain[index], latents[:, index]
            timesteps = jnp.full((len(here),), now.timesteps)
            means = []
            for params in (after, before):
                output = stable_diffusion.guided_noise(
                    studio.model.unet,
                    params,
                    here,
                    timesteps,
                    text,
                    null,
                    how.guidance_scale,
                )
                mean, std = ddim.transition(now, here, output)
                means.append(mean)
            return None, ddim.kl(*means, std)

        _, steps = jax.lax.scan(step, None, jnp.arange(how.num_steps))
        return steps.T  # [n, T]

    compare = parallel.pmap(divergence, in_axes=(None, None, 0, 0, None))

    def chain_kl(drawn: Drawn) -> jax.Array:
        unets = studio.unets[AFTER], studio.unets[BEFORE]
        return compare(*unets, drawn.latents, drawn.text, studio.null)

    return chain_kl


def _keys(seed: int) -> Callable[..., jax.Array]:
    def one(prompt: jax.Array, image: jax.Array) -> jax.Array:
        return rng.key(seed, "evaluate", prompt, image)

    return parallel.pmap(jax.vmap(one), in_axes=(0, 0))


def _judge(folder: Path, dtype: Any) -> tuple[Callable[..., Any], Any]:
    """The pmapped `(params, images) -> probabilities, features`, and the weights."""
    judge = classifier.load(folder, dtype)
    params, judge = judge.params, dataclasses.replace(judge, params=None)

    def look(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, state = judge.network.apply(
            {"params": params},
            classifier.preprocess(judge.preprocessing, images),
            capture_intermediates=lambda module, _: module.name == LAST_NORM,
        )
        tokens = state["intermediates"][LAST_NORM]["__call__"][0]
        features = tokens[:, 0].astype(jnp.float32)
        # The network's second evaluation is the first one's twin; XLA keeps one.
        return classifier.probabilities(judge, params, images), features

    return parallel.pmap(look, in_axes=(None, 0)), parallel.replicate(params)
