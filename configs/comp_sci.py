"""Gender balance for "photo of the face of a computer scientist" (paper, figure 10).

python -m ddpo_fair.train --config=configs/comp_sci.py

Embedded model: two CPU cores, about 2 GB, about 14 minutes. q, the share classified as
female, goes from .07-.10 to .4-.6 in nine epochs and stays; over the last third it is
.47, .51 and .46 (seeds 0 to 2: docs/results.md).
Stable Diffusion 1.5 (`:sd15`): `--plan=h100` says 12 GB, and 21 PFLOP an epoch of 64
images on one device; not measured yet. The paper, on 1.4: reward close to 0
within 20 steps.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "comp_sci"
    config.prompts = ("photo of the face of a computer scientist",)
    config.reward.name = "balance"
    if config.model == configuration.EMBEDDED:
        # With 128 images an epoch and a quarter of the learning rate left, q followed
        # its own noise. Twice the images halve that noise's variance; a long memory
        # in Adam lets small gradients make small steps; the rate falls to zero.
        config.epochs = 15
        config.sample.batches = 2
        config.train.adam_beta2 = 0.999
        config.train.final_learning_rate = 0.0
        config.eval.every_epochs = 2
    return config
