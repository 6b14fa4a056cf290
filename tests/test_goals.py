"""Several attributes: marginal and joint goals, their own targets, exact gradients."""

import itertools

import numpy as np
import pytest

from ddpo_fair import config as configuration
from ddpo_fair.classifiers.classes import NONE
from ddpo_fair.learning import goals, scoring

PROMPT = "a photo"
TARGETS = {"gender": (0.3, 0.7), "skin_tone": (0.2, 0.5, 0.3), "age": (0.6, 0.4)}
CLASSES = {
    "gender": ("female", "male"),
    "skin_tone": ("light", "medium", "dark"),
    "age": ("young", "old"),
}


def settings(*names, prompts=(PROMPT,), **changes):
    config = configuration.defaults(names)
    for name in names:
        one = config.attributes[name]
        one.classes, one.target = CLASSES[name], TARGETS[name]
        one.none_penalty = 0.0
    config.prompts = prompts
    config.reward.name, config.advantage.scale = "balance_loo", 1.0
    config.advantage.clip = 100.0
    config.update_from_flattened_dict(changes)
    return config


def score(config, labels, names=None, targets=None, **further):
    """Scores of images whose classes are certain; labels [N] of each attribute."""
    answers = {
        name: np.float32(np.eye(len(CLASSES[name]) + 1)[own][:, :-1])
        for name, own in labels.items()
    }
    count = len(next(iter(labels.values())))
    return scoring.score(
        config,
        goals.of(config, targets or {}),
        answers,
        np.array([PROMPT] * count if names is None else names),
        np.full(count, NONE),
        further.get("target_classes", {}),
        further.get("history", {}),
    )


def test_goals_are_attributes_or_cells_numbered_row_by_row():
    (goal,) = goals.of(settings("gender"), {})
    assert goal.name == "gender" and goal.attributes == ("gender",)
    np.testing.assert_array_equal(goal.targets[PROMPT], TARGETS["gender"])
    config = settings("gender", "skin_tone", **{"reward.combine": "joint"})
    (goal,) = goals.of(config, {})
    labels = {"gender": np.array([0, 1, 1, NONE]), "skin_tone": np.array([2, 0, 2, 0])}
    np.testing.assert_array_equal(goal.labels(labels), [2, 3, 5, NONE])
    expected = [0.06, 0.15, 0.09, 0.14, 0.35, 0.21]  # .3 x (.2 .5 .3), .7 x the same
    np.testing.assert_allclose(goal.targets[PROMPT], expected)
    answers = {
        "gender": np.array([[0.9, 0.1]]),
        "skin_tone": np.array([[0.5, 0.3, 0.2]]),
    }
    expected = [[0.45, 0.27, 0.18, 0.05, 0.03, 0.02]]
    np.testing.assert_allclose(goal.probabilities(answers), expected)


def test_marginal_advantages_add_with_their_weights():
    config = settings("gender", "age")
    config.attributes.age.weight = 2.0
    labels = {"gender": np.array([0, 0, 1, 1]), "age": np.array([0, 1, 1, 1])}
    alone = [score(settings(name), {name: labels[name]}) for name in ("gender", "age")]
    found = score(config, labels)
    expected = alone[0].advantages + 2 * alone[1].advantages
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-6)
    expected = alone[0].rewards + 2 * alone[1].rewards
    np.testing.assert_allclose(found.rewards, expected, rtol=1e-6)
    config = settings("gender", "age", **{"advantage.name": "per_prompt"})
    labels = {"gender": np.array([0, 1]), "age": np.array([1, 1])}
    found = score(config, labels)
    assert set(found.history) == {"gender", "age"}
    assert len(found.history["age"][PROMPT]) == 2
    again = score(config, labels, history=found.history)
    assert len(again.history["gender"][PROMPT]) == 4


