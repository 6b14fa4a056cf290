"""The sampler: DDIM's formula step by step, and the same images on any devices."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model

from ddpo_fair import parallel, rng
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion

NUM_STEPS, GUIDANCE, NUM_IMAGES = 4, 3.0, 16  # as test_learner, which compiles it too


@pytest.fixture(scope="module")
def model(tiny):
    return stable_diffusion.load(tiny[0])


def draw(model, order):
    """Latents [N, T+1, h, w, C] and log-probs [N, T] of the images in that order."""
    schedule = ddim.schedule(model.scheduler, NUM_STEPS, 1.0)
    text = stable_diffusion.encode_prompts(model, ["", tiny_model.PROMPTS[0]])
    keys = jax.vmap(lambda index: rng.key(7, "image", index))(jnp.asarray(order))
    trajectory = sampler.sample(
        sampler.Policy(model, schedule, GUIDANCE),
        parallel.replicate(model.params["unet"]),
        parallel.split(keys),
        parallel.split(np.repeat(text[1:], len(order), axis=0)),
        parallel.replicate(text[0]),
    )
    return parallel.gather(trajectory.latents), parallel.gather(trajectory.log_probs)


@pytest.fixture(scope="module")
def drawn(model):
    return draw(model, range(NUM_IMAGES))


def test_every_step_is_ddim_with_guidance(model, drawn):
    latents, log_probs = drawn
    assert latents.shape == (NUM_IMAGES, NUM_STEPS + 1, 8, 8, 4)
    schedule = ddim.schedule(model.scheduler, NUM_STEPS, 1.0)
    text = stable_diffusion.encode_prompts(model, ["", tiny_model.PROMPTS[0]])
    unet = jax.jit(model.denoiser.apply)
    variables = {"params": model.params["unet"]}
    alphas = ddim.alphas_cumprod(model.scheduler)
    for t in range(NUM_STEPS):
        x, next_latents = np.float64(latents[:, t]), np.float64(latents[:, t + 1])
        outputs = [
            np.float64(
                unet(
                    variables,
                    latents[:, t],
                    np.full(NUM_IMAGES, schedule.timesteps[t]),
                    np.repeat(one[None], NUM_IMAGES, axis=0),
                )
            )
            for one in text
        ]
        v = outputs[0] + GUIDANCE * (outputs[1] - outputs[0])
        now, std = schedule.timesteps[t], float(schedule.std[t])
        alpha, before = alphas[now], alphas[max(now - 1000 // NUM_STEPS, 0)]
        # The definition of v (Salimans and Ho 2022), then eq. 12 of DDIM.
        original = math.sqrt(alpha) * x - math.sqrt(1 - alpha) * v
        noise = math.sqrt(alpha) * v + math.sqrt(1 - alpha) * x
        mean = math.sqrt(before) * original + math.sqrt(1 - before - std**2) * noise
        unit = (next_latents - mean) / std
        density = -0.5 * unit**2 - math.log(std) - 0.5 * math.log(2 * math.pi)
        expected = density.mean(axis=(1, 2, 3))
        # float32 in the network, divided by std
        np.testing.assert_allclose(log_probs[:, t], expected, rtol=0, atol=1e-4)
        assert abs(unit.std() - 1) < 0.05 and abs(unit.mean()) < 0.1


def test_an_image_depends_on_its_key_alone(model, drawn):
    order = np.random.default_rng(0).permutation(NUM_IMAGES)
    latents, log_probs = draw(model, order)
    # another place in the batch may round otherwise
    np.testing.assert_allclose(latents, drawn[0][order], rtol=0, atol=1e-5)
    np.testing.assert_allclose(log_probs, drawn[1][order], rtol=0, atol=1e-5)
    key = rng.key(7, "image", 3)
    first = sampler.initial_noise(key, (8, 8, 4))
    np.testing.assert_array_equal(np.asarray(first), drawn[0][3, 0])
    images = sampler.decode(model, model.params["vae"], parallel.split(drawn[0][:, -1]))
    assert images.shape == (8, 2, 16, 16, 3)
    assert float(images.min()) >= 0 and float(images.max()) <= 1


def test_many_pixels_are_decoded_in_turns(model, drawn, monkeypatch):
    latents = drawn[0][:6, -1]

    def decoding():  # anew, or JAX would remember what it has traced
        return functools.partial(stable_diffusion.decode, model, model.params["vae"])

    together = jax.jit(decoding())(latents)
    for pixels, turns in ((4 * 16 * 16, 2), (1, 6)):
        monkeypatch.setattr(stable_diffusion, "PIXELS", pixels)
        loops = [
            x.params["length"]
            for x in jax.make_jaxpr(decoding())(latents).eqns
            if x.primitive.name == "scan"
        ]
        assert loops == [turns]
        found = jax.jit(decoding())(latents)
        # other programs round otherwise
        np.testing.assert_allclose(found, together, rtol=0, atol=1e-5)


def test_no_noise_has_no_likelihood(model):
    network = types.SimpleNamespace(apply=lambda _, latents, *rest: latents)
    small = types.SimpleNamespace(denoiser=network, latent_shape=(2, 2, 4))
    schedule = ddim.schedule(model.scheduler, NUM_STEPS, 0.0)
    policy = sampler.Policy(small, schedule, GUIDANCE)
    keys, text = jax.random.split(jax.random.key(0), 3), np.zeros((3, 7, 16))
    drawn = jax.jit(functools.partial(sampler.denoise, policy))({}, keys, text, text[0])
    assert np.isfinite(drawn.latents).all() and drawn.log_probs.shape == (3, NUM_STEPS)
    np.testing.assert_array_equal(drawn.log_probs, 0.0)
