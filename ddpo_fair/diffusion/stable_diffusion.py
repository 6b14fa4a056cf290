"""The text-to-image model: a folder in the diffusers layout, its networks, guidance."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.diffusion import clip_tokens, ddim, flow, scheduler_settings
from ddpo_fair.diffusion.gaussian_step import Schedule
from ddpo_fair.errors import UserError
from ddpo_fair.models import clip, options, tensor_files, unet, vae, weights

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

PARTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
LARGEST = 256  # latent pixels; published models of this kind have 32 to 96
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)  # programs are compiled for the object
class Model:
    """A loaded model; `params` has the keys "text_encoder", "unet" and "vae"."""

    folder: Path
    text_encoder: clip.TextEncoder
    unet: unet.UNet
    vae: vae.AutoencoderKL
    tokenizer: "CLIPTokenizer | None"
    configs: dict[str, dict[str, Any]]  # the parsed config.json of each part
    params: dict[str, Any]

    @property
    def scheduler(self) -> dict[str, Any]:
        """The parsed scheduler_config.json."""
        return self.configs["scheduler"]

    def schedule(self, num_steps: int, eta: float, sde: str) -> Schedule:
        """The denoising steps of its scheduler, a flow's or DDIM's (without `sde`).

        Raises:
            UserError: for a setting that is missing, unsupported or out of range.
        """
        if is_flow(self.scheduler):
            return flow.schedule(self.scheduler, num_steps, eta, sde)
        return ddim.schedule(self.scheduler, num_steps, eta)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of one image's latents."""
        size = self.unet.config.sample_size
        return (size, size, self.unet.config.in_channels)

    @property
    def image_size(self) -> int:
        """Height and width of the images, in pixels."""
        levels = len(self.vae.config.block_out_channels)
        return self.latent_shape[0] * 2 ** (levels - 1)


def load(
    folder: str | Path,
    dtype: Any = jnp.float32,
    remat: bool | str = False,
    variant: str | None = None,
) -> Model:
    """The model of a local folder in the diffusers layout.

    Args:
        folder: with the sub-folders unet, vae, text_encoder, tokenizer, scheduler.
        dtype: of the computation; the weights stay float32.
        remat: of the UNet, see `unet.UNet`.
        variant: e.g. "fp16" for files named so.

    Raises:
        UserError: if a part is missing, its weights do not fit its config, or the
            parts do not fit together.
    """
    folder = Path(folder)
    missing = [part for part in PARTS if not (folder / part).is_dir()]
    if missing:
        raise UserError(
            f"model={str(folder)!r} is not a model folder: it has no"
            f" {', '.join(missing)}; the diffusers layout has {', '.join(PARTS)}."
        )
    model = of_configs(folder, read_configs(folder), dtype, remat)
    params = {
        part: weights.load(folder / part, template, variant)
        for part, template in model.params.items()
    }
    tokenizer = clip_tokens.load(folder / "tokenizer")
    return dataclasses.replace(model, tokenizer=tokenizer, params=params)


