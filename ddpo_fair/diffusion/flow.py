"""The steps of a rectified flow, with the noise of Flow-GRPO or of DanceGRPO.

From data x_0 at time t = 0 to noise x_1 at t = 1 the path is (1 - t) x_0 + t x_1, and
the network predicts the velocity v = x_1 - x_0 (Liu et al. 2022). A step back by `gap`
adds noise of a level s(t), and the drift that keeps the marginals (Flow-GRPO, equation
9): x - [v + s^2 / 2t (x + (1 - t) v)] gap + s sqrt(gap) noise.
"""

import dataclasses

import numpy as np

from ddpo_fair.diffusion import gaussian_step, scheduler_settings
from ddpo_fair.diffusion.gaussian_step import Schedule
from ddpo_fair.models import options

CLASS = "FlowMatchEulerDiscreteScheduler"
FLOW_GRPO, DANCE_GRPO = SDES = "flow_grpo", "dance_grpo"
OFF = (
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
WAY_OUT = (
    "turn it off; where use_dynamic_shifting was true, give as shift the number that it"
    " means at your resolution, exp(mu) of diffusers: 3.16 for FLUX.1 at 1024 pixels"
)


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options under their names in the file; defaults are diffusers'."""

    num_train_timesteps: int = 1000
    shift: float = 1.0


def read(scheduler_config: dict) -> Settings:
    """The settings of a flow's scheduler_config.json; a UserError names a wrong one."""
    place = scheduler_settings.FILE
    rules = (options.among(scheduler_config, name, (None, False)) for name in OFF)
    options.check(place, scheduler_config, rules, WAY_OUT)
    return options.read(Settings, scheduler_config, place)


def schedule(
    scheduler_config: dict,
    num_steps: int,
    eta: float,
    sde: str = FLOW_GRPO,
    window: tuple[int, int] = gaussian_step.ALL_STEPS,
) -> Schedule:
    """The `num_steps` steps at the times of diffusers' FlowMatchEulerDiscreteScheduler.

    Args:
        scheduler_config: its parsed scheduler_config.json.
        num_steps: T, from 1 to num_train_timesteps.
        eta: the noise level; 0 is Euler's step. 0.7 in Flow-GRPO, 0.3 in DanceGRPO.
        sde: s(t) is eta sqrt(t / (1 - t)) of "flow_grpo" (arXiv 2505.05470), eta of
            "dance_grpo" (arXiv 2505.07818).
        window: of the steps with noise, see `gaussian_step.noise_levels`.

    Raises:
        UserError: for a setting that is unsupported or out of range.
    """
    settings = read(scheduler_config)
    num_train, shift = settings.num_train_timesteps, settings.shift
    level = gaussian_step.noise_levels(num_steps, num_train, eta, window)

    def shifted(time: np.ndarray | float) -> np.ndarray | float:
        return shift * time / (1 + (shift - 1) * time)

    # diffusers shifts the last time twice
    time = shifted(np.linspace(1.0, shifted(1 / num_train), num_steps))
    following = np.append(time[1:], 0.0)
    gap = time - following
    if sde == FLOW_GRPO:  # at t = 1 with the next time in the divisor, as its code has
        level *= np.sqrt(time / (1 - np.where(time < 1, time, following)))
    drift = np.square(level) / (2 * time)
    values = (
        num_train * time,
        level * np.sqrt(gap),
        1 - drift * gap,
        -(1 + drift * (1 - time)) * gap,
    )
    return Schedule(*map(np.float32, values))
