"""Gender balance for "photo of the face of a mechanical engineer".

python -m ddpo_fair.train --config=configs/mech_eng.py

Embedded model: two CPU cores, about 2 GB, about a quarter of an hour. q, the share
classified as female, goes from .01-.03 to .39-.50 in 20 epochs, and "a male mechanical
engineer" is still classified as male in 99 % (seeds 0 to 4: docs/results.md). Without
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
        # Probabilities over views of an image count, and ambiguous faces pay.
        config.reward.name = "balance_loo"
        config.reward.soft, config.reward.views = True, 8
        config.attributes.gender.confidence_threshold = 0.8
        config.attributes.gender.none_penalty = 0.2
        # "A male mechanical engineer" stays as it was: the KL to the base model is
        # charged on images of both explicit forms above all, an eighth of all images.
        config.train.base_kl_weight = 0.01
        config.sample.preserve_prompts = ("explicit",)
        config.sample.preserve_weight, config.sample.preserve_share = 18.0, 0.125
        config.sample.batch_per_device = 76  # 133 of 152 images are rewarded
        config.train.microbatch = 19
        config.sample.guidance_scale = 2.0  # of users; the others train at 1.25
        config.train.adam_beta2, config.train.final_learning_rate = 0.999, 0.0
        config.eval.images, config.eval.every_epochs = 120, 4  # one batch with the grid
    return config
