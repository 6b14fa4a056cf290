"""A text-to-image model and a classifier of random weights, as small as they can be.

16 x 16 pixels, latents of 8 x 8 x 4; official folders, written by our own `save`.
"""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import parity
import transformers

from ddpo_fair import config as configuration
from ddpo_fair.diffusion import networks, prompt_tokens, stable_diffusion
from ddpo_fair.embedded import pretrain_tokenizer
from ddpo_fair.models import t5, vit, weights

PROMPTS = ("photo of the face of a nurse", "photo of the face of a pilot")
UNET = {
    "_class_name": "UNet2DConditionModel", "attention_head_dim": 2,
    "block_out_channels": [16], "cross_attention_dim": 16,
    "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"],
    "in_channels": 4, "out_channels": 4, "layers_per_block": 1, "norm_num_groups": 8,
    "sample_size": 8,
}  # fmt: skip
VAE = {
    "in_channels": 3, "_class_name": "AutoencoderKL", "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2, "latent_channels": 4,
    "layers_per_block": 1, "mid_block_add_attention": False, "norm_num_groups": 4,
    "sample_size": 16, "scaling_factor": 1.0,
}  # fmt: skip
TEXT = {
    "model_type": "clip_text_model", "hidden_size": 16, "intermediate_size": 32,
    "max_position_embeddings": pretrain_tokenizer.MAX_LENGTH, "num_attention_heads": 2,
    "num_hidden_layers": 1,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "DDIMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000, "clip_sample": False,
    "set_alpha_to_one": False, "steps_offset": 1, "prediction_type": "v_prediction",
}  # fmt: skip
VIT = {  # whose labels are not in our order
    "model_type": "vit", "hidden_size": 16, "intermediate_size": 32,
    "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
    "patch_size": 8, "id2label": {"0": "Man", "1": "Woman"},
}  # fmt: skip
PREPROCESSOR = {
    "size": {"height": 16, "width": 16}, "resample": 2, "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}  # fmt: skip

# As SDXL's, with all that sets it apart from 1.x and 2.x.
PROJECTING = {
    "hidden_size": 24, "num_hidden_layers": 2, "projection_dim": 20,
    "hidden_act": "gelu", "architectures": ["CLIPTextModelWithProjection"],
}  # fmt: skip
UNET_XL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8, "mid_block_type": None,
    "cross_attention_dim": 16 + 24, "down_block_types": ["CrossAttnDownBlock2D"],
    "use_linear_projection": True, "transformer_layers_per_block": 8,
}  # fmt: skip
SCHEDULER_XL = {
    "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear",
    "prediction_type": "epsilon", "timestep_spacing": "leading",
    "use_karras_sigmas": False,
}  # fmt: skip
XL = {
    "text_encoder": TEXT | {"num_hidden_layers": 2},
    "text_encoder_2": TEXT | PROJECTING,
    "unet": UNET | UNET_XL,
    "vae": VAE | {"scaling_factor": 0.13025, "force_upcast": True},
    "scheduler": SCHEDULER | SCHEDULER_XL,
}
# Stable Diffusion 3, as small: a row and the last layer; and a T5 for it.
TEXT_OF_3 = TEXT | {"projection_dim": 8}
TRANSFORMER = {
    "_class_name": "SD3Transformer2DModel", "sample_size": 8, "patch_size": 2,
    "in_channels": 4, "out_channels": 4, "num_layers": 9, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 40, "caption_projection_dim": 16,
    "pooled_projection_dim": 16, "pos_embed_max_size": 6, "qk_norm": "rms_norm",
    "dual_attention_layers": [*range(8)],
}  # fmt: skip
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
CONFIGS_3 = {
    "transformer": TRANSFORMER,
    "vae": VAE
    | {"scaling_factor": 1.5, "shift_factor": 0.1}
    | dict.fromkeys(("use_quant_conv", "use_post_quant_conv"), False),
    "text_encoder": TEXT_OF_3,
    "text_encoder_2": TEXT_OF_3 | {"num_hidden_layers": 2, "hidden_act": "gelu"},
    "scheduler": FLOW | {"shift": 3.0},
}
T5 = {
    "model_type": "t5", "vocab_size": 110, "d_model": 40, "d_kv": 8, "d_ff": 32,
    "num_layers": 1, "num_heads": 2, "feed_forward_proj": "gated-gelu",
}  # fmt: skip

CONFIGS = {"text_encoder": TEXT, "unet": UNET, "vae": VAE, "scheduler": SCHEDULER}


