import functools

import jax
import jax.numpy as jnp
import numpy as np
import parity
import pytest

from ddpo_fair import errors
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.models import convolution, lora

TEMPLATE = parity.template({
    "blocks.0/conv1/kernel": (3, 3, 6, 5), "blocks.0/conv1/bias": (5,),
    "blocks.0/norm/scale": (5,), "blocks.0/attn1/to_q/kernel": (6, 7),
    "blocks.0/attn1/to_out.0/kernel": (7, 6), "not_to_q/kernel": (6, 7),
})  # fmt: skip
IN_BLOCK = ["blocks.0.attn1.to_out.0", "blocks.0.attn1.to_q", "blocks.0.conv1"]
EVERY_PATH = [*IN_BLOCK, "not_to_q"]


@pytest.fixture
def params():
    return parity.draw(TEMPLATE)


def init(params, targets, rank=2):
    return lora.init(jax.random.key(0), params, rank, targets)


def trained(params, targets=lora.EVERYWHERE):
    """Adapters whose `up` is no longer zero."""
    adapters = init(params, targets)
    for i, path in enumerate(sorted(adapters)):
        up = adapters[path]["up"]
        adapters[path]["up"] = jax.random.normal(jax.random.key(i), up.shape)
    return adapters


def test_adapters_change_their_own_layer_alone_as_factors_do(params):
    merged = lora.merge(params, init(params, lora.EVERYWHERE))
    jax.tree.map(np.testing.assert_array_equal, merged, params)
    alone, together = init(params, ("conv1",)), init(params, lora.EVERYWHERE)
    path = "blocks.0.conv1"
    np.testing.assert_array_equal(alone[path]["down"], together[path]["down"])
    assert not np.allclose(
        together["blocks.0.attn1.to_q"]["down"], together["not_to_q"]["down"]
    )
    merged = lora.merge(params, trained(params, ("conv1",)))
    found, given = parity.flatten(merged), parity.flatten(params)
    changed = {name for name in given if not np.array_equal(found[name], given[name])}
    assert changed == {"blocks.0.conv1.kernel"}
    assert found["not_to_q.kernel"] is given["not_to_q.kernel"]  # not copied
    adapters = trained(params)
    merged = lora.merge(params, adapters, scale=0.5)
    x = jax.random.normal(jax.random.key(9), (4, 6))
    adapter = adapters["blocks.0.attn1.to_q"]
    kernel = params["blocks.0"]["attn1"]["to_q"]["kernel"]
    expected = x @ kernel + 0.5 * ((x @ adapter["down"]) @ adapter["up"])
    found = x @ merged["blocks.0"]["attn1"]["to_q"]["kernel"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # sums reordered


def test_merged_convolution_equals_factorised(params):
    adapters = trained(params)
    merged = lora.merge(params, adapters, scale=0.5)
    x = jax.random.normal(jax.random.key(9), (2, 8, 8, 6))
    adapter = adapters["blocks.0.conv1"]
    assert adapter["down"].shape == (3, 3, 6, 2)
    assert adapter["up"].shape == (1, 1, 2, 5)
    before, after = (
        convolution.convolve(
            x, jnp.asarray(of["blocks.0"]["conv1"]["kernel"]), 2, (0, 1)
        )
        for of in (params, merged)
    )
    low = convolution.convolve(x, adapter["down"], 2, (0, 1))
    expected = before + 0.5 * convolution.convolve(low, adapter["up"], 1, (0, 0))
    np.testing.assert_allclose(after, expected, rtol=1e-5, atol=1e-5)  # sums reordered


def test_other_networks_and_targets_are_refused(params):
    assert list(init(params, lora.EVERYWHERE)) == EVERY_PATH
    assert list(init(params, ("to_q", "conv1"))) == [EVERY_PATH[1], EVERY_PATH[2]]
    assert list(init(params, ("attn1.to_out.0",))) == [EVERY_PATH[0]]
    assert list(init(params, ("blocks.0",))) == IN_BLOCK
    known = "blocks, conv1, not_to_q, to_out, to_q"
    with pytest.raises(errors.UserError, match=f"'to_x'.*{known}"):
        init(params, ("to_q", "to_x"))
    layers = [x.shape for x in jax.tree.leaves(params) if x.ndim > 1]
    most = max(min(shape[-2:]) for shape in layers)
    init(params, lora.EVERYWHERE, rank=most)
    with pytest.raises(errors.UserError, match=f"={most + 1} must be at most {most},"):
        init(params, lora.EVERYWHERE, rank=most + 1)
    with pytest.raises(errors.UserError, match="rank=0"):
        init(params, lora.EVERYWHERE, rank=0)
    adapters = init(params, ("conv1",))
    with pytest.raises(errors.UserError, match=r"lacks: blocks\.0\.conv1"):
        lora.merge({"not_to_q": params["not_to_q"]}, adapters)


def test_frozen_kernels_in_16_bits_change_no_output(tiny):
    model = stable_diffusion.load(tiny[0], jnp.bfloat16)
    given = model.params["unet"]
    frozen = lora.frozen(given, ["conv_in"], jnp.bfloat16)
    kinds = {path: kernel.dtype for path, kernel in lora.kernels_of(frozen).items()}
    assert kinds.pop("conv_in") == jnp.float32
    assert set(kinds.values()) == {jnp.dtype(jnp.bfloat16)}
    normal = functools.partial(jax.random.normal, jax.random.key(0))
    latents, text = normal((1, *model.latent_shape)), normal((1, *model.text_shape))
    of_text = model.params["text_encoder"], jnp.arange(5)[None]
    for network, params, *inputs in (
        (model.denoiser, given, latents, jnp.array([3]), text),
        (model.networks["text_encoder"], *of_text),
    ):
        halved = frozen if params is given else lora.frozen(params, (), jnp.bfloat16)
        apply = jax.jit(network.apply)
        outputs = [apply({"params": x}, *inputs) for x in (params, halved)]
        jax.tree.map(np.testing.assert_array_equal, *outputs)
