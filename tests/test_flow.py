"""Rectified flow against diffusers, the papers' formulas, and a Gaussian's flow."""

import jax
import jax.numpy as jnp
import numpy as np
import official_configs
import pytest

from ddpo_fair.diffusion import ddim, flow, gaussian_step
from ddpo_fair.errors import UserError

# https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers
SD3 = {"_class_name": flow.CLASS, "num_train_timesteps": 1000, "shift": 3.0}
SHAPE = (2, 4, 4, 3)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def step(schedule, index, latents, output):
    return gaussian_step.transition(
        schedule[index], jnp.asarray(latents), jnp.asarray(output)
    )


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_without_noise_the_steps_are_those_of_diffusers(torch, shift):
    diffusers = pytest.importorskip("diffusers")
    config = SD3 | {"shift": shift}
    reference = diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    for num_steps in (1, 2, 10, 28):
        reference.set_timesteps(num_steps)
        schedule = flow.schedule(config, num_steps, 0.0)
        # diffusers' own are of float32
        np.testing.assert_allclose(
            schedule.timesteps, reference.timesteps.numpy(), rtol=1e-6
        )
        for index, time in enumerate(reference.timesteps):
            latents, output = normal(2 * index), normal(2 * index + 1)
            expected = reference.step(
                torch.tensor(output), time, torch.tensor(latents)
            ).prev_sample
            mean, std = step(schedule, index, latents, output)
            np.testing.assert_allclose(mean, expected.numpy(), rtol=1e-5, atol=1e-6)
            assert not np.any(std)


def of_flow_grpo(times, index, noise_level, latents, velocity):
    """Equation 9 of 2505.05470; its code has the next time in sigma's divisor at 1."""
    time, following = times[index], times[index + 1]
    gap = time - following
    below = following if time == 1 else time
    sigma = noise_level * np.sqrt(time / (1 - below))
    drift = velocity + sigma**2 / (2 * time) * (latents + (1 - time) * velocity)
    return latents - drift * gap, sigma * np.sqrt(gap)


def of_dance_grpo(times, index, noise_level, latents, velocity):
    """2505.07818: Euler's step and half the squared noise level times the score."""
    time, gap = times[index], times[index] - times[index + 1]
    original = latents - time * velocity
    score = -(latents - (1 - time) * original) / time**2
    mean = latents - gap * velocity + 0.5 * noise_level**2 * score * gap
    return mean, noise_level * np.sqrt(gap)


@pytest.mark.parametrize("formula", [of_flow_grpo, of_dance_grpo])
def test_log_probs_are_those_of_the_papers(formula):
    schedule = flow.schedule(SD3, 10, 0.7, formula.__name__.removeprefix("of_"))
    times = np.append(np.float64(schedule.timesteps) / 1000, 0.0)
    for index in range(10):
        latents, velocity, following = (normal(3 * index + i) for i in range(3))
        mean, std = step(schedule, index, latents, velocity)
        wanted, wanted_std = formula(
            times, index, 0.7, np.float64(latents), np.float64(velocity)
        )
        density = -((following - wanted) ** 2) / (2 * wanted_std**2)
        density -= np.log(wanted_std * np.sqrt(2 * np.pi))
        found = gaussian_step.log_prob(jnp.asarray(following), mean, std)
        # float32, divided by a std of .008 at the end
        np.testing.assert_allclose(found, density.mean((1, 2, 3)), rtol=1e-4)


@pytest.mark.parametrize("make", [flow.schedule, ddim.schedule])
def test_outside_of_the_window_steps_are_without_noise(make):
    config = SD3 if make is flow.schedule else official_configs.SCHEDULER_1_5
    noisy, still = make(config, 10, 0.7), make(config, 10, 0.0)
    found = make(config, 10, 0.7, window=(2, 5))
    for one, all_steps, none in zip(
        *map(jax.tree.leaves, (found, noisy, still)), strict=True
    ):
        np.testing.assert_array_equal(one[2:5], all_steps[2:5])
        np.testing.assert_array_equal(one[:2], none[:2])
        np.testing.assert_array_equal(one[5:], none[5:])
    assert np.all(found.std[2:5] > 0) and not np.any(still.std)


@pytest.mark.parametrize("sde", flow.SDES)
@pytest.mark.parametrize("eta", [0.0, 0.3, 0.7])
def test_the_noise_keeps_the_marginals(eta, sde):
    # Of data N(m, c^2), x_t is N((1 - t) m, (1 - t)^2 c^2 + t^2), and the velocity
    # E[x_1 - x_0 | x_t] is linear: each step moves mean and variance by arithmetic.
    m, c = 2.0, 0.5
    errors = []
    for num_steps in (250, 1000):
        schedule = flow.schedule(SD3, num_steps, eta, sde)
        mean, variance, worst = 0.0, 1.0, 0.0
        times = np.append(np.float64(schedule.timesteps) / 1000, 0.0)
        for index, time in enumerate(times[:-1]):
            slope = (time - (1 - time) * c**2) / ((1 - time) ** 2 * c**2 + time**2)
            constant = -m - slope * (1 - time) * m
            a, b = schedule.latents_scale[index], schedule.output_scale[index]
            mean = (a + b * slope) * mean + b * constant
            variance = (a + b * slope) ** 2 * variance + schedule.std[index] ** 2
            after = times[index + 1]
            found = mean, np.sqrt(variance)
            exact = (1 - after) * m, np.sqrt((1 - after) ** 2 * c**2 + after**2)
            if after < 0.9:  # nearer to 1 Flow-GRPO's level grows beyond any step
                worst = max(worst, *np.abs(np.subtract(found, exact)))
        errors.append(worst)
    # a step's error is of the order of its length
    assert errors[1] < 0.01 and errors[1] < 0.5 * errors[0]


@pytest.mark.parametrize(
    ("changes", "num_steps", "eta", "words"),
    [
        ({"use_dynamic_shifting": True}, 10, 0.7, "give as shift the number"),
        ({"use_karras_sigmas": True}, 10, 0.7, "use_karras_sigmas=True"),
        ({"shift_terminal": 0.02}, 10, 0.7, "shift_terminal=0.02"),
        ({"shift": "three"}, 10, 0.7, "shift='three' must be"),
        ({}, 0, 0.7, "is outside"),
        ({}, 1001, 0.7, "is outside"),
        ({}, 10, 1.5, "is outside"),
    ],
)
def test_what_is_no_schedule_is_named(changes, num_steps, eta, words):
    with pytest.raises(UserError, match=words):
        flow.schedule(SD3 | changes, num_steps, eta)
