"""The steps of DDIM (Song et al. 2021, https://arxiv.org/abs/2010.02502)."""

import math

import numpy as np

from ddpo_fair.diffusion import gaussian_step, scheduler_settings
from ddpo_fair.diffusion.gaussian_step import Schedule
from ddpo_fair.errors import UserError


def schedule(
    scheduler_config: dict,
    num_steps: int,
    eta: float,
    window: tuple[int, int] = gaussian_step.ALL_STEPS,
) -> Schedule:
    """The `num_steps` steps that diffusers' DDIMScheduler would take.

    Args:
        scheduler_config: the parsed scheduler_config.json, of any scheduler class.
        num_steps: T, from 1 to num_train_timesteps.
        eta: share of the DDPM noise, 0 (deterministic) to 1 (DDPM).
        window: of the steps with noise, see `gaussian_step.noise_levels`.

    Raises:
        UserError: for a setting that is missing, unsupported or out of range.
    """
    settings = scheduler_settings.read(scheduler_config)
    num_train = settings.num_train_timesteps
    levels = gaussian_step.noise_levels(num_steps, num_train, eta, window)
    cumulative = alphas_cumprod(scheduler_config)
    timesteps = _timesteps(settings, num_steps)
    previous = timesteps - num_train // num_steps
    final = 1.0 if settings.set_alpha_to_one else cumulative[0]
    alpha = cumulative[timesteps]
    alpha_prev = np.where(previous >= 0, cumulative[previous.clip(0)], final)
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    std = levels * np.sqrt(variance)
    scales = _scales(alpha, alpha_prev, std, settings.prediction_type)
    floats = (np.float32(values) for values in (std, *scales))
    return Schedule(np.int32(timesteps), *floats)


def alphas_cumprod(scheduler_config: dict) -> np.ndarray:
    """Cumulative products of 1 - beta, float64 [num_train_timesteps].

    A UserError for a setting that is missing or unsupported.
    """
    settings = scheduler_settings.read(scheduler_config)
    num_train = settings.num_train_timesteps
    start, end = settings.beta_start, settings.beta_end
    if settings.trained_betas:
        betas = np.asarray(settings.trained_betas, np.float64)
    elif settings.beta_schedule == "linear":
        betas = np.linspace(start, end, num_train)
    elif settings.beta_schedule == "scaled_linear":
        betas = np.square(np.linspace(math.sqrt(start), math.sqrt(end), num_train))
    else:  # squaredcos_cap_v2: Nichol & Dhariwal 2021, eq. 17
        angles = (np.arange(num_train + 1) / num_train + 0.008) / 1.008 * math.pi / 2
        cosines = np.square(np.cos(angles))
        betas = np.minimum(1 - cosines[1:] / cosines[:-1], 0.999)
    cumulative = np.cumprod(1 - betas)
    if settings.rescale_betas_zero_snr:  # Lin et al. 2023, algorithm 1
        signal = np.sqrt(cumulative)
        cumulative = np.square(
            (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        )
    return cumulative


def _timesteps(settings: scheduler_settings.Settings, num_steps: int) -> np.ndarray:
    """Int64 [T], descending, by diffusers' formula of each spacing."""
    num_train = settings.num_train_timesteps
    if settings.timestep_spacing == "leading":
        ascending = np.arange(num_steps) * (num_train // num_steps)
        timesteps = ascending[::-1] + settings.steps_offset
    elif settings.timestep_spacing == "linspace":
        timesteps = np.linspace(0, num_train - 1, num_steps).round()[::-1]
    else:
        # arange, which rounds as diffusers does, may add a step: at timestep -1, where
        # diffusers takes the noisiest alpha
        timesteps = np.arange(num_train, 0, -num_train / num_steps)[:num_steps]
        timesteps = timesteps.round() - 1
    if timesteps[0] >= num_train:
        raise UserError(
            f"sample.num_steps={num_steps} with steps_offset={settings.steps_offset}"
            f" starts at timestep {timesteps[0]:.0f}, past the last, {num_train - 1};"
            " use fewer steps."
        )
    return timesteps.astype(np.int64)


def _scales(alpha, alpha_prev, std, prediction_type) -> tuple[np.ndarray, np.ndarray]:
    """Weights of the latents and of the model's output in the mean, float64 [T].

    The mean is sqrt(alpha_prev) * x_0 + sqrt(1 - alpha_prev - std^2) * noise (DDIM
    eq. 12); x_0 and noise are linear in the latents and the output.
    """
    original = np.sqrt(alpha_prev)
    direction = np.sqrt(np.maximum(1 - alpha_prev - np.square(std), 0.0))
    if prediction_type == "epsilon":
        latents_scale = original / np.sqrt(alpha)
        return latents_scale, direction - latents_scale * np.sqrt(1 - alpha)
    signal, noise = np.sqrt(alpha), np.sqrt(1 - alpha)
    return original * signal + direction * noise, direction * signal - original * noise
