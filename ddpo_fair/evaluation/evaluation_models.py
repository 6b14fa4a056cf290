"""An evaluation's models on the devices: they draw its images and classify them."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import parallel, rng
from ddpo_fair.classifiers import classes, classifier
from ddpo_fair.diffusion import flow, gaussian_step, sampler, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation.evaluation_plan import AFTER, BEFORE, Job, Plan, Sampler
from ddpo_fair.learning.policy_update import step_log_prob
from ddpo_fair.models import lora, sources
from ddpo_fair.training import assembly, saved_run

LAST_NORM = "vit.layernorm"  # whose output the classifier's head reads


@dataclasses.dataclass(frozen=True)
class EvaluationModels:
    """A run's model before and after training, and the classifiers; on all devices."""

    model: stable_diffusion.Model  # without its weights
    unets: dict[str, Any]  # UNet weights of BEFORE and AFTER
    vae_params: Any
    text: np.ndarray  # float32 [P, L, C], embeddings of each prompt
    uncond_embedding: jax.Array  # [L, C], of the empty prompt
    prompt_numbers: np.ndarray  # uint32 [P], which the images' keys are named by
    seed: int
    classifiers: tuple[classifier.Classifier, ...]  # the first is the run's own
    others: tuple[classifier.AnyClassifier, ...]  # of the run's further attributes
    sde: str = flow.FLOW_GRPO  # of a flow's noise, see `flow.schedule`
    sde_window: tuple[int, int] = gaussian_step.ALL_STEPS  # of training's sampler


def load(
    saved: saved_run.SavedRun, plan: Plan, folders: Sequence[Path]
) -> EvaluationModels:
    """The models of a run, before training and at the plan's checkpoint.

    And its classifier, and perhaps a second, of these folders. A UserError for weights
    that are missing, damaged, or do not fit.
    """
    config = saved.config
    dtype = jnp.dtype(config.dtype)
    folder = sources.model_folder(config.model, config.variant)
    how = {"variant": config.variant or None, "base_lora": config.base_lora}
    model = stable_diffusion.load(folder, dtype, **how)
    weights = model.params[model.part]
    trained = saved_run.trained_params(saved, plan.source["checkpoint"], weights)
    adapters = trained if config.train.lora.rank else {}
    try:
        models = of_model(model, plan, config.sample.time_ids, adapters)
    except UserError as error:  # of a prompt that the sets brought along
        raise UserError(f"{error} Or draw fewer sets: --sets=trained.") from error
    base = models.unets[BEFORE]
    if adapters:  # all other kernels are shared
        adapted = jax.jit(lora.adapted)(base, adapters, config.train.lora.scale)
        trained = lora.replace(base, adapted)
    loaded = [classifier.load(place, dtype) for place in folders]
    others = assembly.load_classifiers(config, dtype, beside=classes.GENDER.name)
    loaded, others = (
        tuple(dataclasses.replace(x, params=parallel.replicate(x.params)) for x in some)
        for some in (loaded, others)
    )
    return dataclasses.replace(
        models,
        unets={BEFORE: base, AFTER: trained},
        classifiers=loaded,
        others=others,
        sde=config.sample.sde,
        sde_window=config.sample.sde_window,
    )


def of_model(
    model: stable_diffusion.Model,
    plan: Plan,
    time_ids: Sequence[int] = stable_diffusion.NO_TIME_IDS,
    adapted: Collection[str] = (),
) -> EvaluationModels:
    """A text-to-image model alone, as `BEFORE`; a UserError for a prompt too long.

    The layers `adapted` are those of an adapter that will be merged: `lora.frozen`.
    """
    prompts = [prompt.text for prompt in plan.prompts]
    text = stable_diffusion.encode_prompts(model, ["", *prompts], time_ids)
    dtype = model.denoiser.dtype
    weights = lora.frozen(model.params[model.part], adapted, dtype)
    return EvaluationModels(
        model=dataclasses.replace(model, params={}),
        unets={BEFORE: parallel.replicate(weights)},
        vae_params=parallel.replicate(model.params["vae"]),
        text=text[1:],
        uncond_embedding=parallel.replicate(text[0]),
        prompt_numbers=np.array([zlib.crc32(p.encode()) for p in prompts], np.uint32),
        seed=plan.seed,
        classifiers=(),
        others=(),
    )


def make_policy(
    models: EvaluationModels, how: Sampler, of_training: bool = False
) -> sampler.Policy:
    """The model with these settings; makes a program of its own when first used.

    Training's sampler has noise in its window alone. A UserError if the model's
    scheduler cannot do so many steps.
    """
    window = models.sde_window if of_training else gaussian_step.ALL_STEPS
    schedule = models.model.schedule(how.num_steps, how.eta, models.sde, window)
    return sampler.Policy(models.model, schedule, how.guidance_scale)


