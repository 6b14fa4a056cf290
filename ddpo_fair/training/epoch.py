"""One epoch: sample and classify on the devices, score on the host, update.

Nothing here waits for the devices but `gather`; the caller decides when.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config_rules, parallel, prompts, rng
from ddpo_fair.classifiers import classes, classifier
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import (
    advantages,
    learner,
    old_log_probs,
    policy_update,
    rewards,
)
from ddpo_fair.learning.learner import TrainState
from ddpo_fair.training import metrics
from ddpo_fair.training.assembly import Run


@dataclasses.dataclass(frozen=True)
class Samples:
    """The images of one epoch, on their way; batch b holds [D, B] of them."""

    names: np.ndarray  # str [N], the prompts
    asked: np.ndarray  # int [N], the class that an explicit prompt wants; NONE: no such
    trajectories: list[sampler.Trajectory]
    probabilities: list[jax.Array]  # [D, B, 2] each


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the classifier makes of an epoch's images; all arrays [N]."""

    finite: np.ndarray  # bool; False where the classifier's answer is NaN
    labels: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray
    history: dict[str, list[float]]  # for the next epoch's advantages


def sample(run: Run, unet_params: Any, epoch: int) -> Samples:
    """Starts sampling, decoding and classifying an epoch's images.

    Device d has the d-th part of them, in batches of `sample.batch_per_device`.

    Args:
        run: what samples.
        unet_params: of `learner.unet_params`.
        epoch: names its random numbers, here and in `update`: see `rng.attempt`.
    """
    size = run.config.sample.batch_per_device
    drawn = prompts.draw(
        len(run.config.prompts),
        run.num_images,
        run.config.seed,
        epoch,
        len(run.explicit),
        config_rules.explicit_images(run.config, run.num_images),
    )
    key = rng.key(run.config.seed, epoch, "sample")
    first = np.arange(parallel.num_devices())[:, None] * run.images_per_device
    trajectories, probabilities = [], []
    for batch in range(run.config.sample.batches):
        numbers = first + batch * size + np.arange(size)  # [D, B]
        keys = sampler.image_keys(key, numbers)
        trajectory, _, found = draw(run, unet_params, keys, drawn[numbers.reshape(-1)])
        trajectories.append(trajectory)
        probabilities.append(found)
    names = [*run.config.prompts, *(prompt.text for prompt in run.explicit)]
    asked = [classes.NONE] * len(run.config.prompts)
    asked += [prompt.wanted for prompt in run.explicit]
    return Samples(
        np.array(names)[drawn], np.array(asked)[drawn], trajectories, probabilities
    )


def draw(
    run: Run, unet_params: Any, keys: jax.Array, of_prompt: np.ndarray
) -> tuple[sampler.Trajectory, jax.Array, jax.Array]:
    """Starts a batch: trajectories, images [D, B, H, W, 3], probabilities [D, B, 2].

    Args:
        run: what samples.
        unet_params: of `learner.unet_params`.
        keys: [D, B].
        of_prompt: int [D * B], each image's row in `run.text`.
    """
    text = parallel.split(run.text[of_prompt])
    trajectory = sampler.sample(
        run.policy, unet_params, keys, text, run.uncond_embedding
    )
    latents = trajectory.latents[:, :, -1]
    images = sampler.decode(run.policy.model, run.vae_params, latents)
    found = classifier.classify(run.classifier, run.classifier_params, images)
    return trajectory, images, found


def gather(probabilities: list[jax.Array]) -> np.ndarray:
    """Batches of [D, B, 2] as [N, 2] in the images' order, the same on every host."""
    together = jnp.concatenate(probabilities, axis=1)  # [D, n, 2]
    return parallel.gather(together)


def score(
    config: ConfigDict,
    probabilities: np.ndarray,
    names: np.ndarray,
    asked: np.ndarray,
    target_classes: dict[str, int],
    history: dict[str, list[float]],
) -> Scores:
    """Labels, rewards and advantages of an epoch's images.

    Args:
        config: all settings.
        probabilities: [N, 2]; a row that is not finite counts as NONE.
        names: prompt of each image, str [N].
        asked: as in `Samples`. Explicit prompts earn the probability of that class,
            all others the config's reward.
        target_classes: the class that `shift` rewards, by prompt.
        history: of the per-prompt advantages.
    """
    finite = classes.finite(probabilities)
    probabilities = np.where(finite[:, None], probabilities, 0.0)
    labels = classes.labels(probabilities, config.confidence_threshold)
    free, settings = asked == classes.NONE, config.advantage
    values, result = np.empty((2, len(labels)), np.float32)
    values[free] = _rewards(
        config, probabilities[free], labels[free], names[free], target_classes
    )
    values[~free] = rewards.shift(probabilities[~free], asked[~free])
    values -= np.float32(config.reward.none_penalty) * (labels == classes.NONE)
    result[free], history = _advantages(settings, values[free], names[free], history)
    # All that ask for one class have one baseline: of each prompt there are few.
    result[~free] = advantages.fixed(
        values[~free], asked[~free].astype(str), settings.scale, settings.clip
    )
    return Scores(finite, labels, values, result, history)


