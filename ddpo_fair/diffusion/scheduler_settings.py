"""What scheduler_config.json says of the noise."""

from typing import Any

from ddpo_fair.errors import UserError
from ddpo_fair.models import options

FILE = "scheduler_config.json"
REQUIRED = ("num_train_timesteps", "beta_schedule", "beta_start", "beta_end")
# What diffusers 0.42 assumes where an older scheduler_config.json is silent.
DEFAULTS = {
    "prediction_type": "epsilon",
    "rescale_betas_zero_snr": False,
    "set_alpha_to_one": True,
    "steps_offset": 0,
    "thresholding": False,
    "timestep_spacing": "leading",
    "trained_betas": None,
}
MOST_TIMESTEPS = 10**5  # 1000 in all published models
CLIPPING_CLASSES = ("DDIMScheduler", "DDPMScheduler")  # clip_sample=True if unsaid
ALLOWED = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "clip_sample": (False,),
    "prediction_type": ("epsilon", "v_prediction"),
    "rescale_betas_zero_snr": (False,),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


def read(scheduler_config: dict[str, Any]) -> dict[str, Any]:
    """The settings, with diffusers' defaults where the file is silent.

    Args:
        scheduler_config: the parsed scheduler_config.json, of any scheduler class.

    Raises:
        UserError: for a setting that is missing, unsupported, or cannot be.
    """
    missing = [name for name in REQUIRED if name not in scheduler_config]
    if missing:
        raise UserError(f"{FILE} lacks {', '.join(missing)}; {options.ORIGINAL}.")
    clips = scheduler_config.get("_class_name", "") in CLIPPING_CLASSES
    settings = DEFAULTS | {"clip_sample": clips} | scheduler_config
    options.check(
        FILE,
        settings,
        (
            (name, settings[name] in allowed, " or ".join(map(repr, allowed)))
            for name, allowed in ALLOWED.items()
        ),
        "other values are not supported",
    )
    _check_numbers(settings)
    return settings


def _check_numbers(settings: dict) -> None:
    """Raises a UserError if a number of `settings` is none, or cannot be."""
    start, end = settings["beta_start"], settings["beta_end"]
    count, offset = settings["num_train_timesteps"], settings["steps_offset"]
    betas, to_one = settings["trained_betas"], settings["set_alpha_to_one"]
    counted = type(count) is int and 1 <= count <= MOST_TIMESTEPS
    shared = all(type(beta) in (int, float) for beta in (start, end))
    if betas is not None:
        listed = isinstance(betas, list) and len(betas) == count
        listed = listed and all(type(b) is float and 0 < b < 1 for b in betas)
    rules = (
        ("num_train_timesteps", counted, f"a whole number from 1 to {MOST_TIMESTEPS}"),
        ("beta_start", shared and 0 < start <= end, "above 0, at most beta_end"),
        ("beta_end", shared and 0 < end < 1, "below 1"),
        ("steps_offset", type(offset) is int and offset >= 0, "a whole number, 0 or 1"),
        ("trained_betas", betas is None or listed, "null, or numbers from 0 to 1"),
        ("set_alpha_to_one", type(to_one) is bool, "true or false"),
    )
    options.check(FILE, settings, rules)
