"""Adapters in the file formats that others read: diffusers', PEFT's and kohya's."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from ddpo_fair import errors
from ddpo_fair.models import lora, weights

# What load_lora_weights(folder) and PeftModel.from_pretrained(unet, folder) look for.
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
KOHYA = "kohya_lora.safetensors"  # ComfyUI and AUTOMATIC1111 take any name


def tensors(adapters: lora.Adapters, scale: float, file: str) -> dict[str, np.ndarray]:
    """Float32 tensors by their names in a file: `DIFFUSERS`, `PEFT` or `KOHYA`.

    Readers add (alpha / rank) * up @ down to a weight, and some know no alpha but the
    rank. So the scale, which is alpha / rank in training, is multiplied into `up`, and
    the file means the same to every reader.
    """
    named = {}
    for path, adapter in adapters.items():
        down = weights.to_torch("kernel", adapter["down"])
        up = np.asarray(adapter["up"], np.float32) * np.float32(scale)
        up = weights.to_torch("kernel", up)
        if file == KOHYA:
            name = f"lora_unet_{path.replace('.', '_')}"
            named[f"{name}.lora_down.weight"] = down
            named[f"{name}.lora_up.weight"] = up
            named[f"{name}.alpha"] = np.asarray(len(down), np.float32)
            continue
        name = f"{'unet' if file == DIFFUSERS else 'base_model.model'}.{path}"
        named[f"{name}.lora_A.weight"] = down
        named[f"{name}.lora_B.weight"] = up
    return named


def save(
    folder: str | os.PathLike,
    adapters: lora.Adapters,
    scale: float,
    metadata: Mapping[str, str],
    file: str,
) -> None:
    """Writes `tensors` and what they are to a folder that exists.

    Raises:
        UserError: if a number is not finite.
    """
    named = tensors(adapters, scale, file)
    for name, array in named.items():
        if not np.isfinite(array).all():
            raise errors.UserError(
                f"{name} of the adapters is not finite: training has broken down;"
                " export an earlier checkpoint."
            )
    path = Path(folder) / file
    safetensors.numpy.save_file(named, path, metadata={"format": "pt", **metadata})
    if file == PEFT:
        rank = int(metadata["rank"])
        config = {
            "base_model_name_or_path": metadata["base_model"],
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": rank,
            "target_modules": list(adapters),
        }
        text = json.dumps(config, indent=2) + "\n"
        path.with_name(PEFT_CONFIG).write_text(text, encoding="utf-8")
