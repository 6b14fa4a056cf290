"""Adapters in the file format that diffusers and PEFT read."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.numpy

from ddpo_fair import errors
from ddpo_fair.models import lora, weights

# What load_lora_weights(folder) looks for.
FILENAME = "pytorch_lora_weights.safetensors"
PREFIX = "unet"  # the pipeline's part that the adapters belong to


def tensors(adapters: lora.Adapters, scale: float) -> dict[str, np.ndarray]:
    """Float32 tensors by their names in the file, e.g. "unet.conv_in.lora_A.weight".

    PEFT adds (alpha / rank) * lora_B @ lora_A to a weight, and readers that find no
    alpha take alpha = rank. So the scale, which is alpha / rank in training, is
    multiplied into lora_B, and the file means the same to every reader.
    """
    named = {}
    for path, adapter in adapters.items():
        up = np.asarray(adapter["up"], np.float32) * np.float32(scale)
        name = f"{PREFIX}.{path}"
        named[f"{name}.lora_A.weight"] = weights.to_torch("kernel", adapter["down"])
        named[f"{name}.lora_B.weight"] = weights.to_torch("kernel", up)
    return named


def save(
    folder: str | os.PathLike,
    adapters: lora.Adapters,
    scale: float,
    metadata: Mapping[str, str],
) -> Path:
    """Writes `tensors` and what they are to a folder that exists; returns the file.

    Raises:
        UserError: if a number is not finite.
    """
    named = tensors(adapters, scale)
    for name, array in named.items():
        if not np.isfinite(array).all():
            raise errors.UserError(
                f"{name} of the adapters is not finite: training has broken down;"
                " export an earlier checkpoint."
            )
    path = Path(folder) / FILENAME
    safetensors.numpy.save_file(named, path, metadata={"format": "pt", **metadata})
    return path
