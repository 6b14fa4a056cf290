"""The optimizer divided among the devices: less memory, the same training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_model
from jax.sharding import Mesh
from tiny_run import bytes_on_one

from ddpo_fair import parallel
from ddpo_fair.training import assembly, checkpoint, metrics
from ddpo_fair.training import epoch as epochs

pytestmark = pytest.mark.long

D = 8
EXACT = 1e-6  # float32, summed in another order


@pytest.fixture(scope="module")
def config(tiny, tmp_path_factory):
    """Of training all weights."""
    changes = {"train.lora.rank": 0, "train.updates_per_epoch": 1}
    return tiny_model.config(*tiny, tmp_path_factory.mktemp("sharded"), **changes)


def trained(config, sharded, samples=None):
    """The state after two epochs' updates, their metrics, and the samples."""
    config.train.shard_optimizer = sharded
    run, state = assembly.build(config)
    samples = samples or epochs.sample(run, state.params, 0)
    advantages = np.random.default_rng(0).standard_normal(run.num_images, np.float32)
    lines = []
    for epoch in range(2):
        state, measured = epochs.update(run, state, samples, advantages, epoch)
        lines.append(metrics.of_updates(measured))
    return state, lines, samples


@pytest.fixture(scope="module")
def whole(config):
    return trained(config, False)


@pytest.fixture(scope="module")
def sharded(config, whole):
    return trained(config, True, whole[2])


def expected_bytes(tree, num_devices):
    """Bytes on one of the devices: a share of what has an axis that they divide."""
    return sum(
        leaf.nbytes
        // (num_devices if any(n % num_devices == 0 for n in leaf.shape) else 1)
        for leaf in jax.tree.leaves(tree)
    )


def test_it_trains_the_same_with_less_on_each_device(whole, sharded):
    for found, expected in zip(sharded[1], whole[1], strict=True):
        assert found == pytest.approx(expected, rel=1e-5, abs=EXACT)
        assert found["skipped_updates"] == 0 and found["grad_norm"] > 0
    for name in ("params", "optimizer"):
        pairs = zip(
            *(jax.tree.leaves(getattr(one[0], name)) for one in (sharded, whole)),
            strict=True,
        )
        for found, expected in pairs:
            np.testing.assert_allclose(found, expected, rtol=EXACT, atol=EXACT)
    before, after = (bytes_on_one(one[0].optimizer) for one in (whole, sharded))
    assert before == expected_bytes(whole[0].optimizer, 1)
    assert after == expected_bytes(sharded[0].optimizer, D)
    assert after < before / 4  # some axes of the tiny model do not divide by 8
    for leaf in jax.tree.leaves(sharded[0].params):
        assert leaf.is_fully_replicated  # as pmap wants them


@pytest.fixture(scope="module")
def checkpoints(sharded, tmp_path_factory):
    """With one of the divided state."""
    checkpoints = checkpoint.Checkpoints(tmp_path_factory.mktemp("checkpoints"), 2)
    checkpoints.save(1, sharded[0], {})
    checkpoints.wait()
    yield checkpoints
    checkpoints.close()


@pytest.mark.parametrize("count", [1, D])
def test_a_checkpoint_serves_any_number_of_devices(
    sharded, checkpoints, count, monkeypatch
):
    state = sharded[0]
    mesh = Mesh(np.asarray(jax.devices()[:count]), (parallel.AXIS,))
    monkeypatch.setattr(parallel, "mesh", lambda: mesh)
    monkeypatch.setattr(parallel, "num_devices", lambda: count)
    empty = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state)
    template = parallel.replicate(empty).replace(
        optimizer=parallel.divide(empty.optimizer)
    )
    found = checkpoints.restore(template).state
    assert bytes_on_one(found.optimizer) == expected_bytes(state.optimizer, count)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
        assert len(one.sharding.device_set) == count
        np.testing.assert_array_equal(one, other)


def test_the_first_axis_that_divides_is_divided():
    shapes = {
        "first": jax.ShapeDtypeStruct((16, 3), jnp.float32),
        "last": jax.ShapeDtypeStruct((3, 3, 4, 24), jnp.float32),
        "none": jax.ShapeDtypeStruct((5, 4), jnp.float32),
        "scalar": jax.ShapeDtypeStruct((), jnp.int32),
    }
    divided = parallel.divide(shapes)
    found = {name: tuple(one.sharding.spec) for name, one in divided.items()}
    assert found == {
        "first": ("data",),
        "last": (None, None, None, "data"),
        "none": (),
        "scalar": (),
    }
