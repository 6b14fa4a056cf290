"""From the classifier's answers to rewards and advantages, as the config wants them.

On the host, of all images together: a share of a part of them is mostly noise.
"""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair.classifiers import classes
from ddpo_fair.learning import advantages, rewards


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the classifier makes of an epoch's images; all arrays [N]."""

    finite: np.ndarray  # bool; False where the classifier's answer is NaN
    labels: np.ndarray
    rewards: np.ndarray
    advantages: np.ndarray
    history: dict[str, list[float]]  # for the next epoch's advantages


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
    values[free], baselines = _rewards(
        config, probabilities[free], labels[free], names[free], target_classes
    )
    values[~free] = rewards.shift(probabilities[~free], asked[~free])
    penalties = np.float32(config.reward.none_penalty) * (labels == classes.NONE)
    values -= penalties
    if baselines is not None:
        baselines -= rewards.mean_of_others(penalties[free], names[free])
    result[free], history = _advantages(
        settings, values[free], baselines, names[free], history
    )
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
) -> tuple[np.ndarray, np.ndarray | None]:
    """The config's reward of each image, float32 [N], and a baseline if it has one."""
    target = config.reward.target
    if config.reward.name == "shift":
        wanted = np.asarray([target_classes[name] for name in names.tolist()])
        return rewards.shift(probabilities, wanted), None
    if config.reward.name == "balance":
        return rewards.balance(labels, names, target), None
    memberships = classes.one_hot(labels, len(classes.CLASSES))
    if config.reward.soft:
        memberships = soft_memberships(probabilities)
    of_all = memberships, names, target
    return rewards.balance_loo(*of_all), rewards.balance_loo_baseline(*of_all)


def _advantages(
    settings: ConfigDict,
    values: np.ndarray,
    baselines: np.ndarray | None,
    names: np.ndarray,
    history: dict[str, list[float]],
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Advantages of rewards, float32 [N], and the history to keep."""
    if settings.name == "batch":
        return advantages.batch(values, settings.clip), history
    if settings.name == "fixed":
        scale, clip = settings.scale, settings.clip
        return advantages.fixed(values, names, scale, clip, baselines), history
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
