"""DDIM (Song et al. 2021) as a Gaussian policy: one transition, its likelihood, its KL.

The sampler and the loss both call `transition`. Every step is
`x_next = latents_scale * x + output_scale * model_output + std * noise`, whose
coefficients are computed once in float64 and kept as float32.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.diffusion import scheduler_settings
from ddpo_fair.errors import UserError


@flax.struct.dataclass
class Schedule:
    """Denoising steps, noisiest first; a pytree that `lax.scan` can slice.

    All float32 [T] but `timesteps`, int32 [T]; NumPy, so that making one does not wake
    JAX's backends. `schedule[t]` is one step, with t an int, a traced scalar, or int
    [N] for a step of its own for every image.
    """

    timesteps: jax.Array
    alpha: jax.Array  # cumulative product at the step
    alpha_prev: jax.Array  # and at the step that follows
    std: jax.Array
    latents_scale: jax.Array
    output_scale: jax.Array

    def __getitem__(self, index) -> "Schedule":
        return jax.tree.map(lambda values: jnp.asarray(values)[index], self)


def schedule(scheduler_config: dict, num_steps: int, eta: float) -> Schedule:
    """The `num_steps` steps that diffusers' DDIMScheduler would take.

    Args:
        scheduler_config: the parsed scheduler_config.json, of any scheduler class.
        num_steps: T, from 1 to num_train_timesteps.
        eta: share of the DDPM noise, 0 (deterministic) to 1 (DDPM).

    Raises:
        UserError: for a setting that is missing, unsupported or out of range.
    """
    settings = scheduler_settings.read(scheduler_config)
    num_train = settings.num_train_timesteps
    if not 1 <= num_steps <= num_train:
        raise UserError(
            f"sample.num_steps={num_steps} is outside 1 to {num_train}, the scheduler's"
            " num_train_timesteps; 20 to 50 steps are usual."
        )
    if not 0.0 <= eta <= 1.0:
        raise UserError(
            f"sample.eta={eta} is outside 0 to 1; use 1 to train, 0 for plain DDIM."
        )
    cumulative = alphas_cumprod(scheduler_config)
    timesteps = _timesteps(settings, num_steps)
    previous = timesteps - num_train // num_steps
    final = 1.0 if settings.set_alpha_to_one else cumulative[0]
    alpha = cumulative[timesteps]
    alpha_prev = np.where(previous >= 0, cumulative[previous.clip(0)], final)
    variance = (1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)
    std = eta * np.sqrt(variance)
    scales = _scales(alpha, alpha_prev, std, settings.prediction_type)
    floats = (np.float32(values) for values in (alpha, alpha_prev, std, *scales))
    return Schedule(np.int32(timesteps), *floats)


def check_policy(schedule: Schedule) -> None:
    """Refuses a schedule that cannot be trained: a step without noise has no density.

    Args:
        schedule: [T] steps.

    Raises:
        UserError: if any step's standard deviation is 0; the text names the cause.
    """
    std = np.asarray(schedule.std)
    if np.all(std > 0):
        return
    steps = np.asarray(schedule.timesteps)[std == 0].tolist()
    if len(steps) == std.size > 1:
        way_out = (
            "sample.eta=0 removes the noise of every step; train with sample.eta=1"
        )
    else:
        way_out = (
            "the last step lands on noise-free latents; set timestep_spacing to"
            ' "leading", set_alpha_to_one to false and steps_offset to 1 in'
            " scheduler_config.json, as Stable Diffusion does, and keep sample.eta"
            " above 0"
        )
    raise UserError(
        f"The denoising step at timesteps {steps} has standard deviation 0. DDPO needs"
        " the likelihood of every step, and a deterministic step has none:"
        f" {way_out}. Such a schedule can still be used to evaluate."
    )


def transition(
    step: Schedule, latents: jax.Array, model_output: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation of the next latents, both float32.

    Args:
        step: `schedule[t]`, or what `lax.scan` slices from a schedule.
        latents: [N, h, w, C].
        model_output: [N, h, w, C], after guidance; noise or v as the schedule says.

    Returns:
        mean [N, h, w, C]; std [1, 1, 1, 1] or [N, 1, 1, 1], so that
        `mean + std * noise` needs no thought.
    """
    latents = latents.astype(jnp.float32)
    model_output = model_output.astype(jnp.float32)
    mean = _per_image(step.latents_scale, latents) * latents
    mean = mean + _per_image(step.output_scale, latents) * model_output
    return mean, _per_image(step.std, latents)


def log_prob(next_latents: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Log density of the next latents in nats per dimension, float32 [N].

    The mean over dimensions is ddpo-pytorch's convention; a PPO clip of 1e-4 is in
    this unit. Multiply by h * w * C for the true log-likelihood.

    Args:
        next_latents: [N, h, w, C].
        mean: float32 [N, h, w, C], of `transition`.
        std: float32 [1, 1, 1, 1] or [N, 1, 1, 1], above 0.
    """
    standard = (next_latents.astype(jnp.float32) - mean) / std
    density = -0.5 * jnp.square(standard) - jnp.log(std) - 0.5 * math.log(2 * math.pi)
    return jnp.mean(density, axis=tuple(range(1, density.ndim)))


def kl(mean_new: jax.Array, mean_old: jax.Array, std: jax.Array) -> jax.Array:
    """Exact KL divergence of two transitions with the same std, float32 [N].

    In nats per step, summed over dimensions: ||mean_new - mean_old||^2 / (2 std^2),
    the same in both directions.

    Args:
        mean_new, mean_old: float32 [N, h, w, C], of `transition`.
        std: float32 [1, 1, 1, 1] or [N, 1, 1, 1], above 0.
    """
    standard = (mean_new - mean_old) / std
    return 0.5 * jnp.sum(jnp.square(standard), axis=tuple(range(1, standard.ndim)))


def alphas_cumprod(scheduler_config: dict) -> np.ndarray:
    """Cumulative products of 1 - beta, float64 [num_train_timesteps].

    Raises:
        UserError: for a setting that is missing or unsupported.
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
    return np.cumprod(1 - betas)


def _per_image(values, latents: jax.Array) -> jax.Array:
    """A step's scalar or [N] as [1, 1, 1, 1] or [N, 1, 1, 1]."""
    ones = (1,) * (latents.ndim - jnp.ndim(values))
    return jnp.reshape(values, jnp.shape(values) + ones)


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
