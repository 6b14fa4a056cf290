"""From the classifiers' answers to rewards and advantages, as the config wants them.

On the host, of all images together: a share of a part of them is mostly noise. Each
goal's rewards are centred and scaled before the goals are added: the harder one would
starve in a sum of rewards.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from ml_collections import ConfigDict

from ddpo_fair.classifiers import classes
from ddpo_fair.learning import advantages, rewards
from ddpo_fair.learning.goals import Goal

PRESERVED = -2  # asked of preservation prompts: no reward, no advantage
History = dict[str, dict[str, list[float]]]  # rewards by goal and prompt


@dataclasses.dataclass(frozen=True)
class Scores:
    """What the classifiers make of an epoch's images; all arrays [N]."""

    finite: np.ndarray  # bool; False where a classifier's answer is NaN
    labels: dict[str, np.ndarray]  # of each attribute, a class or NONE
    rewards: np.ndarray  # weighted sum over the goals
    advantages: np.ndarray
    history: History  # for the next epoch's advantages


def score(
    config: ConfigDict,
    goals: Sequence[Goal],
    probabilities: Mapping[str, np.ndarray],
    names: np.ndarray,
    asked: np.ndarray,
    target_classes: Mapping[str, Mapping[str, int]],
    history: History,
) -> Scores:
    """Labels, rewards and advantages of an epoch's images.

    Of each attribute's probabilities [N, K], where a row that is not finite is NONE; of
    each image's prompt, str [N], and what is asked of it, see `Samples`. Explicit
    prompts earn the probability of that gender, preservation prompts nothing, all
    others the goals' rewards. `shift` rewards the target class, by goal and prompt.
    """
    finite = np.all([classes.finite(x) for x in probabilities.values()], axis=0)
    known = {x: np.where(finite[:, None], p, 0.0) for x, p in probabilities.items()}
    labels = labels_of(config, known)
    free, explicit, settings = asked == classes.NONE, asked >= 0, config.advantage
    values, result = np.zeros((2, len(names)), np.float32)
    kept: History = {}
    rewarded = ({x: y[free] for x, y in one.items()} for one in (known, labels))
    answers = *rewarded, names[free]
    for goal in goals:
        wanted = target_classes.get(goal.name, {})
        own, baselines = _rewards(config, goal, *answers, wanted)
        pushed, kept[goal.name] = _advantages(
            settings, own, baselines, names[free], history.get(goal.name, {})
        )
        values[free] += np.float32(goal.weight) * own
        result[free] += np.float32(goal.weight) * pushed
    result = np.clip(result, -settings.clip, settings.clip)
    if explicit.any():
        asked_for, gender = asked[explicit], classes.GENDER.name
        own = rewards.shift(known[gender][explicit], asked_for)
        values[explicit] = own - _none_penalty(config, gender, labels)[explicit]
        # All that ask for one class have one baseline: of each prompt there are few.
        result[explicit] = advantages.fixed(
            values[explicit], asked_for.astype(str), settings.scale, settings.clip
        )
    return Scores(finite, labels, values, result, kept)


def labels_of(
    config: ConfigDict, probabilities: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The class or NONE of each image, int [N], of each attribute."""
    return {
        name: classes.labels(found, config.attributes[name].confidence_threshold)
        for name, found in probabilities.items()
    }


def _rewards(
    config: ConfigDict,
    goal: Goal,
    answers: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
    names: np.ndarray,
    target_classes: Mapping[str, int],
) -> tuple[np.ndarray, np.ndarray | None]:
    """A goal's reward of each image, float32 [N], and a baseline if it has one."""
    probabilities, cells = goal.probabilities(answers), goal.labels(labels)
    penalties = sum(_none_penalty(config, x, labels) for x in goal.attributes)
    memberships = classes.one_hot(cells, probabilities.shape[1])
    if config.reward.soft:
        own = np.asarray(probabilities, np.float64)
        sums = own.sum(axis=1, keepdims=True)  # below 1: other labels than ours
        memberships = np.where(sums > 0.5, own / np.maximum(sums, 0.5), 0.0)
    values = np.zeros(len(names), np.float32)
    baselines = np.zeros(len(names)) if goal.reward == "balance_loo" else None
    for prompt, rows in rewards.groups(names).items():
        target = goal.targets[prompt]
        if goal.reward == "shift":
            values[rows] = rewards.shift(probabilities[rows], target_classes[prompt])
        elif goal.reward == "balance":
            values[rows] = rewards.balance(cells[rows], target)
        else:
            values[rows], baseline = rewards.balance_loo(memberships[rows], target)
            baselines[rows] = baseline - rewards.mean_of_others(penalties[rows])
    return values - penalties, baselines


def _none_penalty(
    config: ConfigDict, name: str, labels: Mapping[str, np.ndarray]
) -> np.ndarray:
    """What an image pays of which an attribute's class is not recognised, [N]."""
    penalty = np.float32(config.attributes[name].none_penalty)
    return penalty * (labels[name] == classes.NONE)


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
    if settings.name == "group":
        return advantages.group(values, names, settings.clip), history
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
