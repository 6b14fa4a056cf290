"""One epoch on the devices: sample, decode, classify; update.

Nothing here waits for the devices but `gather`; the caller decides when.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import config_rules, parallel, prompts, rng
from ddpo_fair.classifiers import classes, classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import learner, policy_update, scoring
from ddpo_fair.learning.learner import TrainState
from ddpo_fair.training import assembly, metrics
from ddpo_fair.training.assembly import Run


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images of one epoch, on their way; batch b holds [D, B] of them."""

    names: np.ndarray  # str [N], the prompts
    # int [N], the class that an explicit prompt wants, else NONE; or PRESERVED.
    asked: np.ndarray
    trajectories: list[sampler.Trajectory]
    probabilities: list[jax.Array]  # [D, B, K] each, K classes of all attributes


def sample(
    run: Run, unet_params: Any, epoch: int, stopped: Callable[[], bool] | None = None
) -> Samples:
    """Starts sampling, decoding and classifying an epoch's images.

    Device d has the d-th part of them, in batches of `sample.batch_per_device`. `epoch`
    names the random numbers, here and in `update`: see `rng.attempt`. Once `stopped()`
    no further batch is started: on a CPU that waits for the one before.
    """
    config, size = run.config, run.config.sample.batch_per_device
    explicit = config_rules.explicit_prompts(config)
    preserved = config_rules.preserved_prompts(config)
    images = config_rules.images_beside(config, run.num_images)
    beside = zip((len(explicit), len(preserved)), images, strict=True)
    own = len(config.prompts)
    drawn = prompts.draw(own, run.num_images, config.seed, epoch, *beside)
    key = rng.key(config.seed, epoch, "sample")
    first = np.arange(parallel.num_devices())[:, None] * run.images_per_device
    trajectories, probabilities = [], []
    for batch in range(config.sample.batches):
        if stopped is not None and stopped():
            break
        numbers = first + batch * size + np.arange(size)  # [D, B]
        keys = sampler.image_keys(key, numbers)
        trajectory, _, found = draw(
            run, unet_params, keys, drawn[numbers.reshape(-1)], config.reward.views
        )
        trajectories.append(trajectory)
        probabilities.append(found)
    names = np.array(assembly.texts(config))[drawn]
    asked = [classes.NONE] * own + [prompt.wanted for prompt in explicit]
    asked += [scoring.PRESERVED] * len(preserved)
    return Samples(names, np.array(asked)[drawn], trajectories, probabilities)


def draw(
    run: Run, unet_params: Any, keys: jax.Array, of_prompt: np.ndarray, views: int = 1
) -> tuple[sampler.Trajectory, jax.Array, jax.Array]:
    """Starts a batch: trajectories, images [D, B, H, W, 3], probabilities [D, B, K].

    Of keys [D, B]; `of_prompt` is int [D * B], each image's row in `run.text`. `views`:
    see `classifier.probabilities`.
    """
    text = parallel.split(run.text[of_prompt])
    trajectory = sampler.sample(
        run.policy, unet_params, keys, text, run.uncond_embedding
    )
    latents = trajectory.latents[:, :, -1]
    images = sampler.decode(run.policy.model, run.vae_params, latents)
    found = classifier.classify(run.classifiers, run.classifier_params, images, views)
    return trajectory, images, found


def gather(run: Run, probabilities: list[jax.Array]) -> dict[str, np.ndarray]:
    """Batches [D, B, K] as each attribute's [N, K] in order, on every host."""
    together = jnp.concatenate(probabilities, axis=1)  # [D, n, K]
    return classifier.by_attribute(run.classifiers, parallel.gather(together))


def update(
    run: Run, state: TrainState, samples: Samples, advantages: np.ndarray, epoch: int
) -> tuple[TrainState, list[dict[str, jax.Array]]]:
    """The state after the epoch's updates, which it starts, and metrics of each.

    The state that is given, which sampled, is used up; advantages are float32 [N].
    """
    trajectory, *others = samples.trajectories
    if others:
        trajectory = _join([trajectory, *others])
    kl_weights = None
    if weight := run.config.train.base_kl_weight:
        preserved = samples.asked == scoring.PRESERVED
        factors = np.where(preserved, run.config.sample.preserve_weight, 1.0)
        kl_weights = parallel.split(np.float32(weight * factors))
    data = policy_update.EpochData(
        run.base,
        trajectory,
        parallel.split(advantages),
        run.uncond_embedding,
        kl_weights,
    )
    chosen = []  # images [D, m] and steps [D, m, S] of each update
    for index in range(run.config.train.inner_epochs):
        key = rng.key(run.config.seed, epoch, "selection", index)
        images, steps = learner.selection(
            key, run.learner, parallel.num_devices(), run.images_per_device
        )
        chosen += zip(np.asarray(images), np.asarray(steps), strict=True)
    if run.config.train.recompute_log_probs:
        state, data = policy_update.with_old_policy(run.learner, state, data, chosen)
    program, measured = policy_update.program(run.learner), []
    for of_update in chosen:
        state, summary, _ = program(state, data, *of_update, True)
        measured.append(summary)
    return state, measured


@jax.jit
def _join(trajectories: list[sampler.Trajectory]) -> sampler.Trajectory:
    """Batches [D, B, ...] as one trajectory [D, n, ...]."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *trajectories)


def line_of(run: Run, samples: Samples, scores: scoring.Scores) -> dict[str, Any]:
    """The metrics of an epoch's images, with a part per prompt if there are several."""
    rewarded = samples.asked == classes.NONE
    measure = functools.partial(metrics.of_images, run, scores)
    line = metrics.by_prompt(run, measure, rewarded, samples.names)
    explicit = samples.asked >= 0
    if explicit.any():
        genders = scores.labels[classes.GENDER.name][explicit]
        adherent = genders == samples.asked[explicit]
        line["explicit_obeyed"] = float(adherent.mean())
    line["advantage_max"] = float(np.abs(scores.advantages).max())
    return line
