"""UNet of Stable Diffusion 1.x, 2.x and XL (diffusers' UNet2DConditionModel)."""

import dataclasses
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import blocks, layers, options, rows

PLACE = "UNet2DConditionModel: config.json"
CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
ADDED = "text_time"  # SDXL's addition_embed_type
NUM_TIME_IDS = 6  # of SDXL, see sample.time_ids
ADDED_SIZES = ("addition_time_embed_dim", "projection_class_embeddings_input_dim")
CROSS_MID, PLAIN_MID = "UNetMidBlock2DCrossAttn", "UNetMidBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

Layers = tuple[int | tuple[int, ...], ...]

# Options that are understood only at these values.
FIXED = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type_num_heads": (64,),
    "attention_type": ("default",),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dropout": (0,),
    "mid_block_scale_factor": (1,),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upcast_attention": (False, True, None),  # the softmax is float32 in any case
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of config.json, under their names there; defaults are diffusers'."""

    sample_size: int | None = None  # latent pixels
    in_channels: int = 4
    out_channels: int = 4
    flip_sin_to_cos: bool = True
    freq_shift: int = 0
    down_block_types: tuple[str, ...] = (CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, PLAIN_DOWN)
    up_block_types: tuple[str, ...] = (PLAIN_UP, CROSS_UP, CROSS_UP, CROSS_UP)
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    cross_attention_dim: int = 1280
    mid_block_type: str | None = CROSS_MID
    # One number, or one a level, or one an attention of a level.
    transformer_layers_per_block: int | Layers = 1
    # On the way up, where that is not the way down reversed.
    reverse_transformer_layers_per_block: Layers | None = None
    # The number of heads, one or one a level: its name is a mistake that every
    # published config.json repeats.
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False
    addition_embed_type: str | None = None
    addition_time_embed_dim: int | None = None
    projection_class_embeddings_input_dim: int | None = None

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json; a UserError names what is not supported."""
        config = options.read(cls, json_dict, PLACE, FIXED)
        channels, heads = config.block_out_channels, config.num_heads
        each = len(heads) == len(channels)
        rules = [
            (
                "attention_head_dim",
                each and all(c % h == 0 for c, h in zip(channels, heads, strict=True)),
                f"a divisor of block_out_channels={channels}, for all or one for each",
            ),
            options.divides(config, "norm_num_groups", "block_out_channels"),
            options.among(config, "addition_embed_type", (None, ADDED)),
            options.among(config, "mid_block_type", (CROSS_MID, PLAIN_MID, None)),
            *config._layer_rules(),
        ]
        for name in ADDED_SIZES if config.addition_embed_type else ():
            sound = getattr(config, name) is not None
            rules.append((name, sound, f"a number, of addition_embed_type={ADDED!r}"))
        for name, allowed in (
            ("down_block_types", (CROSS_DOWN, PLAIN_DOWN)),
            ("up_block_types", (CROSS_UP, PLAIN_UP)),
        ):
            kinds = getattr(config, name)
            sound = len(kinds) == len(channels) and set(kinds) <= set(allowed)
            rules.append((name, sound, f"{len(channels)} of {allowed}"))
        options.check(PLACE, vars(config), rules)
        return config

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return self.attention_head_dim

    @property
    def pooled_size(self) -> int | None:
        """Of the text's pooled projection; None of 1.x and 2.x."""
        if self.addition_embed_type is None:
            return None
        sizes = NUM_TIME_IDS * self.addition_time_embed_dim
        return self.projection_class_embeddings_input_dim - sizes

    def transformer_layers(self, way: str) -> Layers:
        """Of each level, or of each of its attentions, on the way "down" or "up"."""
        layers, own = self.transformer_layers_per_block, None
        if isinstance(layers, int):
            layers = (layers,) * len(self.block_out_channels)
        if way == "up":
            layers, own = layers[::-1], self.reverse_transformer_layers_per_block
        return own or layers

    def _layer_rules(self) -> Iterator[options.Rule]:
        """That numbers of transformer layers are one a level, or one an attention."""
        levels, name = len(self.block_out_channels), "transformer_layers_per_block"
        for way, own in (("down", name), ("up", f"reverse_{name}")):
            layers = self.transformer_layers(way)
            count = self.layers_per_block + (way == "up")
            each = (x for x in layers if isinstance(x, tuple))
            sound = len(layers) == levels and all(len(x) == count for x in each)
            words = f"a list of {levels}, each a number or a list of {count}"
            yield own, sound, f"a number, or {words}"


