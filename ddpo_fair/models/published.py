"""Architectures of the default models, so that they can be planned without a file.

What differs from the defaults of each network's `Config`, which are diffusers' and
transformers'. Source: the config.json files of the repositories named below.
"""

from typing import Any

STABLE_DIFFUSION_1: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "in_channels": 4, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
    },
    "scheduler": {
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "steps_offset": 1,
    },
}
MODELS = {
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
}
# ViT-Base/16 at 224 pixels, with transformers' ViTImageProcessor: its config.json and
# preprocessor_config.json.
CLASSIFIERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rizvandwiki/gender-classification-2": (
        {"id2label": {"0": "female", "1": "male"}},
        {},
    )
}
