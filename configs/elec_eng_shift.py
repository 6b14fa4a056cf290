"""R_shift for "photo of the face of an electrical engineer" (paper, figure 6).

python -m ddpo_fair.train --config=configs/elec_eng_shift.py

Embedded model: the reward, mean P(female), goes from .12-.13 to .95 in 12 epochs on
five seeds (H200), and "a male electrical engineer" is as asked in 106 to 122 of 128
images (docs/results.md). Two CPU cores: about half an hour. Without restraint, as in
the paper, in 6 of 128: launch/paper.sh shift. docs/tuning.md has what was tried.
Stable Diffusion 1.5 (`:sd15`): `--plan=h100` says 12 GB, and 21 PFLOP an epoch of 64
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
    if config.model == configuration.EMBEDDED:
        # R_shift has no point of rest to overshoot: four times the images, twice the
        # updates, each free to go three times as far.
        config.sample.batches = 4
        config.train.updates_per_epoch = 4
        config.train.clip_range = 3e-4
        # "A male electrical engineer" stays as it was, as in mech_eng.
        config.reward.views = 8
        config.train.base_kl_weight = 0.003
        config.sample.preserve_prompts = ("explicit",)
        config.sample.preserve_weight, config.sample.preserve_share = 60.0, 0.125
    return config
