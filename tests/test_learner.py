"""The update: the right images and steps, the right gradient, on any devices."""

import dataclasses
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model

from ddpo_fair import config as configuration
from ddpo_fair import parallel, rng
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner, policy_update
from ddpo_fair.models import lora

D, N, T, GUIDANCE = 8, 2, 4, 3.0  # devices, images on each, steps
SITES = ("to_q", "conv_out")
RATE = 100.0  # of plain gradient descent, so that parameters show the gradient


def make_learner(model, optimizer=None, num_steps=T, **changes):
    """A learner of the model that takes `num_steps` of T steps in an update."""
    train = configuration.defaults().train
    train.update(clip_range=1e-3, updates_per_epoch=1, skip_last_steps=0)
    train.update(microbatch=N * T, lora={"rank": 2, "scale": 0.5})
    train.update(changes)
    schedule = ddim.schedule(model.scheduler, T, 1.0)
    policy = sampler.Policy(model, schedule, GUIDANCE)
    return learner.Learner(policy, train, num_steps, optimizer)


@pytest.fixture(scope="module")
def model(tiny):
    return stable_diffusion.load(tiny[0])


@pytest.fixture(scope="module")
def sgd(model):
    """A learner by plain gradient descent."""
    return make_learner(model, optax.sgd(RATE))


@pytest.fixture(scope="module")
def texts(model):
    return stable_diffusion.encode_prompts(model, ["", tiny_model.PROMPTS[0]])


@pytest.fixture(scope="module")
def adapters(model):
    """Adapters that have learnt something, so that both factors have a gradient."""
    tree = lora.init(jax.random.key(0), model.params["unet"], 2, SITES)
    return jax.tree.map(lambda x: x + 0.02, tree)


@pytest.fixture(scope="module")
def trajectory(model, sgd, texts, adapters):
    """Sampled with the adapters merged, as a run does it."""
    params = lora.merge(model.params["unet"], adapters, 0.5)
    keys = jax.vmap(lambda index: rng.key(3, index))(jnp.arange(D * N))
    return sampler.sample(
        sgd.policy,
        parallel.replicate(params),
        parallel.split(keys),
        parallel.split(np.repeat(texts[1:], D * N, axis=0)),
        parallel.replicate(texts[0]),
    )


@pytest.fixture(scope="module")
def given(model, texts, adapters, trajectory):
    """What an update of plain gradient descent is given."""
    advantages = np.random.default_rng(0).standard_normal(D * N).astype(np.float32)
    return model, texts, adapters, trajectory, advantages


def arguments_of(of, model, texts, adapters, trajectory, advantages, kl_weights=None):
    """The arguments of such an update."""
    state = learner.TrainState(
        jax.tree.map(np.array, adapters), of.optimizer.init(adapters), jnp.int32(0)
    )
    images, steps = learner.selection(rng.key(0), of, D, N)
    data = policy_update.EpochData(
        parallel.replicate(model.params["unet"]),
        trajectory,
        parallel.split(advantages),
        parallel.replicate(texts[0]),
        None if kl_weights is None else parallel.split(kl_weights),
    )
    return parallel.replicate(state), data, np.asarray(images[0]), np.asarray(steps[0])


def update(of, given):
    """New adapters and metrics after one update of plain gradient descent."""
    new, metrics, _ = policy_update.program(of)(*arguments_of(of, *given))
    assert int(new.updates) == 1
    return jax.device_get((new.params, metrics))


@pytest.fixture(scope="module")
def updated(sgd, given):
    return update(sgd, given)


def test_ratio_is_one_on_policy(updated):
    _, metrics = updated
    assert metrics["ratio_deviation"] <= 1e-5
    assert metrics["kl"] <= 1e-4  # nats; the same weights, rounded otherwise
    assert metrics["clip_fraction"] == 0


@pytest.fixture(scope="module")
def written_out(given):
    """Means of all steps from their latents, and what a change of them changes."""
    model, texts, _, trajectory, _ = given
    schedule = ddim.schedule(model.scheduler, T, 1.0)

    def mean(tree, x, now):
        params = lora.merge(model.params["unet"], tree, 0.5)
        variables, times = {"params": params}, now.timesteps[None]
        both = model.denoiser.apply(variables, jnp.stack([x, x]), times, texts)
        output = both[0] + GUIDANCE * (both[1] - both[0])
        return now.latents_scale * x + now.output_scale * output

    steps = np.tile(np.arange(T), D * N)
    latents = parallel.gather(trajectory.latents)[:, :-1].reshape(-1, 8, 8, 4)

    @jax.jit
    def of(tree, cotangents):
        """Means [N T, h, w, C], and the mean over them of their pull-backs."""
        every = jax.vmap(mean, (None, 0, 0))
        means, pullback = jax.vjp(lambda t: every(t, latents, schedule[steps]), tree)
        return means, pullback(cotangents / len(steps))[0]

    return of, schedule.std[steps].reshape(-1, 1, 1, 1)