class UNet(nn.Module):
    """Noise (or velocity) that the diffusion model predicts.

    Float32 [N, h, w, out_channels], of latents [N, h, w, in_channels], h and w
    multiples of 2^(levels - 1), timesteps [N] or a scalar, and text states
    [N, L, cross_attention_dim]. Of SDXL's the last row begins with the pooled
    projection, pooled_size numbers, and six time ids. `remat` recomputes blocks in the
    backward pass: True keeps only their inputs, a string names a policy of
    `jax.checkpoint_policies`.
    """

    config: Config
    dtype: jax.typing.DTypeLike = jnp.float32
    remat: bool | str = False

    @nn.compact
    def __call__(
        self, latents: jax.Array, timesteps: jax.Array, text_states: jax.Array
    ) -> jax.Array:
        c = self.config
        levels = range(len(c.block_out_channels))
        multiple = 2 ** levels[-1]
        if latents.shape[1] % multiple or latents.shape[2] % multiple:
            raise errors.UserError(
                f"UNet2DConditionModel: latents of {latents.shape[1]} x"
                f" {latents.shape[2]} pixels are not multiples of {multiple}, as"
                f" {len(levels)} levels need; take a resolution that is."
            )
        timesteps = jnp.broadcast_to(timesteps, latents.shape[:1])
        pooled = None
        if c.pooled_size is not None:
            text_states, pooled = text_states[:, :-1], text_states[:, -1]
        context = (self._embed(timesteps, pooled), text_states.astype(self.dtype))
        x = layers.Conv(c.block_out_channels[0], self.dtype, name="conv_in")(latents)
        skips = [x]
        for i in levels:
            skips += self._level("down", i)(skips[-1], *context)
        x = skips[-1]
        if c.mid_block_type is not None:
            plain = c.mid_block_type == PLAIN_MID
            x = blocks.Level(
                c.block_out_channels[-1],
                1 if plain else 2,
                (c.norm_num_groups, c.norm_eps),
                () if plain else self._attentions("down", -1)[:1],
                dtype=self.dtype,
                remat=self.remat,
                name="mid_block",
            )(x, *context)[-1]
        for i in levels:
            x = self._level("up", i)(x, *context, skips=skips)[-1]
            del skips[-1 - c.layers_per_block :]
        x = layers.group_norm(
            x, c.norm_num_groups, c.norm_eps, "conv_norm_out", self.dtype
        )
        conv_out = layers.Conv(c.out_channels, self.dtype, name="conv_out")
        return conv_out(jax.nn.silu(x)).astype(jnp.float32)

    def _level(self, way: str, i: int) -> blocks.Level:
        """Level number `i` of the way "down", finest first, or "up", coarsest first."""
        c = self.config
        last = len(c.block_out_channels) - 1
        down = way == "down"
        depth = i if down else last - i
        kind = (c.down_block_types if down else c.up_block_types)[i]
        attends = kind in (CROSS_DOWN, CROSS_UP)
        return blocks.Level(
            c.block_out_channels[depth],
            c.layers_per_block + (0 if down else 1),
            (c.norm_num_groups, c.norm_eps),
            self._attentions(way, i) if attends else (),
            way if i < last else None,
            dtype=self.dtype,
            remat=self.remat,
            name=f"{way}_blocks.{i}",
        )

    def _attentions(self, way: str, i: int) -> tuple[Callable[..., nn.Module], ...]:
        """Makers of the transformers of level number `i` of a way, see `_level`."""
        c, depths = self.config, self.config.transformer_layers(way)[i]
        if not isinstance(depths, tuple):
            depths = (depths,) * (c.layers_per_block + (way == "up"))
        heads = c.num_heads if way == "down" else c.num_heads[::-1]
        others = c.norm_num_groups, c.use_linear_projection, self.dtype

        def maker(depth: int) -> Callable[..., nn.Module]:
            # Of a row each layer: the activations of all would be there at once.
            is_row = depth >= rows.MANY
            module = blocks.recomputed(not is_row and self.remat, blocks.Transformer)
            return partial(module, heads[i], depth, *others, is_row and self.remat)

        return tuple(map(maker, depths))

    def _embed(self, timesteps: jax.Array, pooled: jax.Array | None) -> jax.Array:
        """[N, 4 block_out_channels[0]] of timesteps [N] and the text's last row."""
        c = self.config
        size = c.block_out_channels[0]

        def waves(x: jax.Array, size: int) -> jax.Array:
            return layers.timestep_embedding(x, size, c.flip_sin_to_cos, c.freq_shift)

        def mix(h: jax.Array, name: str) -> jax.Array:
            h = layers.dense(4 * size, f"{name}.linear_1", self.dtype)(h)
            h = jax.nn.silu(h)
            return layers.dense(4 * size, f"{name}.linear_2", self.dtype)(h)

        h = mix(waves(timesteps, size).astype(self.dtype), "time_embedding")
        if pooled is None:
            return h
        pooled, ids, _ = jnp.split(
            pooled, (c.pooled_size, c.pooled_size + NUM_TIME_IDS), axis=1
        )
        sizes = waves(ids.ravel(), c.addition_time_embed_dim).reshape(len(ids), -1)
        added = jnp.concatenate([pooled, sizes], axis=1).astype(self.dtype)
        return h + mix(added, "add_embedding")
