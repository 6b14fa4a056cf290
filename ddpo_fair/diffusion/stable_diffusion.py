"""The text-to-image model: a folder in the diffusers layout, its networks, guidance."""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair.diffusion import ddim, flow, networks, prompt_tokens, scheduler_settings
from ddpo_fair.diffusion.gaussian_step import ALL_STEPS, Schedule
from ddpo_fair.diffusion.networks import TEXT_3
from ddpo_fair.errors import UserError
from ddpo_fair.models import (
    clip,
    lora,
    lora_files,
    options,
    sd3_transformer,
    sources,
    tensor_files,
    unet,
    vae,
    weights,
)

INDEX = "model_index.json"  # says how a pipeline uses the parts; may be missing
ZEROS = "force_zeros_for_empty_prompt"  # in it, of XL
NO_TIME_IDS = (0,) * unet.NUM_TIME_IDS  # all mean the model's own size, uncropped
PIXELS = 2**21  # decoded at once on a device: 8 images of 512 x 512, 2 of 1024 x 1024
WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)  # programs are compiled for the object
class Model:
    """A loaded model, whose parts have their folders' names."""

    folder: Path
    networks: networks.Networks
    tokenizers: dict[str, Any]  # of each text encoder; {} where no weights are read
    configs: dict[str, dict[str, Any]]  # the parsed config.json of each part
    params: dict[str, Any]

    @property
    def part(self) -> str:
        """The name of the network that denoises: "unet" or "transformer"."""
        return networks.denoising_part(self.networks)

    @property
    def denoiser(self) -> unet.UNet | sd3_transformer.SD3Transformer:
        """The network that denoises."""
        return self.networks[self.part]

    @property
    def vae(self) -> vae.AutoencoderKL:
        """The autoencoder."""
        return self.networks["vae"]

    @property
    def scheduler(self) -> dict[str, Any]:
        """The parsed scheduler_config.json."""
        return self.configs["scheduler"]

    def schedule(
        self,
        num_steps: int,
        eta: float,
        sde: str,
        window: tuple[int, int] = ALL_STEPS,
    ) -> Schedule:
        """The denoising steps of its scheduler, a flow's or DDIM's (without `sde`).

        A UserError for a setting that is missing, unsupported or out of range.
        """
        if is_flow(self.scheduler):
            return flow.schedule(self.scheduler, num_steps, eta, sde, window)
        return ddim.schedule(self.scheduler, num_steps, eta, window)

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(h, w, C) of one image's latents."""
        size = self.denoiser.config.sample_size
        return (size, size, self.denoiser.config.in_channels)

    @property
    def text_shape(self) -> tuple[int, int]:
        """(L, D) of the text that conditions an image, see `encode_prompts`."""
        return networks.text_shape(self.networks)

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
    base_lora: str = "",
    prompts: Sequence[str] = (),
) -> Model:
    """The model of a local folder in the diffusers layout.

    Args:
        folder: with sub-folders of networks, tokenizers and the scheduler.
        dtype: of the computation; the weights stay float32.
        remat: of the UNet, see `unet.UNet`.
        variant: e.g. "fp16" for files named so.
        base_lora: a file of adapters to merge into the weights; "" for none.
        prompts: that its text encoders must read to their ends.

    Raises:
        UserError: if a part is missing, its weights or the adapters do not fit its
            config, the parts do not fit together, or a prompt is too long.
    """
    folder = Path(folder)
    parts = networks.parts_of(folder)
    texts = networks.text_parts(parts)
    _check_parts(folder, [*parts, *map(tokenizer_folder, texts), "scheduler"])
    model = of_configs(folder, read_configs(folder), dtype, remat)
    # Before the weights, which take far longer to read.
    adapters = lora_files.load(base_lora, model.params) if base_lora else {}
    tokenizers = {
        part: prompt_tokens.load(
            folder / tokenizer_folder(part),
            "T5Tokenizer" if part == TEXT_3 else "CLIPTokenizer",
        )
        for part in texts
    }
    for part, tokenizer in tokenizers.items():
        network, config = model.networks[part], model.networks[part].config
        if isinstance(network, clip.TextEncoder) and network.projects:
            # 2 and null stand for the highest number of all
            ends = (2, None, tokenizer.eos_token_id)
            rule = options.among(config, "eos_token_id", ends)
            options.check(f"{folder / part}/config.json", vars(config), [rule])
        prompt_tokens.of(tokenizer, config, ["", *prompts])
    params = {
        part: weights.load(folder / part, template, variant)
        for part, template in model.params.items()
    }
    params = lora.merge(params, adapters)
    return dataclasses.replace(model, tokenizers=tokenizers, params=params)


def _check_parts(folder: Path, wanted: list[str]) -> None:
    """Raises a UserError unless a model's folder has these folders."""
    if missing := [part for part in wanted if not (folder / part).is_dir()]:
        raise UserError(
            f"model={str(folder)!r} is not a model folder: it has no"
            f" {', '.join(missing)}; the diffusers layout has {', '.join(wanted)}."
        )


def tokenizer_folder(part: str) -> str:
    """The name of the folder with a text encoder's tokenizer."""
    return part.replace("text_encoder", "tokenizer")


def is_flow(scheduler_config: dict[str, Any]) -> bool:
    """Whether a scheduler_config.json is that of a rectified flow."""
    return scheduler_config.get("_class_name") == flow.CLASS