def check_gradient(gradient, given, found):
    """That an update moved by this gradient, and said how large it is."""
    adapters, (new, metrics) = given[2], found
    expected = np.concatenate([np.ravel(x) for x in jax.tree.leaves(gradient)])
    moved = jax.tree.map(lambda new, old: (old - new) / RATE, new, adapters)
    found = np.concatenate([np.ravel(x) for x in jax.tree.leaves(moved)])
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert error < 1e-3  # float32, summed in another order
    np.testing.assert_allclose(
        metrics["grad_norm"], np.linalg.norm(expected), rtol=1e-3
    )


def test_gradient_is_that_of_the_written_out_loss(given, updated, written_out):
    *_, adapters, trajectory, advantages = given
    of, std = written_out
    latents = parallel.gather(trajectory.latents)
    means, _ = of(adapters, np.zeros_like(latents[:, 1:]).reshape(-1, 8, 8, 4))
    residual = (latents[:, 1:].reshape(means.shape) - means) / std
    constant = np.log(std) + 0.5 * np.log(2 * np.pi)
    log_prob = (-0.5 * residual**2 - constant).mean((1, 2, 3))
    ratio = np.exp(log_prob - parallel.gather(trajectory.log_probs).ravel())
    # Of -A * ratio by the mean, of which the log-prob is a mean over 256 dimensions;
    # on policy nothing is clipped.
    weights = -(np.repeat(advantages, T) * ratio)[:, None, None, None]
    _, gradient = of(adapters, weights * residual / std / 256)
    check_gradient(gradient, given, updated)


