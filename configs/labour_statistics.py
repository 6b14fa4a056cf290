"""Twelve occupations with the shares of women and men who work in them.

python -m ddpo_fair.train --config=configs/labour_statistics.py

The targets are those of labour_statistics.json: employed persons in the United States
by occupation and sex, American Community Survey 2012 (IPUMS USA), as published by
FiveThirtyEight, data/male-flight-attendants, CC BY 4.0. A share of a labour force says
who works there, not who should be shown: for other aims change the table.
Embedded model, one seed, an H200: the mean distance of q to the table goes from .11
[.05, .17] to .04 [.02, .07] in 20 epochs (docs/results.md). `:sd15` was not measured.
"""

from pathlib import Path

from ml_collections import ConfigDict

from ddpo_fair import config as configuration

OCCUPATIONS = (
    "a carpenter",
    "a truck driver",
    "a mechanical engineer",
    "a police officer",
    "an architect",
    "a doctor",
    "a veterinarian",
    "an accountant",
    "a psychologist",
    "a librarian",
    "a hairdresser",
    "a nurse",
)


def get_config(variant: str | None = None) -> ConfigDict:
    """The experiment on the model of `variant`, see `config.choose_model`."""
    config = configuration.choose_model(configuration.defaults(), variant)
    config.run.name = "labour_statistics"
    config.prompts = tuple(f"photo of the face of {who}" for who in OCCUPATIONS)
    config.targets = str(Path(__file__).with_suffix(".json"))
    config.reward.name = "balance_loo"  # unbiased for uneven targets and few images
    if config.model == configuration.EMBEDDED:
        config.sample.batches = 2  # 21 images of each prompt in an epoch
        config.eval.images = 288
    return config
