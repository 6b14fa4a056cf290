"""Old log-probs by the update itself: the same numbers, at the right places."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny_model
import tiny_run

from ddpo_fair import config as configuration
from ddpo_fair import parallel, rng
from ddpo_fair.diffusion import ddim, sampler, stable_diffusion
from ddpo_fair.learning import learner, policy_update

D, N, T, GUIDANCE = 8, 2, 3, 3.0  # devices, images on each, steps


def learner_of(model):
    """A learner that computes as the model does."""
    train = configuration.defaults().train
    train.update(updates_per_epoch=1, skip_last_steps=0, recompute_log_probs=True)
    train.microbatch = 4  # not the sampler's batch: other shapes round otherwise
    train.lora.rank = 0
    policy = sampler.Policy(model, ddim.schedule(model.scheduler, T, 1.0), GUIDANCE)
    return learner.Learner(policy, train, T - 1, optax.sgd(0.0))


@pytest.fixture(scope="module")
def sampled(tiny):
    """A learner that computes in float32, its weights, trajectory, and empty text."""
    model = stable_diffusion.load(tiny[0])
    null, text = stable_diffusion.encode_prompts(model, ["", tiny_model.PROMPTS[0]])
    keys = jax.vmap(lambda index: rng.key(3, index))(jnp.arange(D * N))
    params, null = parallel.replicate((model.params["unet"], null))
    of = learner_of(model)
    trajectory = sampler.sample(
        of.policy,
        params,
        parallel.split(keys),
        parallel.split(np.repeat(text[None], D * N, axis=0)),
        null,
    )
    return of, params, trajectory, null


def data_of(trajectory, null):
    """Data of an epoch whose images have no advantage."""
    zeros = parallel.split(np.zeros(D * N, np.float32))
    return policy_update.EpochData({}, trajectory, zeros, null)


def selected(of):
    """Images [D, N] and steps [D, N, T - 1] of the only update."""
    images, steps = learner.selection(rng.key(0), of, D, N)
    return np.asarray(images[0]), np.asarray(steps[0])


def state_of(params):
    state = learner.TrainState(params, optax.sgd(0.0).init(params), jnp.int32(0))
    return parallel.replicate(jax.tree.map(np.array, state))


@pytest.mark.long
def test_chosen_log_probs_come_again_and_others_stay(sampled):
    of, params, trajectory, null = sampled
    marked = trajectory.replace(log_probs=jnp.full_like(trajectory.log_probs, 7.0))
    images, steps = selected(of)
    state, data = policy_update.with_old_policy(
        of, state_of(params), data_of(marked, null), [(images, steps)]
    )
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert int(state.updates) == 0
    found, means = map(np.asarray, (data.trajectory.log_probs, data.trajectory.means))
    expected = np.full((D, N, T), 7.0, np.float32)
    latents = np.asarray(trajectory.latents)
    keys = trajectory.keys
    for device in range(D):
        for image, own in zip(images[device], steps[device], strict=True):
            kept = np.asarray(trajectory.log_probs)[device, image, own]
            expected[device, image, own] = kept
            for step in own:
                noise = sampler.step_noise(keys[device, image], step, latents.shape[3:])
                std = np.asarray(of.policy.schedule.std)[step]
                mean = latents[device, image, step + 1] - std * np.asarray(noise)
                np.testing.assert_allclose(
                    means[device, image, step], mean, rtol=0, atol=1e-5
                )
    assert np.sum(found == 7.0) == D * N  # a step of every image is left out
    # float32 in another program, divided by std
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.exact
def test_ratio_and_kl_are_those_of_the_same_policy_in_bfloat16(tiny, sampled):
    """On one device; on eight a whole run shows it below."""
    of = learner_of(stable_diffusion.load(tiny[0], jnp.bfloat16))
    # Two programs round alike on a CPU, unlike on a GPU: here the sampler's own rounds
    # otherwise because it computes in float32.
    first = jax.devices()[0]
    params, trajectory, null = jax.device_put(
        (sampled[1], jax.tree.map(lambda x: x[:1], sampled[2]), sampled[3]), first
    )
    images, steps = (one[:1] for one in selected(of))
    update = policy_update.program(of)

    def measure(data):
        state = learner.TrainState(params, optax.sgd(0.0).init(params), jnp.int32(0))
        state = jax.tree.map(jnp.copy, state)
        # JAX's own attention mixes dtypes in its gradient.
        with jax.numpy_dtype_promotion("standard"):
            if data.trajectory.means is None:
                state, again = policy_update.with_old_policy(
                    of, state, data, [(images, steps)]
                )
                blank = policy_update.with_means(data.trajectory).means
                assert not jnp.any(blank) and jnp.any(again.trajectory.means)
            else:
                again = data
            state, measured, _ = update(state, again, images, steps, True)
        assert int(state.updates) == 1
        return float(measured["ratio_deviation"]), float(measured["kl"])

    advantages = jnp.zeros(trajectory.log_probs.shape[:2])
    data = policy_update.EpochData({}, trajectory, advantages, null)
    noise = jax.vmap(jax.vmap(sampler.step_noise, (None, 0, None)), (0, None, None))
    std = np.asarray(of.policy.schedule.std)[None, None, :, None, None, None]
    shape = trajectory.latents.shape[3:]
    moved = jax.vmap(noise, (0, None, None))(trajectory.keys, jnp.arange(T), shape)
    of_sampler = trajectory.replace(means=trajectory.latents[:, :, 1:] - moved * std)
    deviation, kl = measure(data.replace(trajectory=of_sampler))
    print(f"bfloat16, by the sampler: |ratio - 1| {deviation:.1e}, KL {kl:.1e} nats")
    assert deviation > 0 and kl > 1e-3
    assert measure(data) == (0, 0)


@pytest.mark.exact
def test_bfloat16_trains(tiny, tmp_path):
    config = tiny_model.config(*tiny, tmp_path)
    config.dtype, config.epochs = "bfloat16", 1
    config.eval.images, config.log.images = 0, 1
    config.train.recompute_log_probs = True
    config.reward.name, config.advantage.name = "shift", "batch"  # whatever is drawn
    config.attributes.gender.target_class = "female"
    with jax.numpy_dtype_promotion("standard"):  # as above
        (line,) = tiny_run.lines_of(config)
    assert line["ratio_deviation"] == 0
    assert line["kl_last"] > 0 and line["skipped_updates"] == 0
    assert line["kl"] == line["kl_last"] / 2  # of two updates the first is on policy
