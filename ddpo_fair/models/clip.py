"""Text encoder of Stable Diffusion (transformers' CLIPTextModel)."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import layers, options

PLACE = "CLIPTextModel: config.json"
LAYER = (
    ("layer_norm1", "layer_norm2"),
    tuple(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")),
    ("mlp.fc1", "mlp.fc2"),
)


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
        rule = options.among(json_dict, "model_type", (None, "clip_text_model"))
        fix = "use a Stable Diffusion 1.x or 2.x model"
        options.check(PLACE, json_dict, [rule], fix)
        config = options.read(cls, json_dict, PLACE)
        rules = (
            options.among(config, "hidden_act", ("gelu", "quick_gelu")),
            options.divides(config, "num_attention_heads", "hidden_size"),
        )
        options.check(PLACE, vars(config), rules)
        return config


class TextEncoder(nn.Module):
    """Last hidden state, float32 [N, L, hidden_size], of tokens int [N, L]."""

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
            name = f"text_model.encoder.layers.{i}"
            x = layers.EncoderLayer(c, LAYER, self.dtype, is_causal=True, name=name)(x)
        x = layers.layer_norm(
            x, c.layer_norm_eps, "text_model.final_layer_norm", self.dtype
        )
        return x.astype(jnp.float32)
