"""From rewards to advantages: how far the batch's spread sets the step's size.

Dividing by the batch's own standard deviation cancels the reward's scale: R_balance
then loses its factor |q - 0.5| and pushes at full strength at q = 0.49. So does `group`
in each prompt, and only at balance it gives 0. `fixed` keeps the scale.

All take rewards [N] over all hosts and the prompts of the images, str [N], and return
float32 [N] in +-adv_clip; DDPO clips at 5 or 10. They work in float64, where equal
rewards have no spread, rather than a rounding error to be blown up.
"""

from collections.abc import Sequence

import numpy as np

from ddpo_fair.learning.rewards import groups

EPSILON = 1e-8  # added to a standard deviation, as in ddpo-pytorch


def batch(rewards: np.ndarray, adv_clip: float) -> np.ndarray:
    """Rewards whitened over the whole batch, as one `group`."""
    return group(rewards, [""] * len(rewards), adv_clip)


def group(rewards: np.ndarray, prompts: Sequence[str], adv_clip: float) -> np.ndarray:
    """Rewards whitened within each prompt's images of the epoch; 0 if all are equal.

    The group-relative advantage of Flow-GRPO (arXiv 2505.05470, equation 4).
    """
    own = {"buffer_size": 0, "min_count": 0, "adv_clip": adv_clip}
    return per_prompt(rewards, prompts, {}, **own)[0]


def fixed(
    rewards: np.ndarray,
    prompts: Sequence[str],
    scale: float,
    adv_clip: float,
    baselines: np.ndarray | None = None,
) -> np.ndarray:
    """Rewards centred per prompt and divided by `scale`, in units of reward.

    The advantage fades with the reward, so the push fades as balance nears. A prompt
    with one image gets 0: it has nothing to be compared with. `baselines` [N] are
    subtracted instead of the prompt's mean, which biases rewards that depend on the
    other images.
    """
    rewards = np.asarray(rewards, np.float64)
    advantages = np.zeros_like(rewards)
    for group in groups(prompts).values():
        if group.size > 1:
            means = rewards[group].mean() if baselines is None else baselines[group]
            advantages[group] = rewards[group] - means
    return _clip(advantages / scale, adv_clip)


def per_prompt(
    rewards: np.ndarray,
    prompts: Sequence[str],
    history: dict[str, list[float]],
    *,
    buffer_size: int,
    min_count: int,
    adv_clip: float,
) -> tuple[np.ndarray, dict[str, list[float]]]:
    """Rewards whitened by each prompt's recent rewards, and the history to keep.

    The tracker of ddpo-pytorch, without its trap: a prompt with more images in one
    epoch than `buffer_size` is normalised by all of them, not by the last few. A prompt
    with fewer than `min_count` is whitened by the whole batch. The history has the last
    `buffer_size` rewards of each prompt, oldest first: plain JSON, not modified.
    """
    rewards = np.asarray(rewards, np.float64)
    advantages = np.empty_like(rewards)
    updated = dict(history)
    for prompt, group in groups(prompts).items():
        recent = [*history.get(prompt, []), *rewards[group].tolist()]
        window = recent[-max(buffer_size, group.size) :]
        reference = np.array(window) if len(window) >= min_count else rewards
        spread = reference.std() + EPSILON
        advantages[group] = (rewards[group] - reference.mean()) / spread
        updated[prompt] = window[-buffer_size:]
    return _clip(advantages, adv_clip), updated


def _clip(advantages: np.ndarray, adv_clip: float) -> np.ndarray:
    return np.clip(advantages, -adv_clip, adv_clip).astype(np.float32)