def sample(
    models: EvaluationModels, policy: sampler.Policy, job: Job
) -> sampler.Trajectory:
    """Starts drawing a job's batch; its sampler is the policy's."""
    keys = _image_keys(
        np.int32(models.seed),
        parallel.split(models.prompt_numbers[job.prompts]),
        parallel.split(job.images.astype(np.int32)),
    )
    text = parallel.split(models.text[job.prompts])
    return sampler.sample(
        policy, models.unets[job.model], keys, text, models.uncond_embedding
    )


def decode(models: EvaluationModels, trajectory: sampler.Trajectory) -> jax.Array:
    """The images float32 [D, n, H, W, 3] in [0, 1] that trajectories end with."""
    return sampler.decode(models.model, models.vae_params, trajectory.latents[:, :, -1])


def classify(models: EvaluationModels, images: jax.Array) -> dict[str, jax.Array]:
    """What is said of images, [D, n, ...] each: "probabilities" and "features".

    The own classifier's, the second's probabilities as "audit", and those of all
    further attributes as "others", if there are any.
    """
    own, *second = (_classify(one)(one.params, images) for one in models.classifiers)
    found = {"probabilities": own[0], "features": own[1]}
    if second:
        found["audit"] = second[0][0]
    if models.others:
        params = tuple(one.params for one in models.others)
        found["others"] = classifier.classify(models.others, params, images)
    return found


def classify_pixels(
    models: EvaluationModels, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The own classifier's probabilities [N, 2] and features [N, F] of uint8 images."""
    padding = -len(images) % parallel.num_devices()
    padded = np.concatenate([images, images[:1].repeat(padding, axis=0)])
    placed = parallel.split(padded.astype(np.float32) / np.float32(255))
    own = models.classifiers[0]
    classified = _classify(own)(own.params, placed)
    probabilities, features = (parallel.gather(x)[: len(images)] for x in classified)
    return probabilities, features


def trajectory_kl(
    models: EvaluationModels, policy: sampler.Policy, trajectory: sampler.Trajectory
) -> jax.Array:
    """KL of AFTER's transitions from BEFORE's at each step, float32 [D, n, T], nats.

    Both get the same latents, of AFTER's trajectories; the sum over steps is an
    unbiased estimate of the trajectory KL to the base policy, KL(after || before).
    It is that of the steps with noise: one without, which has no density, counts 0.
    """

    def of_device(after, before, latents, text, uncond_embedding):
        def at_step(_: None, index: jax.Array) -> tuple[None, jax.Array]:
            batch = {
                "step": jnp.full(len(latents), index),
                "latents": latents[:, index],
                "next_latents": latents[:, index + 1],
                "text": text,
            }
            _, mean, std = step_log_prob(policy, after, uncond_embedding, batch)
            _, base_mean, _ = step_log_prob(policy, before, uncond_embedding, batch)
            noisy = jnp.where(std > 0, std, jnp.inf)
            return None, gaussian_step.kl(mean, base_mean, noisy)

        _, steps = jax.lax.scan(at_step, None, jnp.arange(policy.num_steps))
        return steps.T

    return parallel.pmap(of_device, in_axes=(None, None, 0, 0, None))(
        models.unets[AFTER],
        models.unets[BEFORE],
        trajectory.latents,
        trajectory.text,
        models.uncond_embedding,
    )


@functools.lru_cache(maxsize=4)
def _classify(model: classifier.Classifier) -> Callable[..., tuple]:
    """The program of a classifier, of its params and images [D, n, H, W, 3] in [0, 1].

    It gives probabilities float32 [D, n, 2], and what the head reads, [D, n, F].
    """

    def answers(params: Any, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        _, state = model.network.apply(
            {"params": params},
            classifier.preprocess(model.preprocessing, images),
            capture_intermediates=lambda module, _: module.name == LAST_NORM,
        )
        tokens = state["intermediates"][LAST_NORM]["__call__"][0]
        features = tokens[:, 0].astype(jnp.float32)
        # The network's second evaluation is the first one's twin; XLA keeps one.
        return classifier.probabilities(model, params, images), features

    return parallel.pmap(answers, in_axes=(None, 0))


_image_keys = parallel.pmap(
    jax.vmap(
        lambda seed, prompt, image: rng.key(seed, "evaluate", prompt, image),
        (None, 0, 0),
    ),
    in_axes=(None, 0, 0),
)
