"""From rewards to advantages: how far the batch's spread sets the step's size.

Dividing by the batch's own standard deviation cancels the reward's scale: R_balance
then loses its factor |q - 0.5| and pushes at full strength at q = 0.49. So does `group`
in each prompt, and only at balance it gives 0. `fixed` keeps the scale. All work in
float64, where equal rewards have no spread, rather than a rounding error to be blown
up.
"""

from collections.abc import Sequence

import numpy as np

from ddpo_fair.learning.rewards import groups

EPSILON = 1e-8  # added to a standard deviation, as in ddpo-pytorch


def batch(rewards: np.ndarray, adv_clip: float) -> np.ndarray:
    """Rewards whitened over the whole batch, float32 [N], as one `group`."""
    return group(rewards, [""] * len(rewards), adv_clip)


def group(rewards: np.ndarray, prompts: Sequence[str], adv_clip: float) -> np.ndarray:
    """Rewards whitened within each prompt, float32 [N]: (r - mean) / (std + 1e-8).

    The group-relative advantage of Flow-GRPO (arXiv 2505.05470, equation 4).

    Args:
        rewards: [N], over all hosts.
        prompts: str [N], whose images of this epoch are a group.
        adv_clip: advantages are clipped to +-adv_clip; DDPO uses 5 or 10.

    Returns:
        0 where every reward of the group is the same.
    """
    rewards = np.asarray(rewards, np.float64)
    advantages = np.empty_like(rewards)
    for rows in groups(prompts).values():
        advantages[rows] = _whiten(rewards[rows], rewards[rows])
    return _clip(advantages, adv_clip)


def fixed(
    rewards: np.ndarray,
    prompts: Sequence[str],
    scale: float,
    adv_clip: float,
    baselines: np.ndarray | None = None,
) -> np.ndarray:
    """Rewards centred per prompt and divided by a constant, float32 [N].

    The advantage fades with the reward, so the push fades as balance nears. A prompt
    with one image gets 0: it has nothing to be compared with.

    Args:
        rewards: [N], over all hosts.
        prompts: str [N]; give one name throughout to centre over the whole batch.
        scale: the constant, in units of reward; above 0.
        adv_clip: as for `batch`.
        baselines: [N], to subtract instead of the prompt's mean, which biases rewards
            that depend on the other images.
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
    epoch than `buffer_size` is normalised by all of them, not by the last few.

    Args:
        rewards: [N], over all hosts.
        prompts: str [N].
        history: recent rewards of each prompt, oldest first; {} at the start. It is
            plain JSON, survives a round trip exactly, and is not modified.
        buffer_size: rewards remembered per prompt; 16 or 32 in DDPO.
        min_count: a prompt with fewer is whitened by the whole batch instead.
        adv_clip: as for `batch`.

    Returns:
        advantages float32 [N], and the next epoch's history.
    """
    rewards = np.asarray(rewards, np.float64)
    advantages = np.empty_like(rewards)
    updated = dict(history)
    for prompt, group in groups(prompts).items():
        recent = [*history.get(prompt, []), *rewards[group].tolist()]
        window = recent[-max(buffer_size, group.size) :]
        reference = np.array(window) if len(window) >= min_count else rewards
        advantages[group] = _whiten(rewards[group], reference)
        updated[prompt] = window[-buffer_size:]
    return _clip(advantages, adv_clip), updated


def _whiten(rewards: np.ndarray, reference: np.ndarray) -> np.ndarray:
    return (rewards - reference.mean()) / (reference.std() + EPSILON)


def _clip(advantages: np.ndarray, adv_clip: float) -> np.ndarray:
    return np.clip(advantages, -adv_clip, adv_clip).astype(np.float32)
