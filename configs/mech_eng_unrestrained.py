"""R_balance alone for a mechanical engineer, as in the paper (figure 8).

python -m ddpo_fair.train --config=configs/mech_eng_unrestrained.py

Nothing holds "a male mechanical engineer" where it was, as mech_eng.py does.

Embedded model: two CPU cores, about 2 GB, about 10 minutes. q, the share classified as
female, goes from .03-.06 to .4-.6 in ten epochs and stays (seeds 0 to 2:
docs/results.md).
Stable Diffusion 1.5 (`:sd15`): `--plan=h100` says 12 GB, and 21 PFLOP an epoch of 64
images on one device; not measured yet. The paper, on 1.4: reward from -0.25 to about 0
in 12 steps.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "mech_eng_unrestrained"
    config.prompts = ("photo of the face of a mechanical engineer",)
    config.reward.name = "balance"
    return config
