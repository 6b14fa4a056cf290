"""A run of `train` with GRPO-Guard's normalised ratio, to compare with one without.

    python benchmarks/grpo_guard.py --config.seed=100 --config.run.name=guarded \
        --config=configs/mech_eng_unrestrained.py:embedded_flow

Its mean log-ratio has the drift -KL / dimensions taken out and is multiplied by the
step's std (arXiv 2510.22319, RatioNorm), here by the std over the mean of those of the
trained steps, so that `train.clip_range` keeps its unit. PPO is otherwise as it was.
"""

import sys

import jax.numpy as jnp

from ddpo_fair import setting_rules, train
from ddpo_fair.learning import losses, policy_update


def normalised(log_ratio, kl, num_dims, std):
    """log_ratio, kl: [N]; std [N], over the trained steps' mean; returns ratios [N]."""
    return jnp.exp(std * (log_ratio + kl / num_dims))


def main() -> None:
    stds, (ppo, log_prob) = [], (losses.ppo, policy_update.step_log_prob)

    def step_log_prob(policy, *arguments):
        found = log_prob(policy, *arguments)
        stds[:] = policy.schedule.std, found[2].reshape(-1)
        return found

    def guarded(step, settings):
        schedule, std = stds
        mean = schedule[: len(schedule) - settings.skip_last_steps].mean()
        log_ratio = jnp.log(step.ratio)
        ratio = normalised(log_ratio, step.kl, step.num_dims, std / mean)
        return ppo(step._replace(ratio=ratio), settings)

    setting_rules.CHOICES["train.objective"] = ("ppo",)  # others would go unguarded
    losses.ppo, policy_update.step_log_prob = guarded, step_log_prob
    sys.exit(train.main(sys.argv[1:]))


if __name__ == "__main__":
    main()
