"""One epoch: sample and classify on the devices, score on the host, update.

Nothing here waits for the devices but `gather`; the caller decides when.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair import config_rules, parallel, prompts, rng
from ddpo_fair.classifiers import classes
from ddpo_fair.diffusion import sampler
from ddpo_fair.learning import advantages, learner, rewards
from ddpo_fair.loggers import run_log
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


def batch_indices(
    num_devices: int, per_device: int, batch: int, size: int
) -> np.ndarray:
    """Numbers of a batch's images, int [D, size]; device d has its own d-th share."""
    first = np.arange(num_devices)[:, None] * per_device
    return first + batch * size + np.arange(size)


def sample(run: Run, unet_params: Any, epoch: int) -> Samples:
    """Starts sampling, decoding and classifying an epoch's images.

    `epoch` names its random numbers, here and in `update`: see `rng.attempt`.
    """
    settings, num_devices = run.config.sample, parallel.num_devices()
    drawn = prompts.draw(
        len(run.config.prompts),
        run.num_images,
        run.config.seed,
        epoch,
        len(run.explicit),
        config_rules.explicit_images(run.config, run.num_images),
    )
    trajectories, probabilities = [], []
    for batch in range(settings.batches):
        indices = batch_indices(
            num_devices,
            settings.batch_per_device * settings.batches,
            batch,
            settings.batch_per_device,
        )
        keys = run.image_keys("sample", epoch, indices)
        text = parallel.split(run.text[drawn[indices.reshape(-1)]])
        trajectory = run.sample(unet_params, keys, text, run.null)
        images = run.decode(run.vae_params, trajectory.latents[:, :, -1])
        probabilities.append(run.classify(run.classifier_params, images))
        trajectories.append(trajectory)
    names = [*run.config.prompts, *(prompt.text for prompt in run.explicit)]
    asked = [classes.NONE] * len(run.config.prompts)
    asked += [prompt.wanted for prompt in run.explicit]
    return Samples(
        np.array(names)[drawn], np.array(asked)[drawn], trajectories, probabilities
    )


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
        target_classes: whom `shift` rewards, by prompt.
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
    state: learner.TrainState,
    samples: Samples,
    advantages_: np.ndarray,
    epoch: int,
) -> tuple[learner.TrainState, list[dict[str, jax.Array]]]:
    """Starts the epoch's updates; the state that is given is used up.

    Returns:
        The state to come, and the metrics of each update.
    """
    trajectory = samples.trajectories[0]
    if len(samples.trajectories) > 1:
        trajectory = _join(samples.trajectories)
    placed = parallel.split(advantages_)
    selections = [
        jax.tree.map(
            np.asarray, run.select(rng.key(run.config.seed, epoch, "selection", i))
        )
        for i in range(run.config.train.inner_epochs)
    ]
    if run.recompute is not None:
        for images, steps in selections:
            for one in zip(images, steps, strict=True):
                trajectory = run.recompute(
                    state.params, run.base, trajectory, *one, run.null
                )
    measured = []
    for images, steps in selections:
        for one_images, one_steps in zip(images, steps, strict=True):
            state, summary = run.update(
                state, run.base, trajectory, placed, one_images, one_steps, run.null
            )
            measured.append(summary)
    return state, measured


@jax.jit
def _join(trajectories: list[sampler.Trajectory]) -> sampler.Trajectory:
    """Batches [D, B, ...] as one trajectory [D, n, ...]."""
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *trajectories)


def of_samples(run: Run, samples: Samples, scores: Scores) -> dict[str, Any]:
    """The metrics of an epoch's images, with a part per prompt if there are several."""

    def measure(rows: np.ndarray) -> dict[str, Any]:
        values = scores.rewards[rows].astype(np.float64)
        return {
            "reward_mean": float(values.mean()),
            "reward_std": float(values.std()),
            **run_log.shares(scores.labels[rows]),
            "num_not_finite": int(np.sum(~scores.finite[rows])),
        }

    explicit = samples.asked != classes.NONE
    line = measure(np.flatnonzero(~explicit))
    if explicit.any():
        obeyed = scores.labels[explicit] == samples.asked[explicit]
        line["explicit_obeyed"] = float(obeyed.mean())
    line["advantage_max"] = float(np.abs(scores.advantages).max())
    if len(run.config.prompts) > 1:
        line["prompts"] = {
            prompt: measure(np.flatnonzero(samples.names == prompt))
            for prompt in run.config.prompts
        }
    return line


def of_updates(measured: list[dict[str, jax.Array]]) -> dict[str, float]:
    """The metrics of an epoch's updates: means of those that were not skipped.

    `ratio_deviation` is that of the first update, when sampler and learner must agree;
    `kl_last` that of the last; `skipped_updates` is their number. NaN where there is
    nothing to say.
    """
    host = [{name: float(value) for name, value in m.items()} for m in measured]
    taken = [m for m in host if not m["skipped_updates"]]
    line = {
        name: float(np.mean([m[name] for m in taken])) if taken else math.nan
        for name in host[0]
    }
    line["ratio_deviation"] = host[0]["ratio_deviation"]
    line["kl_last"] = taken[-1]["kl"] if taken else math.nan
    line["skipped_updates"] = len(host) - len(taken)
    return line
