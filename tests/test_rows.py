"""Rows: what is done to one is what is done to each of its layers."""

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest
import safetensors.numpy

from ddpo_fair.errors import UserError
from ddpo_fair.models import lora, lora_files, rows, weights

ROW = "blocks.3-6.to_q"
LAYERS = [f"blocks.{i}.to_q" for i in (3, 4, 5, 6)]


@pytest.fixture(scope="module")
def params():
    """A row of four dense layers [5, 7] and another one, random."""
    shapes = {"blocks.3-6/to_q/kernel": (4, 5, 7), "conv_in/kernel": (3, 3, 2, 4)}
    return parity.draw(parity.template(shapes))


@pytest.fixture(scope="module")
def apart(params):
    """The same as layers that follow each other."""
    kernels = params["blocks.3-6"]["to_q"]["kernel"]
    each = {f"blocks.{i}": {"to_q": {"kernel": kernels[i - 3]}} for i in (3, 4, 5, 6)}
    return {**each, "conv_in": params["conv_in"]}


def test_names():
    assert rows.members("mid.blocks.8-11") == [
        f"mid.blocks.{i}" for i in (8, 9, 10, 11)
    ]
    assert rows.members(ROW) == LAYERS
    for other in ("blocks.3.to_q", "conv-1-2", "to_out.0"):
        assert rows.members(other) == [other]
    shape = jax.ShapeDtypeStruct((2, 5), jnp.bfloat16)
    found = rows.apart({"a.0-1.x": shape, "b.2": shape})
    assert {x: y.shape for x, y in found.items()} == {
        "a.0.x": (5,), "a.1.x": (5,), "b.2": (2, 5),
    }  # fmt: skip


def test_files_hold_each_layer_by_its_own_name(tmp_path, params):
    weights.save(tmp_path, params, {})
    (file,) = tmp_path.glob("*.safetensors")
    tensors = safetensors.numpy.load_file(file)
    kernels = params["blocks.3-6"]["to_q"]["kernel"]
    for name, kernel in zip(LAYERS, kernels, strict=True):
        np.testing.assert_array_equal(tensors.pop(f"{name}.weight"), kernel.T)
    assert tensors.keys() == {"conv_in.weight"}
    jax.tree.map(np.testing.assert_array_equal, weights.load(tmp_path, params), params)
    tensors[f"{LAYERS[1]}.weight"] = np.zeros((7, 6), np.float32)
    safetensors.numpy.save_file(tensors, file)
    said = (
        r"blocks\.3\.to_q\.weight \[7, 5\] is missing;.*shape \[7, 6\], exp.*\[7, 5\]"
    )
    with pytest.raises(UserError, match=said):
        weights.load(tmp_path, params)


def test_adapters_are_those_of_each_layer(params, apart):
    key = jax.random.key(1)
    found, expected = (lora.init(key, of, 2, lora.EVERYWHERE) for of in (params, apart))
    assert found.keys() == {ROW, "conv_in"}
    jax.tree.map(np.testing.assert_array_equal, rows.apart(found), expected)
    random = np.random.default_rng(0)
    found = jax.tree.map(lambda x: random.standard_normal(x.shape, np.float32), found)
    merged, each = (
        lora.kernels_of(lora.merge(of, adapters, 0.5))
        for of, adapters in ((params, found), (apart, rows.apart(found)))
    )
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-6),
        rows.apart(merged), each,
    )  # fmt: skip
    assert lora.init(key, params, 2, ("blocks",)).keys() == {ROW}
    every = [f"blocks.{i}" for i in (6, 5, 4, 3)]
    assert lora.init(key, params, 2, every).keys() == {ROW}
    for target in ("blocks.4", "4.to_q"):
        said = rf"'{target}'\) names some of {ROW}, .* but not blocks\.3\.to_q"
        with pytest.raises(UserError, match=said):
            lora.init(key, params, 2, ("conv_in", target))


def test_a_file_may_have_some_layers_of_a_row_and_several_ranks(tmp_path, params):
    random = np.random.default_rng(0)
    expected = params["blocks.3-6"]["to_q"]["kernel"].copy()
    pairs = {}
    for layer, rank in ((4, 3), (6, 1)):
        down = random.standard_normal((rank, 5), np.float32)
        up = random.standard_normal((7, rank), np.float32)
        pairs[f"unet.blocks.{layer}.to_q"] = down, up
        expected[layer - 3] += (up @ down).T
    file = tmp_path / lora_files.DIFFUSERS
    halves = (".lora_A.weight", ".lora_B.weight")
    named = {x + half: y[i] for x, y in pairs.items() for i, half in enumerate(halves)}
    safetensors.numpy.save_file(named, file)
    adapters = lora_files.load(file, {"unet": params})
    assert adapters.keys() == {f"unet.{ROW}"}
    merged = lora.kernels_of(lora.merge({"unet": params}, adapters))[f"unet.{ROW}"]
    np.testing.assert_allclose(merged, expected, rtol=1e-6, atol=1e-6)
    row = {ROW: adapters[f"unet.{ROW}"]}
    written = lora_files.tensors(row, 1.0, lora_files.DIFFUSERS)
    assert len(written) == 2 * len(LAYERS)
    for name, (down, up) in pairs.items():
        found = [written[name + half] for half in halves]
        np.testing.assert_array_equal(found[0][: len(down)], down)
        np.testing.assert_array_equal(found[1][:, : len(down)], up)
