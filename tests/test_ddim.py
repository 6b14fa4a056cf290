"""DDIM against the formula written again, hand arithmetic and diffusers."""

import inspect

import jax.numpy as jnp
import numpy as np
import official_configs
import pytest

from ddpo_fair.diffusion import ddim, gaussian_step, scheduler_settings
from ddpo_fair.errors import UserError

STABLE_DIFFUSION = official_configs.SCHEDULER_1_5
SHAPE = (2, 4, 4, 3)


def normal(seed, shape=SHAPE):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def mean_in_float64(config, timestep, gap, eta, latents, output):
    """DDIM equations 12 and 16, one scalar timestep, nothing precomputed."""
    roots = np.linspace(config["beta_start"] ** 0.5, config["beta_end"] ** 0.5, 1000)
    alphas = np.cumprod(1 - roots**2)
    alpha = alphas[timestep]
    last = 1.0 if config["set_alpha_to_one"] else alphas[0]
    alpha_prev = alphas[timestep - gap] if timestep >= gap else last
    std = eta * ((1 - alpha_prev) / (1 - alpha) * (1 - alpha / alpha_prev)) ** 0.5
    if config.get("prediction_type") == "v_prediction":
        original = alpha**0.5 * latents - (1 - alpha) ** 0.5 * output
        noise = alpha**0.5 * output + (1 - alpha) ** 0.5 * latents
    else:
        original = (latents - (1 - alpha) ** 0.5 * output) / alpha**0.5
        noise = output
    mean = alpha_prev**0.5 * original + (1 - alpha_prev - std**2) ** 0.5 * noise
    return mean, std


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("set_alpha_to_one", [False, True])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_transition_is_the_formula(eta, set_alpha_to_one, prediction_type):
    changes = {"prediction_type": prediction_type, "set_alpha_to_one": set_alpha_to_one}
    config = STABLE_DIFFUSION | changes
    schedule = ddim.schedule(config, 50, eta)
    latents, output = normal(0), normal(1)
    for index, timestep in enumerate(schedule.timesteps):
        mean, std = gaussian_step.transition(
            schedule[index], jnp.array(latents), jnp.array(output)
        )
        expected_mean, expected_std = mean_in_float64(
            config, timestep, 20, eta, np.float64(latents), np.float64(output)
        )
        # float32 inputs and coefficients: a few units in the last place.
        np.testing.assert_allclose(mean, expected_mean, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(std, np.full((1, 1, 1, 1), expected_std), rtol=1e-6)
    assert schedule.timesteps.dtype == np.int32


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_every_number_of_steps_is_that_of_diffusers(spacing):
    diffusers = pytest.importorskip("diffusers")
    config = STABLE_DIFFUSION | {"timestep_spacing": spacing}
    reference = diffusers.DDIMScheduler.from_config(config)
    for num_steps in range(1, 1000):  # at 1000 `leading` begins at 1000, past the last
        reference.set_timesteps(num_steps)
        expected = reference.timesteps.tolist()
        if expected[-1] == -1:  # which arange's rounding adds, for 62 numbers of steps
            assert spacing == "trailing" and len(expected) == num_steps + 1
            expected = expected[:-1]
        assert ddim.schedule(config, num_steps, 1.0).timesteps.tolist() == expected


@pytest.mark.parametrize("name", scheduler_settings.CLASSES)
def test_a_silent_file_means_what_its_class_does(name):
    diffusers = pytest.importorskip("diffusers")
    defaults = inspect.signature(getattr(diffusers, name)).parameters
    of_class = scheduler_settings.OF_CLASSES | scheduler_settings.CLASSES[name]
    settings = scheduler_settings.read({"_class_name": name, "clip_sample": False})
    for field, value in (vars(settings) | of_class).items():
        if field in defaults and field != "timestep_spacing":
            assert value == defaults[field].default, field


def test_half_precision_inputs_are_raised_to_float32():
    step = ddim.schedule(STABLE_DIFFUSION, 10, 1.0)[3]
    mean, std = gaussian_step.transition(
        step, jnp.array(normal(0)), jnp.array(normal(1), jnp.bfloat16)
    )
    next_latents = jnp.ones(SHAPE, jnp.bfloat16)
    assert mean.dtype == std.dtype == jnp.float32
    assert gaussian_step.log_prob(next_latents, mean, std).dtype == jnp.float32


def test_log_prob_is_the_mean_gaussian_density():
    next_latents, mean, std = normal(0), normal(1), np.array([0.5, 0.02], np.float32)
    std = std.reshape(2, 1, 1, 1)
    log_density = -((np.float64(next_latents) - mean) ** 2) / (2 * std**2) - np.log(
        std * np.sqrt(2 * np.pi)
    )
    actual = gaussian_step.log_prob(
        jnp.array(next_latents), jnp.array(mean), jnp.array(std)
    )
    assert actual.shape == (2,)
    np.testing.assert_allclose(actual, log_density.mean((1, 2, 3)), rtol=1e-5)


def test_kl_is_the_expected_log_ratio_summed_in_nats():
    # 48 dimensions, each moved by 0.1 with sigma 0.2: 48 * (0.5 * 0.25) = 6.
    moved = jnp.full(SHAPE, 0.1)
    actual = gaussian_step.kl(moved, jnp.zeros(SHAPE), jnp.float32(0.2))
    np.testing.assert_allclose(actual, [6.0, 6.0], rtol=1e-5)
    # E[log p_old - log p_new] under old, by the sampling noise: 20,000 draws.
    rng = np.random.default_rng(0)
    mean_old, mean_new, std = 0.3, 0.5, 0.4
    draws = jnp.array(rng.normal(mean_old, std, (20000, 1)), jnp.float32)
    old, new = (
        gaussian_step.log_prob(draws, jnp.full_like(draws, mean), jnp.float32(std))
        for mean in (mean_old, mean_new)
    )
    means = jnp.array([[mean_new]]), jnp.array([[mean_old]])
    exact = gaussian_step.kl(*means, jnp.float32(std))
    np.testing.assert_allclose(exact, [0.125], rtol=1e-5)  # 0.2^2 / (2 * 0.4^2)
    # The variance of the log ratio is 2 KL = 0.25: standard error 0.0035.
    np.testing.assert_allclose(jnp.mean(old - new), 0.125, atol=0.015)


@pytest.mark.parametrize(
    ("changes", "eta", "words"),
    [
        ({}, 0.0, "sample.eta=1"),
        ({"set_alpha_to_one": True}, 1.0, "set_alpha_to_one to false"),
        ({"timestep_spacing": "linspace"}, 1.0, 'timestep_spacing to "leading"'),
        ({"steps_offset": 0}, 1.0, "steps_offset to 1"),
    ],
)
def test_a_deterministic_step_is_refused_for_training(changes, eta, words):
    gaussian_step.check_policy(ddim.schedule(STABLE_DIFFUSION, 10, 1.0), range(10))
    schedule = ddim.schedule(STABLE_DIFFUSION | changes, 10, eta)
    with pytest.raises(UserError, match=words):
        gaussian_step.check_policy(schedule, range(10))
    if eta:  # the last step alone, which need not be trained
        gaussian_step.check_policy(schedule, range(9))
    with pytest.raises(UserError, match=r"sample\.num_steps=2 and train"):
        gaussian_step.check_policy(
            ddim.schedule(STABLE_DIFFUSION | changes, 1, eta), range(1)
        )


DDIM = STABLE_DIFFUSION | {"_class_name": "DDIMScheduler"}


@pytest.mark.parametrize(
    ("config", "num_steps", "eta", "words"),
    [
        ({"num_train_timesteps": 1000}, 10, 1.0, "lacks beta_schedule, beta_start, be"),
        ({"_class_name": "EDMEulerScheduler"}, 10, 1.0, "has noise of another kind"),
        ({x: DDIM[x] for x in DDIM if x != "clip_sample"}, 10, 1.0, "clip_sample=True"),
        (DDIM | {"clip_sample": True}, 10, 1.0, "clip_sample=True"),
        (DDIM | {"prediction_type": "sample"}, 10, 1.0, "prediction_type='sample'"),
        (DDIM | {"timestep_spacing": "karras"}, 10, 1.0, "timestep_spacing='karras'"),
        (DDIM | {"beta_schedule": "sigmoid"}, 10, 1.0, "beta_schedule='sigmoid'"),
        (DDIM | {"thresholding": True}, 10, 1.0, "thresholding=True"),
        (DDIM | {"rescale_betas_zero_snr": True}, 10, 1.0, "'epsilon' must be v_pred"),
        (DDIM, 0, 1.0, "is outside"),
        (DDIM, 1001, 1.0, "is outside"),
        (DDIM, 10, 1.5, "is outside"),
        (DDIM, 1000, 1.0, "starts at timestep 1000"),  # steps_offset 1 would index it
    ],
)
def test_what_is_no_schedule_is_named(config, num_steps, eta, words):
    with pytest.raises(UserError, match=words):
        ddim.schedule(config, num_steps, eta)


@pytest.mark.parametrize(
    "beta_schedule", ["scaled_linear", "linear", "squaredcos_cap_v2"]
)
def test_alphas_are_those_of_diffusers(beta_schedule):
    diffusers = pytest.importorskip("diffusers")
    config = DDIM | {"beta_schedule": beta_schedule}
    reference = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.numpy()
    # float32 there, accumulated
    np.testing.assert_allclose(ddim.alphas_cumprod(config), reference, rtol=2e-4)


def test_zero_terminal_snr_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    changes = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    config = STABLE_DIFFUSION | changes
    reference = diffusers.DDIMScheduler.from_config(config).alphas_cumprod.numpy()
    found = ddim.alphas_cumprod(config)
    assert found[-1] == reference[-1] == 0
    # float32 there
    np.testing.assert_allclose(found, reference, rtol=1e-3, atol=1e-7)
    schedule = ddim.schedule(config | {"timestep_spacing": "trailing"}, 10, 1.0)
    # x_0 = -v and noise = x at the first step, which lands at 899: DDIM's equation 12
    signal, noise = found[899] ** 0.5, (1 - found[899]) ** 0.5
    assert schedule.timesteps[0] == 999 and schedule.output_scale[0] == -np.float32(
        signal
    )
    np.testing.assert_allclose(schedule.std[0], noise, rtol=1e-6)
