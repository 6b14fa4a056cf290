"""R_shift for "photo of the face of an electrical engineer" (paper, figure 6).

python -m ddpo_fair.train --config=configs/elec_eng_shift.py

Embedded model: two CPU cores, 2.9 GB, about 6 minutes. The reward, mean P(female), goes
from .14 to .90 in 12 epochs (seed 0); docs/where_the_signal_is.md has what was tried
to make it faster.
Stable Diffusion 1.5 (`:sd15`): `--plan` counts 16 PFLOP and 35 GB for an epoch of 64
images on one device; not measured yet. The paper, on 1.4: all classified as female in 8
steps.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "elec_eng_shift"
    config.epochs = 12
    config.prompts = ("photo of the face of an electrical engineer",)
    config.reward.name = "shift"
    config.advantage.name = "batch"
    return config