@pytest.mark.long
def test_the_penalty_is_the_written_out_kl_to_the_base_policy(
    model, given, written_out
):
    # In two microbatches, which change nothing.
    of = make_learner(model, optax.sgd(RATE), microbatch=N * T // 2)
    adapters = given[2]
    of_images = np.linspace(0.2, 0.8, D * N, dtype=np.float32)
    alone = (*given[:4], np.zeros(D * N, np.float32), of_images)  # no reward pushes
    found = update(of, alone)
    untrained = {x: {**a, "up": 0 * a["up"]} for x, a in adapters.items()}
    mean, std = written_out
    nothing = np.zeros((D * N * T, 8, 8, 4), np.float32)
    means, base = (mean(tree, nothing)[0] for tree in (adapters, untrained))
    # ||mean - mean_base||^2 / (2 std^2), per dimension, and its derivative.
    weight = np.repeat(of_images, T)[:, None, None, None]
    nats = (means - base) ** 2 / (2 * std**2)
    penalty = float(np.mean(weight * nats))
    _, gradient = mean(adapters, weight * (means - base) / std**2 / 256)
    check_gradient(gradient, given, found)
    np.testing.assert_allclose(found[1]["loss"], penalty, rtol=1e-4)
    total = 256 * float(np.mean(nats))  # of the 8 x 8 x 4 dimensions
    np.testing.assert_allclose(found[1]["base_kl"], total, rtol=1e-4)

    _, metrics = update(of, (*given[:2], untrained, *alone[3:]))
    assert metrics["base_kl"] <= 1e-6  # the same weights, rounded otherwise


def test_the_gradient_is_the_policy_gradient(sgd):
    """It estimates the gradient of the expected reward, which here is known.

    The reward, the mean of the images' first channel, can be differentiated through
    the sampler with its noise held fixed; DDPO must find the same from scores alone.
    """
    count, shape = 4096, (2, 2, 4)
    first, last, text = np.random.default_rng(0).standard_normal((3, 4, 4), np.float32)
    null, text = 0 * text, np.repeat(text[None], count, axis=0)

    def apply(bias, latents, timesteps, text):
        moved = text.mean((1, 2)) + timesteps / 1000
        return jnp.tanh(latents @ first + moved[:, None, None, None] + bias) @ last

    small = types.SimpleNamespace(
        denoiser=types.SimpleNamespace(
            apply=lambda x, *rest: apply(x["params"], *rest)
        ),
        latent_shape=shape,
    )
    policy = dataclasses.replace(sgd.policy, model=small)
    of = dataclasses.replace(sgd, policy=policy)

    def sample(bias, keys):
        drawn = sampler.denoise(policy, bias, keys, text, null)
        rewards = drawn.latents[:, -1, ..., 0].mean((1, 2))
        return rewards.mean(), (rewards, drawn.latents, drawn.log_probs)

    @jax.jit
    def both(keys):
        bias = jnp.zeros((1, 1, 1, 4))
        true, drawn = jax.grad(sample, has_aux=True)(bias, keys)
        rewards, latents, log_probs = drawn

        batch = {
            "latents": latents[:, :-1].reshape(-1, *shape),
            "next_latents": latents[:, 1:].reshape(-1, *shape),
            "log_prob": log_probs.reshape(-1),
            "keys": jnp.repeat(keys, T),
            "text": jnp.repeat(text, T, axis=0),
            "advantage": jnp.repeat(rewards - rewards.mean(), T),
            "step": jnp.tile(jnp.arange(T), count),
        }

        def loss(b):
            return policy_update.surrogate_loss(of, b, null, batch)[0]

        # the ratio is of mean log-probs
        return true, -T * math.prod(shape) * jax.grad(loss)(bias)

    batches = [
        both(jax.vmap(lambda index: rng.key(1, index))(jnp.arange(count) + i * count))
        for i in range(8)
    ]
    true = np.mean([np.asarray(one[0]) for one in batches], axis=0)
    found = np.mean([np.asarray(one[1]) for one in batches], axis=0)
    noise = np.std([np.asarray(one[1]) for one in batches], axis=0) / np.sqrt(8)
    assert abs(true.flat[0]) > 4 * noise.flat[0]  # else the test would say nothing
    assert np.all(np.abs(found - true) < 4 * noise)


def test_devices_add_their_gradients_in_float32(tiny, given):
    of = make_learner(stable_diffusion.load(tiny[0], jnp.bfloat16), optax.sgd(RATE))
    _, _, adapters, *_ = given
    with jax.numpy_dtype_promotion("standard"):  # of JAX's attention, going back
        lowered = policy_update.program(of).lower(*arguments_of(of, *given))
    sums = re.findall(r"all_reduce.*?-> (tensor<.*?>)", lowered.as_text(), re.DOTALL)
    adapted = [
        "x".join(map(str, (*x["down"].shape[:-1], x["up"].shape[-1], "f32")))
        for x in adapters.values()
    ]
    assert sorted(sums) == sorted(f"tensor<{shape}>" for shape in adapted)


@pytest.mark.long
def test_memory_does_not_grow_with_the_steps(model, given):
    def temporaries(num_steps):
        of = make_learner(model, optax.sgd(RATE), num_steps, microbatch=N)
        compiled = policy_update.program(of).lower(*arguments_of(of, *given)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(T) < 1.05 * temporaries(1)


def test_the_steps_with_noise_are_trained(model):
    chosen = make_learner(model, num_steps=2)
    window = model.schedule(T, 1.0, "", (1, 3))
    policy = dataclasses.replace(chosen.policy, schedule=window)
    chosen = dataclasses.replace(chosen, policy=policy)
    _, steps = learner.selection(rng.key(5), chosen, 4, 6)
    assert set(np.sort(steps, -1).ravel().tolist()) == {1, 2}


def test_selections_hold_images_once_on_any_number_of_devices(model):
    chosen = make_learner(model, num_steps=3, updates_per_epoch=2)
    images, steps = learner.selection(rng.key(5), chosen, 4, 6)
    assert images.shape == (2, 4, 3) and steps.shape == (2, 4, 3, 3)
    for device in range(4):
        assert sorted(images[:, device].ravel().tolist()) == list(range(6))
    for row in np.asarray(steps).reshape(-1, 3):
        assert len(set(row.tolist())) == 3 and set(row.tolist()) <= set(range(4))
    chosen = make_learner(model, num_steps=2, updates_per_epoch=2)

    def by_update(num_devices, n):
        images, steps = learner.selection(rng.key(5), chosen, num_devices, n)
        images = np.asarray(images) + n * np.arange(num_devices)[None, :, None]
        return [
            {
                int(image): one.tolist()
                for image, one in zip(
                    images[u].ravel(), np.asarray(steps[u]).reshape(-1, 2), strict=True
                )
            }
            for u in range(2)
        ]

    assert by_update(1, 8) == by_update(2, 4) == by_update(4, 2)


def test_the_learning_rate_warms_up_and_falls():
    config = configuration.defaults()
    config.epochs, chosen = 2, config.train  # of two updates each
    chosen.update(learning_rate=0.1, final_learning_rate=0.5, warmup_updates=2)
    chosen.update(adam_beta1=0.0, adam_beta2=0.0, adam_epsilon=1e-12)
    chosen.update(weight_decay=0.0, max_grad_norm=1e9)
    transform = learner.make_optimizer(config)
    params = jnp.zeros(1)
    state = transform.init(params)
    moved = []
    for _ in range(4):
        # Adam without memory moves by the rate, whatever the gradient.
        with jax.numpy_dtype_promotion("standard"):
            change, state = transform.update(jnp.ones(1), state, params)
        moved.append(-float(change[0]))
    # rate 0.1; half of it at first; then a fall of half of it over 4 updates
    expected = [0.1 * 0.5 * 1.0, 0.1 * 0.875, 0.1 * 0.75, 0.1 * 0.625]
    np.testing.assert_allclose(moved, expected, rtol=1e-5)
