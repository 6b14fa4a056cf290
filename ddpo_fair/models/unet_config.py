"""Options of the UNet: what of config.json is supported."""

import dataclasses
from typing import Any

from ddpo_fair.models import options

NETWORK = "UNet2DConditionModel"
CROSS_DOWN, PLAIN_DOWN = "CrossAttnDownBlock2D", "DownBlock2D"
CROSS_UP, PLAIN_UP = "CrossAttnUpBlock2D", "UpBlock2D"

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
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "resnet_out_scale_factor": (1,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "upcast_attention": (False, True),  # the softmax is float32 in any case
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
    transformer_layers_per_block: int = 1
    # The number of heads, one or one a level: its name is a mistake that every
    # published config.json repeats.
    attention_head_dim: int | tuple[int, ...] = 8
    use_linear_projection: bool = False

    @classmethod
    def from_dict(cls, json_dict: dict[str, Any]) -> "Config":
        """Config of a parsed config.json.

        Raises:
            UserError: names each option that this network does not support.
        """
        config = options.read(cls, json_dict, NETWORK, FIXED)
        channels, heads = config.block_out_channels, config.num_heads
        each = len(heads) == len(channels)
        rules = [
            (
                "attention_head_dim",
                each and all(c % h == 0 for c, h in zip(channels, heads, strict=True)),
                f"a divisor of block_out_channels={channels}, for all or one for each",
            ),
            options.divides(config, "norm_num_groups", "block_out_channels"),
        ]
        for name, allowed in (
            ("down_block_types", (CROSS_DOWN, PLAIN_DOWN)),
            ("up_block_types", (CROSS_UP, PLAIN_UP)),
        ):
            kinds = getattr(config, name)
            sound = len(kinds) == len(channels) and set(kinds) <= set(allowed)
            rules.append((name, sound, f"{len(channels)} of {allowed}"))
        options.check(f"{NETWORK}: config.json", vars(config), rules)
        return config

    @property
    def num_heads(self) -> tuple[int, ...]:
        """Attention heads of each level."""
        if isinstance(self.attention_head_dim, int):
            return (self.attention_head_dim,) * len(self.block_out_channels)
        return self.attention_head_dim

    @property
    def transformer(self) -> tuple[int, int, bool]:
        """Layers, groups and linear projection of every `blocks.Transformer`."""
        layers = self.transformer_layers_per_block
        return layers, self.norm_num_groups, self.use_linear_projection
