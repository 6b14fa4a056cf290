"""Files of LoRA adapters: those of diffusers, PEFT, and kohya, written and read."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ddpo_fair import files
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import lora, sources, tensor_files, weights
from ddpo_fair.models.lora import Adapters

# What load_lora_weights(folder) and PeftModel.from_pretrained(unet, folder) look for.
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
KOHYA = "kohya_lora.safetensors"  # ComfyUI and AUTOMATIC1111 take any name
# What files of others may hold instead, by the names of its tensors.
STRANGE = {
    "DoRA": re.compile(r"dora_scale|lora_magnitude_vector"),
    "LoCon with a core, not LoRA": re.compile(r"lora_mid\b"),
    "LoHa, LoKr or OFT, not LoRA": re.compile(r"\.(hada|lokr|oft)_"),
    "adapters of a text encoder": re.compile(r"^(lora_te\d?_|text_encoder)"),
    "names of SDXL's original code": re.compile(r"^lora_unet_(input|middle|output)_"),
}


def tensors(
    adapters: Adapters, scale: float, file: str, part: str = "unet"
) -> dict[str, np.ndarray]:
    """Float32 tensors by their names in a file: `DIFFUSERS`, `PEFT` or `KOHYA`.

    The part is the network's folder; kohya has names for a UNet's layers alone.

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
        name = f"{part if file == DIFFUSERS else 'base_model.model'}.{path}"
        named[f"{name}.lora_A.weight"] = down
        named[f"{name}.lora_B.weight"] = up
    return named


def save(
    folder: str | os.PathLike,
    adapters: Adapters,
    scale: float,
    metadata: Mapping[str, str],
    file: str,
    part: str = "unet",
) -> None:
    """Writes `tensors` and metadata to a folder; a UserError if one is not finite."""
    named = tensors(adapters, scale, file, part)
    for name, array in named.items():
        if not np.isfinite(array).all():
            raise UserError(
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
        files.replace(path.with_name(PEFT_CONFIG), files.json_text(config, indent=2))


def find(file: str | os.PathLike) -> Path:
    """The file of --lora, which may be its folder; a UserError if there is none."""
    path = files.given("--lora", file)
    if path.is_dir():
        inside = (path / name for name in (DIFFUSERS, PEFT, KOHYA))
        path = next(filter(Path.is_file, inside), path)
    if not path.is_file():
        raise UserError(
            f"--lora={shown(os.fspath(file))} is no file, nor a folder with"
            f" {DIFFUSERS}, {PEFT} or {KOHYA}; give what ddpo_fair.export wrote."
        )
    return path


def fingerprint(file: str | os.PathLike) -> str:
    """Of the adapters' names and values in a file: of all its bytes, and settings."""
    path = find(file)
    paths = [path, *[path.with_name(PEFT_CONFIG)] * (path.name == PEFT)]
    return sources.fingerprint({x.name: x for x in paths if x.is_file()})[0]


def load(file: str | os.PathLike, params: dict[str, Any]) -> Adapters:
    """The adapters of a file in one of `save`'s formats, or of a folder with one.

    Args:
        file: of layers of the network; what is not the network's is refused.
        params: nested dicts of the network, or their shapes.

    Returns:
        Adapters whose `merge` has scale 1: alpha / rank is multiplied into `up`.
    """
    path = find(file)
    tensors, adapters, used = tensor_files.open_all([path]), {}, set()
    for layer, kernel in lora.kernels_of(params).items():
        for stem, down, up in (
            (f"unet.{layer}", "lora_A", "lora_B"),
            (f"transformer.{layer}", "lora_A", "lora_B"),
            (f"base_model.model.{layer}", "lora_A", "lora_B"),
            (f"lora_unet_{layer.replace('.', '_')}", "lora_down", "lora_up"),
        ):
            names = [f"{stem}.{half}.weight" for half in (down, up)]
            if set(names) <= tensors.keys():
                halves = [tensor_files.read(tensors, name) for name in names]
                adapters[layer] = _adapter(path, names, halves, kernel.shape)
                alpha = f"{stem}.alpha"
                used |= {*names, alpha}
                if alpha in tensors:
                    factor = tensor_files.read(tensors, alpha).item() / len(halves[0])
                    adapters[layer]["up"] = adapters[layer]["up"] * np.float32(factor)
    if strangers := sorted(tensors.keys() - used):
        named = ", ".join(name[:200] for name in strangers[: weights.MOST_NAMED])
        kinds = [x for x, of in STRANGE.items() if any(map(of.search, strangers))]
        whole = f" ({kinds[0]})" if kinds else ""
        raise UserError(
            f"{path} holds {len(strangers)} tensors that fit no layer of this model's"
            f" UNet or transformer{whole}, the first: {named}. Give adapters of that"
            " alone, of this very model, in the names that ddpo_fair.export writes; an"
            " audit with --engine=diffusers reads whatever diffusers can."
        )
    if not adapters:
        raise UserError(f"{path} holds no adapters; give what ddpo_fair.export wrote.")
    factor = np.float32(_scale(path))
    return {x: {**one, "up": one["up"] * factor} for x, one in adapters.items()}


def _adapter(
    path: Path, names: list[str], halves: list[np.ndarray], shape: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """Two tensors of a file as an adapter of a kernel of this shape."""
    *window, fan_in, fan_out = shape
    rank = len(halves[0])
    wanted = [(rank, fan_in, *window), (fan_out, rank, *(1 for _ in window))]
    for name, half, expected in zip(names, halves, wanted, strict=True):
        if half.shape != expected or not np.isfinite(half).all():
            raise UserError(
                f"{name} of {path} has shape {shown(half.shape)}, expected {expected},"
                " or is not finite; give adapters of this very model."
            )
    return dict(
        zip(
            ("down", "up"),
            (weights.from_torch("kernel", half) for half in halves),
            strict=True,
        )
    )


def _scale(path: Path) -> float:
    """alpha / rank of PEFT's settings, beside the file or in it; 1 if it has none."""
    with safetensors.safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        settings = {x.rpartition(".")[2]: y for x, y in json.loads(text).items()}
        if path.name == PEFT and (path.with_name(PEFT_CONFIG)).is_file():
            settings = tensor_files.read_json(path.with_name(PEFT_CONFIG))
        odd = ("use_rslora", "use_dora", "alpha_pattern", "rank_pattern")
        if any(settings.get(name) for name in odd):
            raise ValueError(f"of {', '.join(odd)} one is set")
        return settings.get("lora_alpha", 1) / settings.get("r", 1)
    except (ValueError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise UserError(
            f"{path}: its LoRA settings cannot be used ({error}); merge it into the"
            " model with PEFT's merge_and_unload() and give that as --model."
        ) from None
