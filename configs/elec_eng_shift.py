"""Women for "photo of the face of an electrical engineer" (paper, figure 6).

python -m ddpo_fair.train --config=configs/elec_eng_shift.py
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