def test_each_attribute_has_its_target_weight_and_reward_none_starves():
    config = settings("gender", "age")
    config.attributes.age.weight = 0.0
    labels = {"gender": np.array([0, 0, 1, 1]), "age": np.array([0, 1, 1, 1])}
    found = score(config, labels)
    alone = score(settings("gender"), {"gender": labels["gender"]})
    np.testing.assert_array_equal(found.advantages, alone.advantages)
    np.testing.assert_array_equal(found.labels["age"], labels["age"])
    config = settings("gender", prompts=("a", "b"), **{"reward.name": "balance"})
    labels = {"gender": np.array([0, 1, 0, 1])}
    names = ["a", "a", "b", "b"]
    found = score(config, labels, names, {"gender": {"b": (0.9, 0.1)}})
    # a: .3 and .7 wanted, half of each there; b: .9 and .1 wanted
    np.testing.assert_allclose(found.rewards, [-0.2, 0.2, 0.4, -0.4], rtol=1e-6)
    config = settings("gender", "age", **{"reward.name": "balance"})
    config.attributes.gender.reward = "shift"
    labels = {"gender": np.array([0, 1]), "age": np.array([0, 1])}
    wanted = {"gender": {PROMPT: 0}}
    found = score(config, labels, target_classes=wanted)
    # P(female) of each, and .6 - .5, .4 - .5
    np.testing.assert_allclose(found.rewards, [1.1, -0.1], rtol=1e-6)
    # Ages hardly differ in reward; whitened by themselves they weigh as much.
    config = settings("gender", "age", **{"reward.name": "balance"})
    config.advantage.name = "batch"
    config.attributes.age.target = (0.26, 0.74)
    labels = {"gender": np.array([0, 0, 0, 1]), "age": np.array([0, 1, 1, 1])}
    found = score(config, labels)
    each = []
    for name, own in labels.items():
        alone = settings(name, **{"reward.name": "balance", "advantage.name": "batch"})
        alone.attributes[name].target = config.attributes[name].target
        each.append(score(alone, {name: own}))
    for one in each:
        np.testing.assert_allclose(one.advantages.std(), 1, rtol=1e-4)
    expected = each[0].advantages + each[1].advantages
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-5)


@pytest.mark.parametrize("combine", ["marginal", "joint"])
@pytest.mark.parametrize(
    ("names", "num_images"),
    [
        (("gender",), 4),
        (("skin_tone",), 4),
        (("age", "gender"), 4),
        (("gender", "skin_tone"), 3),
    ],
)
def test_gradients_are_unbiased(names, num_images, combine):
    """By every batch of a policy over the cells, K = 2, 3, 4 and 6."""
    config = settings(*names, **{"reward.combine": combine})
    sizes = [len(CLASSES[name]) for name in names]
    cells = list(itertools.product(*map(range, sizes)))
    policy = np.arange(1.0, len(cells) + 1)
    policy /= policy.sum()
    total, scores = np.zeros(len(cells)), np.eye(len(cells)) - policy
    for batch in itertools.product(range(len(cells)), repeat=num_images):
        drawn = list(batch)
        own = np.array([cells[cell] for cell in drawn])
        labels = {name: own[:, k] for k, name in enumerate(names)}
        total += policy[drawn].prod() * (
            score(config, labels).advantages @ scores[drawn]
        )

    # J = -1/2 sum over goals of ||shares - target||^2; its gradient by the shares
    wanted = np.prod(
        [
            np.array(TARGETS[name])[[cell[k] for cell in cells]]
            for k, name in enumerate(names)
        ],
        axis=0,
    )
    by_cell = wanted - policy
    if combine == "marginal":
        by_cell = np.zeros(len(cells))
        for k, name in enumerate(names):
            own = np.array([cell[k] for cell in cells])
            shares = np.array([policy[own == j].sum() for j in range(sizes[k])])
            by_cell += (np.array(TARGETS[name]) - shares)[own]
    jacobian = np.diag(policy) - np.outer(policy, policy)
    np.testing.assert_allclose(total, num_images * jacobian @ by_cell, atol=1e-6)