def read_configs(folder: Path) -> dict[str, dict[str, Any]]:
    """The parsed config.json of each part of a model's folder, and XL's "pipeline".

    A UserError if one is missing, or is not a JSON object.
    """
    parts = networks.parts_of(folder)
    _check_parts(folder, [*parts, "scheduler"])
    configs = {part: weights.read_config(folder / part) for part in parts}
    place = folder / "scheduler" / "scheduler_config.json"
    configs["scheduler"] = tensor_files.read_json(place)
    if sources.is_xl(parts) and (folder / INDEX).is_file():
        configs["pipeline"] = tensor_files.read_json(folder / INDEX)
    return configs


def zeros_for_empty(configs: dict[str, dict[str, Any]]) -> bool:
    """Whether the empty prompt's text is zeros, of XL's parsed config.json files."""
    pipeline = configs.get("pipeline", {})
    return bool(pipeline.get(ZEROS, True))


def of_configs(
    folder: Path,
    configs: dict[str, dict[str, Any]],
    dtype: Any,
    remat: bool | str = False,
) -> Model:
    """A model with the shapes of its weights and no tokenizer; reads no weights.

    A UserError for a config that is not supported, or parts that do not fit.
    """
    with options.of(folder):
        scheduler = configs["scheduler"]
        if networks.denoising_part(configs) == networks.TRANSFORMER:
            rule = options.among(scheduler, "_class_name", (flow.CLASS,))
            options.check(
                f"{scheduler_settings.FILE} beside a transformer", scheduler, [rule]
            )
        (flow if is_flow(scheduler) else scheduler_settings).read(scheduler)
        index = configs.get("pipeline", {})
        options.check(INDEX, index, [options.among(index, ZEROS, (None, True, False))])
        made = networks.of_configs(configs, dtype, remat)
    return Model(folder, made, {}, configs, networks.templates(made))


def encode_prompts(
    model: Model, prompts: list[str], time_ids: Sequence[int] = NO_TIME_IDS
) -> np.ndarray:
    """What conditions the images, float32 [N, L, D]; encodes a distinct prompt once.

    Of Stable Diffusion 1 and 2 the text encoder's states. Of XL and 3 those of both
    CLIPs side by side, then T5's, zeros where there is none, and then one row with the
    pooled projections and XL's time ids; filled up with zeros. As diffusers has them.

    Raises a UserError as `prompt_tokens.of` does, and for the `sample.time_ids` of a
    model that has none.
    """
    distinct = list(dict.fromkeys(prompts))
    outputs = {}
    for part in networks.text_parts(model.networks):
        network = model.networks[part]
        tokenizer = model.tokenizers[part]
        params = {"params": lora.frozen(model.params[part], (), network.dtype)}
        ids = [prompt_tokens.of(tokenizer, network.config, [x]) for x in distinct]
        found = [jax.tree.map(np.asarray, _encode(network, params, one)) for one in ids]
        outputs[part] = jax.tree.map(lambda *x: np.concatenate(x), *found)
    states = np.array(networks.join_text(model.networks, outputs))
    if sources.is_xl(model.networks):
        if zeros_for_empty(model.configs):
            states[[prompt == "" for prompt in distinct]] = 0.0
        own = (model.image_size, model.image_size, 0, 0) + 2 * (model.image_size,)
        chosen = [given or usual for given, usual in zip(time_ids, own, strict=True)]
        start = model.denoiser.config.pooled_size
        states[:, -1, start : start + len(chosen)] = chosen
    elif any(time_ids):
        raise UserError(
            f"sample.time_ids={tuple(time_ids)} are SDXL's, and {model.folder} is no"
            " such model; leave them out."
        )
    return states[[distinct.index(prompt) for prompt in prompts]]


@functools.partial(jax.jit, static_argnums=0)
def _encode(network: nn.Module, variables: Any, ids: jax.Array) -> Any:
    return network.apply(variables, ids)


def guided_noise(
    network: nn.Module,
    params: Any,
    latents: jax.Array,
    timesteps: jax.Array,
    text: jax.Array,
    uncond_embedding: jax.Array,
    guidance_scale: float,
) -> jax.Array:
    """The network's output under classifier-free guidance; sampler and loss share it.

    output = uncond + guidance_scale * (cond - uncond), both in one batch (Ho and
    Salimans 2022, https://arxiv.org/abs/2207.12598, with guidance_scale = 1 + w).

    Args:
        network: that denoises.
        params: its weights.
        latents: float32 [N, h, w, C].
        timesteps: int32 [N].
        text: float32 [N, L, D], embeddings of the prompts.
        uncond_embedding: float32 [L, D], of the empty prompt.
        guidance_scale: 1 means no guidance, one evaluation instead of two.

    Returns:
        float32 [N, h, w, C], noise or velocity as the schedule says.
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

    def some(latents: jax.Array) -> jax.Array:
        latents = latents / c.scaling_factor + (c.shift_factor or 0.0)
        images = model.vae.apply({"params": vae_params}, latents, method="decode")
        return jnp.clip(images.astype(jnp.float32) / 2 + 0.5, 0.0, 1.0)

    most = max(1, PIXELS // model.image_size**2)
    N = len(latents)
    turns = next(x for x in range(1, N + 1) if N % x == 0 and x * most >= N)
    if turns == 1:
        return some(latents)
    images = jax.lax.map(some, latents.reshape(turns, -1, *latents.shape[1:]))
    return images.reshape(-1, *images.shape[2:])
