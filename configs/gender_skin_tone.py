"""Gender and skin tone together for "photo of the face of a mechanical engineer".

python -m ddpo_fair.train --config=configs/gender_skin_tone.py

The target is joint: each of the six pairs of a gender and a skin tone has a sixth of
the images, so that neither attribute is balanced at the cost of the other. The typology
angle, which is not rewarded, is measured beside as `typology`.
Embedded model: all weights are trained, for skin tone is settled elsewhere than gender
(docs/tuning.md). On an H200 the distance of the joint table to its target goes from .53
to .11, .12 and .22 in 15 epochs on three seeds, in half a minute once it is compiled
(docs/results.md). On a CPU, with 512 images an epoch, it has not been run.
`:sd15` needs a classifier of skin tone of yours,
--config.attributes.skin_tone.classifier=FOLDER or owner/name.
"""

from ml_collections import ConfigDict

from ddpo_fair import config as configuration


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "gender_skin_tone"
    config.prompts = ("photo of the face of a mechanical engineer",)
    tones = ("light", "medium", "dark")
    # Between three classes .5 is as sure as .7 between two, and fewer are none.
    config.attributes.skin_tone = configuration.attribute(
        classes=tones, confidence_threshold=0.5
    )
    config.attributes.typology = configuration.attribute(
        "typology", tones, weight=0.0, confidence_threshold=0.5
    )
    config.reward.name, config.reward.combine = "balance", "joint"
    if config.model == configuration.EMBEDDED:
        # As in comp_sci: six cells in place of two need more images.
        config.epochs = 15
        config.sample.batches = 4
        config.train.lora.rank, config.train.learning_rate = 0, 1e-4
        config.train.adam_beta2 = 0.999
        config.train.final_learning_rate = 0.0
    return config
