"""Truly PPO with the exact KL, as mech_eng_unrestrained.py has PPO (paper, figure 12).

python -m ddpo_fair.train --config=configs/truly_ppo.py

Embedded model: two CPU cores, about 2 GB, about 10 minutes. q goes from .03 to .44 in
20 epochs, half as fast as PPO, and is .46 over the last third (seed 0:
docs/results.md).
Stable Diffusion 1.5 (`:sd15`): `--plan=h100` says 12 GB, and 21 PFLOP an epoch of 64
images on one device; not measured yet. The paper, on 1.4: the reward did not
rise.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "truly_ppo"
    config.prompts = ("photo of the face of a mechanical engineer",)
    config.reward.name = "balance"
    config.train.objective = "truly_ppo"
    if config.model == configuration.EMBEDDED:
        config.train.trust_region = 0.005  # what PPO's clip allows is 0.01 to 0.02
    if config.model == configuration.EMBEDDED_FLOW:
        config.train.trust_region = 0.06  # chosen on seed 100: docs/tuning.md
    return config
