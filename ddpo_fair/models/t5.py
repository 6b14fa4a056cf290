"""Text encoder T5 of Stable Diffusion 3 (transformers' T5EncoderModel)."""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.models import layers, options

PLACE = "T5EncoderModel: config.json"
KIND = {"model_type": ("t5",), "feed_forward_proj": ("gated-gelu",)}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are transformers'."""

    vocab_size: int = 32128
    d_model: int = 512
    d_kv: int = 64  # of a head
    d_ff: int = 2048
    num_layers: int = 6
    num_heads: int = 8
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        rules = (options.among(json_dict, *rule) for rule in KIND.items())
        options.check(PLACE, json_dict, rules, "use a Stable Diffusion 3 model")
        config = options.read(cls, json_dict, PLACE)
        name, far = "relative_attention_num_buckets", "relative_attention_max_distance"
        exact = max(1, getattr(config, name) // 4)
        rules = (
            (name, getattr(config, name) >= 4, "4 or more"),
            (far, getattr(config, far) > exact, f"above {exact}, a quarter of {name}"),
        )
        options.check(PLACE, vars(config), rules)
        return config


def buckets(length: int, config: Config) -> np.ndarray:
    """The bias's number of each query's and key's distance, int [L, L].

    Half of the numbers are for keys ahead. Of each half the first half has a distance
    each, the others grow to the largest (Raffel et al. 2019, arXiv 1910.10683).
    """
    distance = np.arange(length)[None] - np.arange(length)[:, None]
    half = config.relative_attention_num_buckets // 2
    exact = half // 2
    size = np.abs(distance)
    span = math.log(config.relative_attention_max_distance / exact)
    far = np.log(np.maximum(size, 1) / exact) / span * (half - exact)
    far = np.minimum(exact + far.astype(np.int32), half - 1)
    return half * (distance > 0) + np.where(size < exact, size, far)


class Encoder(nn.Module):
    """Last hidden state, float32 [N, L, d_model], of tokens int [N, L]."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        c = self.config
        x = nn.Embed(c.vocab_size, c.d_model, dtype=self.dtype, name="shared")(
            input_ids
        )
        first = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias"
        table = nn.Embed(c.relative_attention_num_buckets, c.num_heads, name=first)
        bias = table(buckets(input_ids.shape[1], c)).transpose(2, 0, 1)[None]
        for i in range(c.num_layers):
            place = f"encoder.block.{i}.layer"
            h = self._norm(x, f"{place}.0.layer_norm")
            heads = (
                self._dense(h, c.num_heads * c.d_kv, f"{place}.0.SelfAttention.{name}")
                for name in "qkv"
            )
            h = layers.attend(*heads, c.num_heads, bias=bias, scale=1.0)
            x = x + self._dense(h, c.d_model, f"{place}.0.SelfAttention.o")
            h = self._norm(x, f"{place}.1.layer_norm")
            gate, h = (
                self._dense(h, c.d_ff, f"{place}.1.DenseReluDense.{name}")
                for name in ("wi_0", "wi_1")
            )
            h = layers.ACTIVATIONS["gelu_new"](gate) * h
            x = x + self._dense(h, c.d_model, f"{place}.1.DenseReluDense.wo")
        return self._norm(x, "encoder.final_layer_norm").astype(jnp.float32)

    def _dense(self, x: jax.Array, size: int, name: str) -> jax.Array:
        return layers.dense(size, name, self.dtype, use_bias=False)(x)

    def _norm(self, x: jax.Array, name: str) -> jax.Array:
        return layers.rms_norm(x, self.config.layer_norm_epsilon, name, self.dtype)
