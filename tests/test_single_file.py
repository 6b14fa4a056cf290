"""Single-file checkpoints: diffusers converts them once; each refusal has its words."""

import importlib.util
import json
import re
import shutil

import jax
import numpy as np
import official_configs
import parity
import pytest
import tiny_model
from safetensors import numpy as safetensors_numpy

from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.embedded import pretrain_tokenizer
from ddpo_fair.errors import UserError
from ddpo_fair.models import single_file, sources

NARROW = {"block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4}
CHANGES = {
    "unet": NARROW | {"attention_head_dim": 2, "cross_attention_dim": 16},
    "vae": NARROW,
    "text_encoder": {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 2,
    },
}

CHANGES_XL = {
    "unet": {
        "block_out_channels": [8, 16, 16], "norm_num_groups": 4,
        "attention_head_dim": 2, "cross_attention_dim": 40,
        "transformer_layers_per_block": 1, "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 20 + 6 * 8,
    },
    "vae": NARROW,
    "text_encoder": CHANGES["text_encoder"],
    "text_encoder_2": CHANGES["text_encoder"] | {"hidden_size": 24,
        "projection_dim": 20, "intermediate_size": 48},
}  # fmt: skip

# The layout of https://github.com/CompVis/stable-diffusion, from diffusers' names: what
# replaces what, in a UNet of blocks of two layers, of four the deepest without
# attention; and that of OpenCLIP.
ENDS = {
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.", "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.", "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip
OPEN_CLIP = {
    "text_model.": "", "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding": "token_embedding", "final_layer_norm": "ln_final",
    "encoder.layers": "transformer.resblocks", "layer_norm": "ln_",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn": "attn",
    "text_projection.weight": "text_projection",
}  # fmt: skip
VAE = {
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
    "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
    "mid_block.attentions.0.to_": "mid.attn_1.",
}  # fmt: skip
for block in range(4):
    for layer in range(3):
        for place, part in enumerate(("resnets", "attentions")):
            down, up = (f"{x}_blocks.{block}.{part}.{layer}." for x in ("down", "up"))
            ENDS[down] = f"input_blocks.{3 * block + layer + 1}.{place}."
            ENDS[up] = f"output_blocks.{3 * block + layer}.{place}."
    sampler = f"_blocks.{block}.{{}}samplers.0."
    ENDS[f"down{sampler.format('down')}conv"] = f"input_blocks.{3 * block + 3}.0.op"
    place = f"output_blocks.{3 * block + 2}.{1 if block == 0 else 2}."
    ENDS[f"up{sampler.format('up')}"] = place
    VAE[f"down_blocks.{block}.resnets"] = f"down.{block}.block"
    VAE[f"down{sampler.format('down')}"] = f"down.{block}.downsample."
    VAE[f"up_blocks.{block}.resnets"] = f"up.{3 - block}.block"
    VAE[f"up{sampler.format('up')}"] = f"up.{3 - block}.upsample."


def original_unet_name(name: str, blocks: int) -> str:
    (here,) = (here for here in ENDS if name.startswith(here))
    if blocks == 3 and here.startswith("up_blocks.0.upsamplers"):  # behind attention
        return name.replace(here, "output_blocks.2.2.")
    head, _, tail = name.removeprefix(here).partition(".")
    return f"{ENDS[here]}{RESNET.get(head, head)}.{tail}".removesuffix(".")


def original_vae_name(name: str) -> str:
    for here, there in VAE.items():
        name = name.replace(here, there)
    return name


def open_clip_layout(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found = {}
    for name, array in tensors.items():
        for here, there in OPEN_CLIP.items():
            name = name.replace(here, there)
        if ".q_proj." in name:  # query, key and value are one there
            others = [tensors[_qkv(name, x)] for x in "qkv"]
            name = name.replace(".q_proj.", ".in_proj_")
            array = np.concatenate(others)
        elif ".k_proj." in name or ".v_proj." in name:
            continue
        found[name] = array.T.copy() if name == "text_projection" else array
    return found


def _qkv(name: str, letter: str) -> str:
    layer, end = re.fullmatch(r".*resblocks\.(\d+)\.attn\.q_proj\.(\w+)", name).groups()
    return f"text_model.encoder.layers.{layer}.self_attn.{letter}_proj.{end}"


def original_layout(parts: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    found, xl = {}, "text_encoder_2" in parts
    for name, array in parts["unet"].items():
        there = original_unet_name(name, 3 if xl else 4)
        found[f"model.diffusion_model.{there}"] = array
    for name, array in parts["vae"].items():
        new = original_vae_name(name)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", new):
            array = array[:, :, None, None]  # a convolution there
        found[f"first_stage_model.{new}"] = array
    for name, array in parts["text_encoder"].items():
        name = "text_model." + name.removeprefix("text_model.")
        place = "conditioner.embedders.0" if xl else "cond_stage_model"
        found[f"{place}.transformer.{name}"] = array
    for name, array in open_clip_layout(parts.get("text_encoder_2", {})).items():
        found[f"conditioner.embedders.1.model.{name}"] = array
    return found


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ddpo_fair" / "single_file"


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(CHANGES, id="small", marks=pytest.mark.long),
        pytest.param(CHANGES_XL, id="small XL", marks=pytest.mark.long),
        pytest.param({x: {} for x in CHANGES}, id="full", marks=pytest.mark.slow),
    ],
)
def test_a_file_equals_its_folder(torch, tmp_path, cache, caplog, changes):
    import diffusers
    import transformers

    folder = tmp_path / "model"
    pretrain_tokenizer.save(folder / "tokenizer", list(tiny_model.PROMPTS))
    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text())
    end = len(vocabulary) - 1
    ends = {"vocab_size": end + 1, "eos_token_id": end, "bos_token_id": end - 1}
    xl = "text_encoder_2" in changes
    published = official_configs.XL if xl else official_configs.SD_1_5
    configs = {part: published[part] | changes[part] for part in changes}
    networks = {
        "unet": diffusers.UNet2DConditionModel.from_config(configs["unet"]),
        "vae": diffusers.AutoencoderKL.from_config(configs["vae"]),
    }
    kinds = transformers.CLIPTextModel, transformers.CLIPTextModelWithProjection
    for part, kind in zip(("text_encoder", "text_encoder_2"), kinds, strict=True):
        if part in configs:
            text = transformers.CLIPTextConfig.from_dict(configs[part] | ends)
            networks[part] = kind(text)
    if xl:
        shutil.copytree(folder / "tokenizer", folder / "tokenizer_2")
    parts = {}
    for seed, (part, network) in enumerate(networks.items()):
        parity.randomise(torch, network, seed).save_pretrained(folder / part)
        (file,) = (folder / part).glob("*.safetensors")
        parts[part] = safetensors_numpy.load_file(file)
    (folder / "scheduler").mkdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    kept = tiny_model.XL["scheduler"] if xl else tiny_model.SCHEDULER
    scheduler.write_text(json.dumps(kept))
    parity.write_index(folder)
    file = folder / "all in one.safetensors"
    safetensors_numpy.save_file(original_layout(parts), file)

    converted = sources.model_folder(str(file))
    assert converted.parent == cache and "once" in caplog.text
    for part, arrays in parts.items():
        (path,) = (converted / part).glob("*.safetensors")
        found = safetensors_numpy.load_file(path)
        assert found.keys() == arrays.keys()
        for name, array in arrays.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    count = sum(array.size for arrays in parts.values() for array in arrays.values())
    loaded = jax.tree.leaves(stable_diffusion.load(converted).params)
    assert sum(array.size for array in loaded) == count

    caplog.clear()
    assert sources.model_folder(str(file)) == converted and not caplog.text
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [converted.name]
    file.write_bytes(file.read_bytes()[:-64])  # no longer the same file
    with pytest.raises(UserError, match=r"cannot be converted.*whole Stable Diffusion"):
        sources.model_folder(str(file))
    assert [one.name for one in cache.iterdir() if one.is_dir()] == [converted.name]


@pytest.mark.parametrize(
    ("field", "name", "message"),
    [
        ("model", "v1-5.ckpt", r"a pickle can run any code.*\*\.safetensors"),
        ("classifier", "vit.safetensors", r"give the folder that holds config\.json"),
    ],
)
def test_other_files_are_refused(tmp_path, cache, field, name, message):
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match=rf"{field}=.*{message}"):
        sources.local_folder(field, str(tmp_path / name))
    assert not cache.exists()


def test_a_missing_converter_and_cache_are_named(tmp_path, cache, monkeypatch):
    (tmp_path / "x.safetensors").write_bytes(b"")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install \"ddpo_fair\[torch\]\""):
        sources.model_folder(str(tmp_path / "x.safetensors"))
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(UserError, match="XDG_CACHE_HOME"):
        single_file.folder_of("model", tmp_path / "x.safetensors")
