"""Text encoder of Stable Diffusion (transformers' CLIPTextModel)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import layers, options

PLACE = "CLIPTextModel: config.json"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are transformers'."""

    vocab_size: int = 49408
    hidden_size: int = 512
    intermediate_size: int = 2048
    num_hidden_layers: int = 12
    num_attention_heads: int = 8
    max_position_embeddings: int = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: float = 1e-5

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        if isinstance(both := json_dict.get("text_config"), dict):  # CLIPModel's
            json_dict = both
        options.check(
            PLACE,
            json_dict,
            [options.among(json_dict, "model_type", (None, "clip_text_model"))],
            "use a Stable Diffusion 1.x or 2.x model",
        )
        config = options.read(cls, json_dict, PLACE)
        rules = (
            options.among(config, "hidden_act", ("gelu", "quick_gelu")),
            options.divides(config, "num_attention_heads", "hidden_size"),
        )
        options.check(PLACE, vars(config), rules)
        return config


class EncoderLayer(nn.Module):
    """Causal self-attention and feed-forward of [N, L, D], normalised first."""

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        c = self.config
        h = layers.layer_norm(x, c.layer_norm_eps, "layer_norm1", self.dtype)
        q, k, v = (
            layers.dense(c.hidden_size, f"self_attn.{name}", self.dtype)(h)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        h = layers.attend(q, k, v, c.num_attention_heads, is_causal=True)
        x = x + layers.dense(c.hidden_size, "self_attn.out_proj", self.dtype)(h)
        h = layers.layer_norm(x, c.layer_norm_eps, "layer_norm2", self.dtype)
        h = layers.dense(c.intermediate_size, "mlp.fc1", self.dtype)(h)
        h = layers.ACTIVATIONS[c.hidden_act](h)
        return x + layers.dense(c.hidden_size, "mlp.fc2", self.dtype)(h)


class TextEncoder(nn.Module):
    """Last hidden state of the tokens, after the final norm.

    Args of a call:
        input_ids: int [N, L], L <= max_position_embeddings.

    Returns:
        float32 [N, L, hidden_size].
    """

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, input_ids: jax.Array) -> jax.Array:
        c = self.config
        length = input_ids.shape[1]
        if length > c.max_position_embeddings:
            raise errors.UserError(
                f"CLIPTextModel: {length} tokens, but max_position_embeddings="
                f"{c.max_position_embeddings}; truncate the prompts."
            )

        def embed(size: int, name: str) -> nn.Embed:
            # 0.02: transformers' initializer_range
            return nn.Embed(
                size,
                c.hidden_size,
                dtype=self.dtype,
                embedding_init=nn.initializers.normal(0.02),
                name=f"text_model.embeddings.{name}",
            )

        tokens = embed(c.vocab_size, "token_embedding")(input_ids)
        positions = embed(c.max_position_embeddings, "position_embedding")(
            jnp.arange(length)
        )
        x = tokens + positions[None]
        for i in range(c.num_hidden_layers):
            x = EncoderLayer(c, self.dtype, name=f"text_model.encoder.layers.{i}")(x)
        x = layers.layer_norm(
            x, c.layer_norm_eps, "text_model.final_layer_norm", self.dtype
        )
        return x.astype(jnp.float32)