def is_flow(scheduler_config: dict[str, Any]) -> bool:
    """Whether a scheduler_config.json is that of a rectified flow."""
    return scheduler_config.get("_class_name") == flow.CLASS


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The parsed config.json of each part of a model's folder.

    Raises:
        UserError: if one is missing, or is not a JSON object.
    """
    configs = {part: weights.read_config(folder / part) for part in PARTS[:3]}
    place = folder / "scheduler" / "scheduler_config.json"
    return configs | {"scheduler": tensor_files.read_json(place)}


def of_configs(
    folder: Path,
    configs: dict[str, dict[str, Any]],
    dtype: Any,
    remat: bool | str = False,
) -> Model:
    """A model with the shapes of its weights and no tokenizer; reads no weights.

    Raises:
        UserError: for a config that is not supported, or parts that do not fit.
    """
    with options.of(folder):
        scheduler = configs["scheduler"]
        (flow if is_flow(scheduler) else scheduler_settings).read(scheduler)
        networks = networks_of(configs, dtype, remat)
    return Model(folder, *networks, None, configs, templates_of(*networks))


def networks_of(
    configs: dict[str, dict[str, Any]], dtype: Any, remat: bool | str = False
) -> tuple[clip.TextEncoder, unet.UNet, vae.AutoencoderKL]:
    """The networks of a model's parsed config.json files.

    Raises:
        UserError: for a config that is not supported, or parts that do not fit.
    """
    text = clip.TextEncoder(clip.Config.from_dict(configs["text_encoder"]), dtype)
    net = unet.UNet(unet.Config.from_dict(configs["unet"]), dtype, remat)
    autoencoder = vae.AutoencoderKL(vae.Config.from_dict(configs["vae"]), dtype)
    states, latents = text.config.hidden_size, autoencoder.config.latent_channels
    size, turns = net.config.sample_size, 2 ** (len(net.config.block_out_channels) - 1)
    sound = size is not None and size <= LARGEST and size % turns == 0
    words = f"a multiple of {turns} latent pixels, at most {LARGEST}"
    rules = [("sample_size", sound, words)]
    for name, wanted, part in (
        ("cross_attention_dim", states, "text_encoder"),
        ("in_channels", latents, "vae"),
        ("out_channels", latents, "vae"),
    ):
        sound = getattr(net.config, name) == wanted
        rules.append((name, sound, f"{wanted}, as its {part} has it"))
    options.check("unet/config.json", vars(net.config), rules)
    return text, net, autoencoder


def templates_of(
    text: clip.TextEncoder, net: unet.UNet, autoencoder: vae.AutoencoderKL
) -> dict[str, Any]:
    """Shapes of the parameters of the three networks, by part; computes nothing."""
    size, tokens = net.config.sample_size, text.config.max_position_embeddings
    latents = (1, size, size, net.config.in_channels)
    states = (1, tokens, net.config.cross_attention_dim)
    ids, timestep = (jax.ShapeDtypeStruct(s, jnp.int32) for s in ((1, tokens), (1,)))
    return {
        "text_encoder": weights.init_template(text, ids),
        "unet": weights.init_template(net, latents, timestep, states),
        "vae": weights.init_template(autoencoder, (1, 64, 64, 3)),
    }


def encode_prompts(model: Model, prompts: list[str]) -> np.ndarray:
    """Text states float32 [N, L, D]; each distinct prompt is encoded once.

    Raises a UserError as `clip_tokens.of` does.
    """
    distinct = list(dict.fromkeys(prompts))
    encode, config = jax.jit(model.text_encoder.apply), model.text_encoder.config
    params = {"params": model.params["text_encoder"]}
    numbers = [clip_tokens.of(model.tokenizer, config, [prompt]) for prompt in distinct]
    states = [np.asarray(encode(params, ids), np.float32) for ids in numbers]
    rows = [distinct.index(prompt) for prompt in prompts]
    return np.concatenate(states)[rows]


def guided_noise(
    network: unet.UNet,
    params: Any,
    latents: jax.Array,
    timesteps: jax.Array,
    text: jax.Array,
    uncond_embedding: jax.Array,
    guidance_scale: float,
) -> jax.Array:
    """The UNet's output under classifier-free guidance; sampler and loss share it.

    output = uncond + guidance_scale * (cond - uncond), both in one batch (Ho and
    Salimans 2022, https://arxiv.org/abs/2207.12598, with guidance_scale = 1 + w).

    Args:
        network: the UNet.
        params: its weights.
        latents: float32 [N, h, w, C].
        timesteps: int32 [N].
        text: float32 [N, L, D], embeddings of the prompts.
        uncond_embedding: float32 [L, D], of the empty prompt.
        guidance_scale: 1 means no guidance, one evaluation instead of two.

    Returns:
        float32 [N, h, w, C], noise or v as the schedule's prediction_type says.
    """
    variables = {"params": params}
    if guidance_scale == 1.0:
        output = network.apply(variables, latents, timesteps, text)
        return output.astype(jnp.float32)
    both = network.apply(
        variables,
        jnp.concatenate([latents, latents]),
        jnp.concatenate([timesteps, timesteps]),
        jnp.concatenate([jnp.broadcast_to(uncond_embedding[None], text.shape), text]),
    ).astype(jnp.float32)
    uncond, cond = jnp.split(both, 2)
    return uncond + guidance_scale * (cond - uncond)


def decode(model: Model, vae_params: Any, latents: jax.Array) -> jax.Array:
    """Images float32 [N, H, W, 3] in [0, 1] of latents float32 [N, h, w, C]."""
    c = model.vae.config
    latents = latents / c.scaling_factor + (c.shift_factor or 0.0)
    images = model.vae.apply({"params": vae_params}, latents, method="decode")
    return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)
