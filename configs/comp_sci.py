"""Gender balance for "photo of the face of a computer scientist" (paper, figure 10).

python -m ddpo_fair.train --config=configs/comp_sci.py
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "comp_sci"
    config.prompts = ("photo of the face of a computer scientist",)
    config.reward.name = "balance"
    return config
