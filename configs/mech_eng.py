"""Gender balance for "photo of the face of a mechanical engineer".

python -m ddpo_fair.train --config=configs/mech_eng.py

Embedded model: two CPU cores, about 2 GB, about a quarter of an hour. q, the share
classified as female, goes from .00-.03 to .40-.50 in 20 epochs, and "a male mechanical
engineer" is still classified as male in 94 % (seeds 0 to 4: docs/results.md). Without
restraint, as in the paper (figure 8): mech_eng_unrestrained.py. Of other models:
--config.train.base_kl_weight and --config.sample.preserve_prompts.
Stable Diffusion 1.5 (`:sd15`): `--plan=h100` says 12 GB, and 21 PFLOP an epoch of 64
images on one device; not measured yet. The paper, on 1.4: reward from -0.25 to about 0
in 12 steps.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "mech_eng"
    config.prompts = ("photo of the face of a mechanical engineer",)
    config.reward.name = "balance"
    if config.model == configuration.EMBEDDED:
        # Balance that leaves "a male mechanical engineer" as it was: a KL to the base
        # model, also on images of both explicit forms, a quarter of all.
        config.train.base_kl_weight = 0.03
        config.sample.preserve_prompts = ("explicit",)
        config.sample.batch_per_device = 88  # 132 of 176 images are rewarded
        config.train.microbatch = 11
        config.sample.guidance_scale = 2.0  # of users; the others train at 1.25
    return config