def draw(template: dict) -> dict:
    """Random weights that keep a signal's size from layer to layer."""
    flat = parity.draw(template)

    def rescale(path: tuple, array: np.ndarray) -> np.ndarray:
        if path[-1].key != "kernel":
            return array
        fan_in = math.prod(array.shape[array.ndim == 3 : -1])  # of one layer of a row
        return np.float32(array * 10.0 / math.sqrt(fan_in))  # parity.draw has 0.1

    return jax.tree_util.tree_map_with_path(rescale, flat)


def save_model(
    folder: Path,
    prompts: Sequence[str] = PROMPTS,
    configs: dict = CONFIGS,
    draw: Callable = draw,
    length: int | None = None,
) -> Path:
    """A model in the diffusers layout, whose tokenizer knows the words of prompts."""
    pretrain_tokenizer.save(folder / "tokenizer", list(prompts))
    settings = folder / "tokenizer" / "tokenizer_config.json"
    kept = json.loads(settings.read_text())
    del kept[prompt_tokens.CUT]  # as with all models but the embedded one
    kept["model_max_length"] = length or kept["model_max_length"]
    settings.write_text(json.dumps(kept))
    end = len(json.loads((folder / "tokenizer" / "vocab.json").read_text())) - 1
    ends, configs = {"vocab_size": end + 1, "eos_token_id": end}, dict(configs)
    for part in {networks.TEXT, networks.TEXT_2} & configs.keys():
        configs[part] = {**configs[part], **ends}
    if networks.TEXT_2 in configs:
        shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    templates = networks.templates(networks.of_configs(configs, jnp.float32))
    for part, config in configs.items():
        if part == "scheduler":
            (folder / part).mkdir()
            (folder / part / "scheduler_config.json").write_text(json.dumps(config))
            continue
        text = part.startswith(networks.TEXT)
        name = "model.safetensors" if text else stable_diffusion.WEIGHTS
        weights.save(folder / part, draw(templates[part]), config, name)
    return folder


def add_t5(folder: Path) -> None:
    """A T5, whose tokenizer knows some letters, beside Stable Diffusion 3's others."""
    pieces = [(piece, -1.0) for piece in ["<pad>", "</s>", "<unk>", *"▁photfe"]]
    transformers.T5Tokenizer(pieces).save_pretrained(folder / "tokenizer_3")
    encoder = t5.Encoder(t5.Config.from_dict(T5))
    template = weights.init_template(encoder, jax.ShapeDtypeStruct((1, 9), jnp.int32))
    weights.save(folder / networks.TEXT_3, draw(template), T5, "model.safetensors")


def save_classifier(folder: Path, labels: tuple[str, ...] = ("Man", "Woman")) -> Path:
    """The classifier, whose answers differ much from image to image."""

    def steep(template: dict) -> dict:
        params = draw(template)
        params["classifier"]["kernel"] *= 20.0
        return params

    config = {**VIT, "id2label": {str(i): label for i, label in enumerate(labels)}}
    return save_vit(folder, config, 16, steep)


def save_vit(folder: Path, config: dict, side: int, draw: Callable) -> Path:
    """A classifier of images of so many pixels, in the layout of transformers."""
    network = vit.ImageClassifier(vit.Config.from_dict(config))
    params = draw(weights.init_template(network, (1, side, side, 3)))
    weights.save(folder, params, config, "model.safetensors")
    size = {"size": {"height": side, "width": side}}
    content = json.dumps(PREPROCESSOR | size)
    (folder / "preprocessor_config.json").write_text(content)
    return folder


def config(model: Path, classifier: Path, runs: Path, **changes):
    """Settings of a run of seconds: 4 epochs of 16 images on 8 devices.

    Runs that differ in what is not compiled share their programs: JAX caches them.
    """
    settings = configuration.defaults()
    settings.model, gender = str(model), settings.attributes.gender
    gender.classifier, gender.confidence_threshold = str(classifier), 0.5
    settings.run.dir, settings.run.name = str(runs), "tiny"
    settings.prompts = PROMPTS[:1]
    settings.epochs = 4
    settings.sample.num_steps = 4
    settings.sample.batch_per_device = 1
    settings.sample.batches = 2
    settings.sample.guidance_scale = 3.0
    settings.train.timestep_fraction = 1.0
    settings.train.skip_last_steps = 0
    settings.train.updates_per_epoch = 2
    settings.train.microbatch = 4
    # Adam moves a weight that far whatever its gradient is, even if that is rounding,
    # in which runs on eight devices and on one differ.
    settings.train.learning_rate = 1e-4
    settings.train.lora.rank = 2
    settings.train.lora.target_modules = ("to_q", "to_v", "conv_out")
    settings.eval.images = 12
    settings.log.images = 4
    settings.update_from_flattened_dict(changes)
    return settings
