"""The networks of a text-to-image model, by the names of their folders."""

from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair.diffusion import prompt_tokens
from ddpo_fair.errors import UserError
from ddpo_fair.models import (
    clip,
    options,
    sd3_transformer,
    sources,
    t5,
    unet,
    vae,
    weights,
)

UNET, TRANSFORMER = "unet", "transformer"  # that denoise: of 1, 2 and XL; of 3
TEXT, TEXT_2, TEXT_3 = "text_encoder", "text_encoder_2", "text_encoder_3"
SD3 = "SD3Transformer2DModel"
OTHERS = (
    "of the models with a transformer 3 and 3.5 alone can be trained;"
    " `python -m ddpo_fair.audit --engine=diffusers` draws any"
)
LARGEST = 256  # latent pixels; published models of this kind have 32 to 128
Networks = dict[str, nn.Module]


def parts_of(folder: Path) -> tuple[str, ...]:
    """The networks that a model's folder must have, and T5 where there is one."""
    both = [part for part in (UNET, TRANSFORMER) if (folder / part).is_dir()]
    if len(both) > 1:
        raise UserError(
            f"{folder} has a {UNET} and a {TRANSFORMER}; move away the one that is not"
            " this model's."
        )
    if TRANSFORMER not in both:
        second = (TEXT_2,) if (folder / TEXT_2).is_dir() else ()  # of XL
        return UNET, "vae", TEXT, *second
    config = weights.read_config(folder / TRANSFORMER)
    rule = options.among(config, "_class_name", (None, SD3))  # before what it lacks
    options.check(f"{folder / TRANSFORMER}/config.json", config, [rule], OTHERS)
    third = (TEXT_3,) if (folder / TEXT_3).is_dir() else ()
    return TRANSFORMER, "vae", TEXT, TEXT_2, *third


def of_configs(
    configs: dict[str, dict[str, Any]], dtype: Any, remat: bool | str = False
) -> Networks:
    """The networks of a model's parsed config.json files, by part.

    A UserError for a config that is not supported, or parts that do not fit.
    """

    def text(c: dict[str, Any], projects: bool) -> nn.Module:
        penultimate = sources.is_xl(configs)
        return clip.TextEncoder(clip.Config.from_dict(c), dtype, penultimate, projects)

    def autoencoder(c: dict[str, Any]) -> nn.Module:
        config = vae.Config.from_dict(c)
        upcast = config.force_upcast and TRANSFORMER not in configs
        return vae.AutoencoderKL(config, jnp.float32 if upcast else dtype)

    zeros = 1 if TEXT_3 in configs else prompt_tokens.T5_LENGTH
    makers = {
        UNET: lambda c: unet.UNet(unet.Config.from_dict(c), dtype, remat),
        TRANSFORMER: lambda c: sd3_transformer.SD3Transformer(
            sd3_transformer.Config.from_dict(c), dtype, remat, zeros
        ),
        "vae": autoencoder,
        TEXT: lambda c: text(c, projects=TRANSFORMER in configs),  # XL's does not
        TEXT_2: lambda c: text(c, projects=True),
        TEXT_3: lambda c: t5.Encoder(t5.Config.from_dict(c), dtype),
    }
    networks = {part: makers[part](configs[part]) for part in makers if part in configs}
    _check_fit({part: network.config for part, network in networks.items()})
    return networks


def _check_fit(configs: dict[str, Any]) -> None:
    """Raises a UserError unless the parts fit together."""
    part = denoising_part(configs)
    config, latents = configs[part], configs["vae"].latent_channels
    clips = [configs[name] for name in (TEXT, TEXT_2) if name in configs]
    states = sum(one.hidden_size for one in clips)
    fits = [("in_channels", latents, "vae"), ("out_channels", latents, "vae")]
    rules = []
    if part == UNET:
        _check_xl(configs)
        turns = 2 ** (len(config.block_out_channels) - 1)
        fits.append(("cross_attention_dim", states, " and ".join(text_parts(configs))))
    else:
        # Sums of their widths are the same when they are swapped.
        first, second = (one.hidden_size for one in clips)
        words = f"at most {second}, which {TEXT_2} has; they may be swapped"
        rule = "hidden_size", first <= second, words
        options.check(f"{TEXT}/config.json", vars(clips[0]), [rule])
        turns, pooled = config.patch_size, sum(one.projection_dim for one in clips)
        fits.append(("pooled_projection_dim", pooled, f"{TEXT} and {TEXT_2}"))
        if TEXT_3 in configs:
            fits.append(("joint_attention_dim", configs[TEXT_3].d_model, TEXT_3))
        sound = states <= config.joint_attention_dim
        rules.append(("joint_attention_dim", sound, f"at least {states}"))
    size = config.sample_size
    sound = size is not None and size <= LARGEST and size % turns == 0
    words = f"a multiple of {turns} latent pixels, at most {LARGEST}"
    rules.append(("sample_size", sound, words))
    for name, wanted, other in fits:
        have = "have" if " and " in other else "has"
        words = f"{wanted}, as its {other} {have} it"
        rules.append((name, getattr(config, name) == wanted, words))
    options.check(f"{part}/config.json", vars(config), rules)


