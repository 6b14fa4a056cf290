"""What scheduler_config.json says of the noise."""

import dataclasses
from typing import Any

from ddpo_fair.errors import UserError
from ddpo_fair.models import options

FILE = "scheduler_config.json"
# What diffusers 0.42 assumes of the noise where a file of a class is silent, and where
# the class differs.
OF_CLASSES = {
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
}
OF_HEUN = {"beta_start": 0.00085, "beta_end": 0.012}
OF_LCM = {**OF_HEUN, "beta_schedule": "scaled_linear"}
SOLVERS = ("DEISMultistep", "DPMSolverMultistep", "DPMSolverSinglestep", "SASolver")
SOLVERS += ("UniPCMultistep",)
DISCRETE = ("EulerAncestralDiscrete", "EulerDiscrete", "LMSDiscrete")
LIKE_HEUN = ("HeunDiscrete", "KDPM2AncestralDiscrete", "KDPM2Discrete")
CLIPPING = ("DDIM", "DDIMParallel", "DDPM", "DDPMParallel")
CLASSES: dict[str, dict[str, Any]] = {
    **{f"{name}Scheduler": {} for name in SOLVERS + DISCRETE},
    **{f"{name}Scheduler": OF_HEUN for name in LIKE_HEUN},
    **{f"{name}Scheduler": OF_LCM for name in ("LCM", "TCD")},
    **{f"{name}Scheduler": {"clip_sample": True} for name in CLIPPING},
    "PNDMScheduler": {"set_alpha_to_one": False},
}
ALLOWED = {
    "beta_schedule": ("scaled_linear", "linear", "squaredcos_cap_v2"),
    "clip_sample": (False,),
    "prediction_type": ("epsilon", "v_prediction"),
    "thresholding": (False,),
    "timestep_spacing": ("leading", "trailing", "linspace"),
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options under their names in the file.

    The spacing is DDIMScheduler's where the file is silent, as when diffusers makes one
    of another class: it is the sampler's, not the noise's.
    """

    num_train_timesteps: int
    beta_schedule: str
    beta_start: float
    beta_end: float
    clip_sample: bool = False
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False
    set_alpha_to_one: bool = True
    steps_offset: int = 0
    thresholding: bool = False
    timestep_spacing: str = "leading"
    trained_betas: tuple[float, ...] | None = None


def read(scheduler_config: dict[str, Any]) -> Settings:
    """The settings, with diffusers' defaults where the file is silent.

    Args:
        scheduler_config: the parsed scheduler_config.json, of any scheduler class.

    Raises:
        UserError: for a setting that is missing, unsupported, or cannot be.
    """
    name = str(scheduler_config.get("_class_name")).removeprefix("Flax")
    of_class = OF_CLASSES | CLASSES[name] if name in CLASSES else {}
    given = of_class | scheduler_config
    if missing := [name for name in OF_CLASSES if name not in given]:
        whose = f" and _class_name={name!r} has noise of another kind" * (
            name != "None"
        )
        raise UserError(
            f"{FILE} lacks {', '.join(missing)}{whose}; {options.ORIGINAL}."
        )
    settings = options.read(Settings, given, FILE)
    allowed = [options.among(settings, *rule) for rule in ALLOWED.items()]
    options.check(FILE, vars(settings), allowed, "other values are not supported")
    start, end, betas = settings.beta_start, settings.beta_end, settings.trained_betas
    count = settings.num_train_timesteps
    listed = betas is None or (len(betas) == count and max(betas) < 1)
    velocity = settings.prediction_type == "v_prediction"
    zero_snr = velocity or not settings.rescale_betas_zero_snr
    rules = (
        # At the noisiest step there is no signal left to tell from the noise.
        (
            "prediction_type",
            zero_snr,
            "v_prediction where rescale_betas_zero_snr is true",
        ),
        ("beta_start", start <= end, "at most beta_end"),
        ("beta_end", end < 1, "below 1"),
        ("trained_betas", listed, f"null, or {count} numbers below 1"),
    )
    options.check(FILE, vars(settings), rules)
    return settings
