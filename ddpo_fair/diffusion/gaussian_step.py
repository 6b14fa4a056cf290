"""One denoising step as a Gaussian policy: its mean and std, its likelihood, its KL.

The sampler and the loss both call `transition`. Every step is
`x_next = latents_scale * x + output_scale * model_output + std * noise`, whose
coefficients `ddim` and `flow` compute once, in float64, and keep as float32.
"""

import math

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.errors import UserError

ALL_STEPS = 0, 0  # the window of noise that is no window


@flax.struct.dataclass
class Schedule:
    """Denoising steps, noisiest first; a pytree that `lax.scan` can slice.

    All float32 [T], but DDIM's `timesteps` int32; NumPy, so that making one does not
    wake JAX's backends. `schedule[t]` is one step, with t an int, a traced scalar, or
    int [N] for a step of its own for every image.
    """

    timesteps: jax.Array
    std: jax.Array
    latents_scale: jax.Array
    output_scale: jax.Array

    def __getitem__(self, index) -> "Schedule":
        return jax.tree.map(lambda values: jnp.asarray(values)[index], self)


def noise_levels(
    num_steps: int, num_train: int, eta: float, window: tuple[int, int]
) -> np.ndarray:
    """The noise of each step, float64 [T]: `eta`, but 0 outside of the window.

    The window is the first step with noise and the one behind the last (MixGRPO, arXiv
    2507.21802). A UserError for a number of steps or a noise level out of range.
    """
    if not 1 <= num_steps <= num_train:
        raise UserError(
            f"sample.num_steps={num_steps} is outside 1 to {num_train}, the scheduler's"
            " num_train_timesteps; 20 to 50 steps are usual."
        )
    if not 0.0 <= eta <= 1.0:
        raise UserError(
            f"sample.eta={eta} is outside 0 to 1; use 1 to train, 0 for none."
        )
    steps = np.arange(num_steps)
    noisy = (window[0] <= steps) & (steps < window[1])
    return np.where(noisy | (window == ALL_STEPS), eta, 0.0)


def check_policy(schedule: Schedule, trained: range) -> None:
    """Refuses a schedule that cannot be trained: a step without noise has no density.

    Args:
        schedule: [T] steps.
        trained: numbers of those that are trained; the others may be without noise.

    Raises:
        UserError: if the standard deviation of one is 0; the text names the cause.
    """
    noiseless = [step for step in trained if schedule.std[step] == 0]
    if not noiseless:
        return
    steps = np.asarray(schedule.timesteps)[noiseless].tolist()
    if len(steps) == len(trained) > 1:
        way_out = (
            "sample.eta=0 removes the noise of every step; train with sample.eta=1"
        )
    else:
        skip = "sample.num_steps=2 and " if len(schedule.std) == 1 else ""
        way_out = (
            "the last step lands on noise-free latents; leave it out of training with"
            f" {skip}train.skip_last_steps=1 (and of sample.sde_window), or set"
            ' timestep_spacing to "leading", set_alpha_to_one to false and steps_offset'
            " to 1 in scheduler_config.json, as Stable Diffusion does, and keep"
            " sample.eta above 0"
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


def _per_image(values, latents: jax.Array) -> jax.Array:
    """A step's scalar or [N] as [1, 1, 1, 1] or [N, 1, 1, 1]."""
    ones = (1,) * (latents.ndim - jnp.ndim(values))
    return jnp.reshape(values, jnp.shape(values) + ones)
