"""The names that files of LoRA have for a model's layers: PEFT's, diffusers', kohya's.

kohya's scripts train SDXL in Stability AI's code, whose UNet names its layers by their
place in one list of blocks; ComfyUI and most LoRA of SDXL have these names.
"""

import functools
import re
from collections.abc import Iterable

# What a file may hold that is no plain LoRA, by the names of its tensors.
STRANGE = {
    "DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "LoCon with a core, not LoRA": re.compile(r"lora_mid\b"),
    "LoHa, LoKr or OFT, not LoRA": re.compile(r"\.(hada|lokr|oft)_"),
    "names of Stable Diffusion 3's own code": re.compile(r"joint_blocks"),
}
TENSOR = re.compile(r"(.+)\.(?:lora_(down|up)\.weight|(alpha))")
SPELLINGS = (  # diffusers' of several years, and PEFT's, as kohya's
    (r"\.processor\.to_([qkv])_lora\.", r".to_\1.lora."),
    (r"\.processor\.to_out_lora\.", r".to_out.0.lora."),
    (r"\.lora(?:_linear_layer)?\.(down|up)\.weight$", r".lora_\1.weight"),
    (r"\.lora_A\.weight$", r".lora_down.weight"),
    (r"\.lora_B\.weight$", r".lora_up.weight"),
)
BLOCK = re.compile(r"(down|mid|up)_blocks?(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")
ORIGINAL = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
ORIGINAL_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}


def parse(name: str) -> tuple[str, str] | None:
    """A tensor's layer, in its file's words, and "down", "up" or "alpha"; or None."""
    plain = functools.reduce(lambda x, rule: re.sub(*rule, x), SPELLINGS, name)
    match = TENSOR.fullmatch(plain)
    return (match[1], match[2] or match[3]) if match else None


def layers(paths: Iterable[str]) -> dict[str, str]:
    """Paths of a model's layers, e.g. "unet.conv_in", by their names in any file.

    The VAE has none: no LoRA is of it.
    """
    found, paths = {}, [path for path in paths if not path.startswith("vae.")]
    counted = re.compile(r"unet\.up_blocks\.0\.resnets\.\d+\.conv1")
    each = sum(map(bool, map(counted.fullmatch, paths)))
    for path in paths:
        part, _, layer = path.partition(".")
        if part.startswith("text_encoder"):
            number = part.removeprefix("text_encoder").strip("_")
            names = [path, path.replace(".text_model.", ".")]  # as transformers 5 has
            kohyas = [f"lora_te{x}_{layer}" for x in (number, number or 1)]
        else:
            names = [path, layer, f"base_model.model.{layer}"]
            kohyas = [f"lora_unet_{x}" for x in (layer, _original(layer, each))]
        names += [name.replace(".", "_") for name in kohyas]
        found |= dict.fromkeys(names, path)
    return found


def _original(layer: str, each: int) -> str:
    """A UNet's layer in Stability AI's code, where `each` blocks make one of ours."""
    if not (match := BLOCK.fullmatch(layer)):
        return ORIGINAL.get(layer, layer)
    side, block, kind, index, rest = match.groups()
    first, number, attention = int(block or 0) * each, int(index), kind == "attentions"
    if kind == "resnets":
        rest = ORIGINAL_RESNET.get(rest, rest)
    if kind == "downsamplers":
        return f"input_blocks.{first + each}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + each - 1}.2.conv"
    if side == "mid":
        return f"middle_block.{1 if attention else 2 * number}.{rest}"
    if side == "down":
        return f"input_blocks.{first + number + 1}.{int(attention)}.{rest}"
    return f"output_blocks.{first + number}.{int(attention)}.{rest}"
