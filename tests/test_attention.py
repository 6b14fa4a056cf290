"""Which program computes an attention: flash on GPUs where it gains, else XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ddpo_fair import parallel
from ddpo_fair.models import layers

HALF, FULL = jnp.bfloat16, jnp.float32


@pytest.fixture
def chosen(monkeypatch):
    """Implementations that attentions ask for, on a GPU that has them all."""
    asked = []

    def attention(query, key, value, *_, implementation=None, **__):
        asked.append(implementation)
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    monkeypatch.setattr(parallel, "has_flash_attention", lambda: True)
    return asked


@pytest.mark.parametrize(
    ("length", "length_of_key", "size", "heads", "dtype", "expected"),
    [
        (4096, 4096, 320, 8, HALF, "cudnn"),  # Stable Diffusion, 64 x 64
        (1024, 1024, 640, 8, HALF, "cudnn"),  # 32 x 32
        (256, 256, 1280, 8, HALF, None),  # heads of 160
        (4096, 77, 320, 8, HALF, None),  # to the text
        (4096, 4096, 512, 1, HALF, None),  # the autoencoder's
        (4096, 4096, 320, 8, FULL, None),
    ],
)
def test_flash_where_it_gains(
    chosen, length, length_of_key, size, heads, dtype, expected
):
    query = jnp.zeros((1, length, size), dtype)
    key = jnp.zeros((1, length_of_key, size), dtype)
    layers.attend(query, key, key, heads)
    assert chosen == [expected]


@pytest.mark.parametrize(
    ("capability", "expected"), [("9.0", True), ("7.5", False), ("gfx942", False)]
)
def test_generation_of_the_gpu_decides(monkeypatch, capability, expected):
    class Device:
        platform = "gpu"
        compute_capability = capability

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert parallel.has_flash_attention() == expected


def written_out(query, key, value):
    """softmax(query key' / sqrt(size)) value of each image and head, in float32."""
    logits = jnp.einsum("nlhd,nshd->nhls", query, key) / query.shape[-1] ** 0.5
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return jnp.einsum("nhls,nshd->nlhd", weights, value)


def test_logits_of_one_head_after_the_other_give_the_same_with_less(monkeypatch):
    N, L, heads, size = 1, layers.LONG, 4, 2
    given = [
        jax.random.normal(jax.random.key(i), (N, L, heads * size)) for i in range(4)
    ]

    def by_attend(*three):
        return layers.attend(*three, heads)

    def by_formula(*three):
        three = [x.reshape(N, L, heads, size) for x in three]
        return written_out(*three).reshape(N, L, heads * size)

    def both(function, query, key, value, cotangent):
        output, vjp = jax.vjp(function, query, key, value)
        return output, *vjp(cotangent)

    temporary = []
    for at_once in (heads, 1):
        monkeypatch.setattr(layers, "LOGITS", at_once * L**2)
        program = jax.jit(lambda *x: both(by_attend, *x))
        compiled = program.lower(*given).compile()
        temporary.append(compiled.memory_analysis().temp_size_in_bytes)
    # The weights and their cotangent at least, of every head that is at hand.
    square = 4 * L**2
    assert temporary[1] < 5 * square < 2 * heads * square <= temporary[0]
    written = both(by_formula, *given)
    for found, expected in zip(compiled(*given), written, strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)  # sums of L


def test_an_odd_number_of_states_has_flash_attention_too(monkeypatch):
    original, asked = jax.nn.dot_product_attention, []

    def attention(*given, implementation, **lengths):  # XLA's in place of cuDNN's
        asked.append((implementation, given[0].shape[1]))
        return original(*given, **lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    monkeypatch.setattr(parallel, "has_flash_attention", lambda: True)
    N, L, heads, size = 2, layers.LONG + 1, 1, 8
    shape = (N, L, heads * size)
    query, key, value, cotangent = (
        jax.random.uniform(jax.random.key(i), shape).astype(HALF) for i in range(4)
    )
    key = -4 * key  # a zero that is not masked would outweigh all others
    output, vjp = jax.vjp(lambda *x: layers.attend(*x, heads), query, key, value)
    assert asked == [("cudnn", L + 1)]

    def by_formula(*three):
        three = [x.reshape(N, L, heads, size) for x in three]
        return written_out(*three).reshape(shape)

    with jax.numpy_dtype_promotion("standard"):  # XLA's, see `layers.attend`
        found = output, *vjp(cotangent)
    exact = [x.astype(FULL) for x in (query, key, value)]
    written, vjp_of = jax.vjp(by_formula, *exact)
    expected = written, *vjp_of(cotangent.astype(FULL))
    for one, other in zip(found, expected, strict=True):
        error = np.abs(one.astype(FULL) - other).max()
        assert error < 0.02 * np.abs(other).max()  # 8 bits, rounded more than once