def _check_xl(configs: dict[str, Any]) -> None:
    """Raises a UserError unless UNet and text encoders are XL's, or all are not."""
    config, first, second = configs[UNET], configs[TEXT], configs.get(TEXT_2)
    kind, place, fix = unet.ADDED, f"beside a {TEXT_2}", options.ORIGINAL
    if second is None:
        kind, place = None, f"where there is no {TEXT_2}"
        fix = f"copy the {TEXT_2} of the original model"
    rule = options.among(config, "addition_embed_type", (kind,))
    options.check(f"unet/config.json, {place}", vars(config), [rule], fix)
    if second is None:
        return
    pooled, length = config.pooled_size, first.max_position_embeddings
    row = pooled + unet.NUM_TIME_IDS  # the last of the text
    both = config.projection_class_embeddings_input_dim
    rules = [
        ("projection_class_embeddings_input_dim", pooled > 0, f"above {both - pooled}"),
        ("cross_attention_dim", row <= config.cross_attention_dim, f"{row} or more"),
    ]
    options.check("unet/config.json", vars(config), rules)
    name, words = "max_position_embeddings", f"{length}, as its {TEXT} has it"
    rules = [(name, getattr(second, name) == length, words)]
    words = f"{pooled}, as its unet has it beside {unet.NUM_TIME_IDS} sizes"
    rules.append(("projection_dim", second.projection_dim == pooled, words))
    options.check(f"{TEXT_2}/config.json", vars(second), rules)


def denoising_part(parts: Container[str]) -> str:
    """The name of the network that denoises among the names of a model's parts."""
    return TRANSFORMER if TRANSFORMER in parts else UNET


def text_parts(parts: Iterable[str]) -> list[str]:
    """The names of the text encoders among those of a model's parts."""
    return [part for part in parts if part.startswith(TEXT)]


def text_shape(networks: Networks) -> tuple[int, int]:
    """(L, D) of `encode_prompts`."""
    length = prompt_tokens.length_of(networks[TEXT].config)
    part = denoising_part(networks)
    if part == TRANSFORMER:
        length += (prompt_tokens.T5_LENGTH if TEXT_3 in networks else 1) + 1
    elif sources.is_xl(networks):
        length += 1
    return length, networks[part].config.cross_attention_dim


def join_text(networks: Networks, outputs: dict[str, Any]) -> jax.Array:
    """What text encoders say of N prompts as one array [N, L, D], see `text_shape`.

    Where there are two CLIPs, their states are side by side, then come T5's, or one row
    of zeros for all that it would have, and then a row of the pooled projections; the
    rest is zeros.
    """
    if TEXT_2 not in outputs:
        return outputs[TEXT]
    both = [
        x if isinstance(x, tuple) else (x,) for x in map(outputs.get, (TEXT, TEXT_2))
    ]
    states = jnp.concatenate([states for states, *_ in both], axis=-1)
    pooled = jnp.concatenate([x for _, *pooled in both for x in pooled], axis=-1)
    rows = [states, pooled[:, None]]
    if TRANSFORMER in networks:
        rows.insert(1, outputs.get(TEXT_3, jnp.zeros_like(states[:, :1])))
    _, width = text_shape(networks)
    fills = (((0, 0), (0, 0), (0, width - row.shape[-1])) for row in rows)
    return jnp.concatenate(list(map(jnp.pad, rows, fills)), axis=1)


def inputs(networks: Networks) -> dict[str, tuple[jax.ShapeDtypeStruct, ...]]:
    """What each of a model's networks is called with, by part, for one image."""
    part = denoising_part(networks)
    config = networks[part].config

    def floats(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.float32)

    def integers(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *shape), jnp.int32)

    latents = floats(config.sample_size, config.sample_size, config.in_channels)
    found = {
        part: (latents, integers(), floats(*text_shape(networks))),
        "vae": (floats(64, 64, 3),),
    }
    for name in text_parts(networks):
        found[name] = (integers(prompt_tokens.length_of(networks[name].config)),)
    return found


def templates(networks: Networks) -> dict[str, Any]:
    """Shapes of the parameters of a model's networks, by part; computes nothing."""
    return {
        name: weights.init_template(networks[name], *shapes)
        for name, shapes in inputs(networks).items()
    }
