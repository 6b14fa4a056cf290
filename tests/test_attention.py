"""Which program computes an attention: flash on GPUs where it gains, else XLA."""

import jax
import jax.numpy as jnp
import pytest

from ddpo_fair import parallel
from ddpo_fair.models import layers

HALF, FULL = jnp.bfloat16, jnp.float32


@pytest.fixture
def chosen(monkeypatch):
    """Implementations that attentions ask for, on a GPU that has them all."""
    asked = []

    def attention(query, key, value, bias, *, scale, is_causal, implementation):
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