def _rewards(
    config: ConfigDict,
    probabilities: np.ndarray,
    labels: np.ndarray,
    names: np.ndarray,
    target_classes: dict[str, int],
) -> np.ndarray:
    """The config's reward of each image, float32 [N]."""
    target = config.reward.target
    if config.reward.name == "shift":
        wanted = np.asarray([target_classes[name] for name in names.tolist()])
        return rewards.shift(probabilities, wanted)
    if config.reward.name == "balance":
        return rewards.balance(labels, names, target)
    memberships = classes.one_hot(labels, len(classes.CLASSES))
    if config.reward.soft:
        memberships = soft_memberships(probabilities)
    return rewards.balance_loo(memberships, names, target)


def _advantages(
    settings: ConfigDict,
    values: np.ndarray,
    names: np.ndarray,
    history: dict[str, list[float]],
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Advantages of rewards, float32 [N], and the history to keep."""
    if settings.name == "batch":
        return advantages.batch(values, settings.clip), history
    if settings.name == "fixed":
        return advantages.fixed(values, names, settings.scale, settings.clip), history
    return advantages.per_prompt(
        values,
        names,
        history,
        buffer_size=settings.buffer_size,
        min_count=settings.min_count,
        adv_clip=settings.clip,
    )


def soft_memberships(probabilities: np.ndarray) -> np.ndarray:
    """Probabilities [N, 2] with sum 1; zeros where other labels than ours win."""
    probabilities = np.asarray(probabilities, np.float64)
    sums = probabilities.sum(axis=1, keepdims=True)
    return np.where(sums > 0.5, probabilities / np.maximum(sums, 0.5), 0.0)


def update(
    run: Run,
    state: TrainState,
    samples: Samples,
    advantages_: np.ndarray,
    epoch: int,
) -> tuple[TrainState, list[dict[str, jax.Array]]]:
    """Starts the epoch's updates; the state that is given is used up.

    Args:
        run: what learns.
        state: that sampled.
        samples: of `sample`.
        advantages_: float32 [N].
        epoch: as for `sample`.

    Returns:
        The state to come, and the metrics of each update.
    """
    trajectory = samples.trajectories[0]
    if len(samples.trajectories) > 1:
        trajectory = _join(samples.trajectories)
    placed = parallel.split(advantages_)
    chosen = _chosen(run, epoch)
    if run.config.train.recompute_log_probs:
        for images, steps in chosen:
            trajectory = old_log_probs.recompute(
                run.learner,
                state.params,
                run.base,
                trajectory,
                images,
                steps,
                run.uncond_embedding,
            )
    measured = []
    for images, steps in chosen:
        state, summary = policy_update.update(
            run.learner,
            state,
            run.base,
            trajectory,
            placed,
            images,
            steps,
            run.uncond_embedding,
        )
        measured.append(summary)
    return state, measured


def _chosen(run: Run, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Images [D, m] and steps [D, m, S] of each update of an epoch."""
    chosen = []
    for index in range(run.config.train.inner_epochs):
        key = rng.key(run.config.seed, epoch, "selection", index)
        images, steps = learner.selection(
            key, run.learner, parallel.num_devices(), run.images_per_device
        )
        chosen += zip(np.asarray(images), np.asarray(steps), strict=True)
    return chosen


@jax.jit
def _join(trajectories: list[sampler.Trajectory]) -> sampler.Trajectory:
    """Batches [D, B, ...] as one trajectory [D, n, ...]."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *trajectories)


def line_of(run: Run, samples: Samples, scores: Scores) -> dict[str, Any]:
    """The metrics of an epoch's images, with a part per prompt if there are several."""

    def measure(rows: np.ndarray) -> dict[str, Any]:
        return metrics.of_images(
            scores.labels[rows], scores.rewards[rows], scores.finite[rows]
        )

    explicit = samples.asked != classes.NONE
    line = measure(~explicit)
    if explicit.any():
        adherent = scores.labels[explicit] == samples.asked[explicit]
        line["explicit_obeyed"] = float(adherent.mean())
    line["advantage_max"] = float(np.abs(scores.advantages).max())
    if len(run.config.prompts) > 1:
        line["prompts"] = {
            prompt: measure(samples.names == prompt) for prompt in run.config.prompts
        }
    return line
