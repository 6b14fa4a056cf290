"""Files of LoRA adapters: those of diffusers, PEFT, and kohya, written and read."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy

from ddpo_fair import files
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import hub, lora, lora_names, rows, sources, tensor_files, weights
from ddpo_fair.models.lora import Adapters

# What load_lora_weights(folder) and PeftModel.from_pretrained(unet, folder) look for.
DIFFUSERS, PEFT = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
KOHYA = "kohya_lora.safetensors"  # ComfyUI and AUTOMATIC1111 take any name

_of_hubs: dict[str, Path] = {}  # that this process has asked for


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
    for path, adapter in rows.apart(adapters).items():
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
            "target_modules": list(rows.apart(adapters)),
        }
        files.replace(path.with_name(PEFT_CONFIG), files.json_text(config, indent=2))


def find(file: str | os.PathLike, setting: str = "--lora") -> Path:
    """The file of a setting, its folder's, or the hub's; a UserError without one."""
    path = files.given(setting, file)
    name = os.fspath(file)
    is_name = sources.MODEL_NAME.fullmatch(name) and path.suffix != ".safetensors"
    if is_name and not path.exists():
        if name not in _of_hubs:  # who asks again shall not wait for the hub again
            _of_hubs[name] = _of_hub(name, setting)
        return _of_hubs[name]
    if path.is_dir():
        inside = (path / name for name in (DIFFUSERS, PEFT, KOHYA))
        path = next(filter(Path.is_file, inside), path)
    if not path.is_file():
        raise UserError(
            f"{setting}={shown(name)} is no file, nor a folder with"
            f" {DIFFUSERS}, {PEFT} or {KOHYA}; give a *.safetensors of LoRA, what"
            " ddpo_fair.export wrote, or owner/name on the Hugging Face hub."
        )
    return path


def _of_hub(reference: str, setting: str) -> Path:
    """The file of adapters of "owner/name", downloaded if need be; or a UserError."""

    def chosen(names: set[str]) -> str:
        usual = [name for name in (DIFFUSERS, PEFT, KOHYA) if name in names]
        at_top = sorted(x for x in names if "/" not in x and x.endswith(".safetensors"))
        if not usual and len(at_top) != 1:
            there = f"it has {', '.join(at_top)}" if at_top else "it has none"
            name = reference.partition("@")[0]
            raise UserError(
                f"{setting}={shown(reference)} must have one *.safetensors of LoRA, and"
                f" {shown(there)}; `hf download {name} FILE --local-dir FOLDER`, and"
                " give that file."
            )
        return (usual or at_top)[0]

    def wanted(names: set[str]) -> list[str]:
        return [chosen(names), PEFT_CONFIG]

    folder = hub.fetch(f"{setting}={reference!r}", reference, wanted)
    return folder / chosen({path.name for path in folder.iterdir()})


def called(reference: str) -> str:
    """A file's name, or that of the hub without its revision, to write on exports."""
    path = Path(reference)
    return path.name if path.is_absolute() else reference.partition("@")[0]


def identity(file: str | os.PathLike, setting: str = "--lora") -> dict[str, Any]:
    """What a file of adapters is, and its settings; see `sources.identity`."""
    path = find(file, setting)
    paths = [path, *[path.with_name(PEFT_CONFIG)] * (path.name == PEFT)]
    found = sources.fingerprint({x.name: x for x in paths if x.is_file()})
    revision = None if files.given(setting, file).exists() else path.parent.name
    return {"folder": str(path.parent), "revision": revision, **found}


def load(file: str | os.PathLike, params: dict[str, Any]) -> Adapters:
    """The adapters of a file of PEFT, diffusers or kohya, or of a folder with one.

    Args:
        file: of layers of the model; what is not the model's is refused by name.
        params: nested dicts of the model's parts, or their shapes.

    Returns:
        Adapters by paths in `params`, e.g. "unet.conv_in", whose `merge` has scale 1:
        alpha / rank is multiplied into `up`.
    """
    path = find(file)
    tensors, together = tensor_files.open_all([path]), lora.kernels_of(params)
    kernels = rows.apart(together)
    layers, found = lora_names.layers(kernels), {}
    for name in tensors:
        stem, kind = lora_names.parse(name) or ("", "")
        if stem in layers:  # a second name of the same is a stranger below
            found.setdefault(layers[stem], {}).setdefault(kind, name)
    found = {x: names for x, names in found.items() if {"down", "up"} <= names.keys()}
    used = {name for names in found.values() for name in names.values()}
    if strangers := sorted(tensors.keys() - used):
        named = ", ".join(name[:200] for name in strangers[: weights.MOST_NAMED])
        strange = lora_names.STRANGE.items()
        kinds = [x for x, of in strange if any(map(of.search, strangers))]
        whole = f" ({kinds[0]})" if kinds else ""
        raise UserError(
            f"{path} holds {len(strangers)} tensors that are no pair of LoRA for a"
            f" layer of this model{whole}, the first: {named}. Give LoRA of this very"
            " model; or merge it with diffusers' fuse_lora(), unload_lora_weights() and"
            " save_pretrained(FOLDER), and give that folder as the model."
        )
    if not found:
        raise UserError(f"{path} holds no adapters; give what ddpo_fair.export wrote.")
    parts = {layer: layer.partition(".")[0] for layer in found}
    alphas = {part: _alpha(path, part) for part in {*parts.values()}}
    adapters = {
        layer: _adapter(tensors, names, kernels[layer].shape, alphas[parts[layer]])
        for layer, names in found.items()
    }
    return _in_rows(adapters, together)


def _in_rows(adapters: Adapters, kernels: dict[str, Any]) -> Adapters:
    """Adapters of layers, those of a row together, by the paths of the kernels.

    A row has the largest rank of its layers; what is missing is zeros.
    """
    found = {}
    for path, kernel in kernels.items():
        each = [adapters.get(layer) for layer in rows.members(path)]
        if not any(each):
            continue
        if len(each) > 1:
            rank = max(x["down"].shape[-1] for x in each if x)
            *_, fan_in, fan_out = kernel.shape
            each = [_filled(x, fan_in, rank, fan_out) for x in each]
        found[path] = rows.together(each, np)
    return found


def _filled(
    adapter: dict[str, np.ndarray] | None, fan_in: int, rank: int, fan_out: int
) -> dict[str, np.ndarray]:
    """The adapter, or none, of a dense layer, of a larger rank by zeros."""
    filled = {"down": np.zeros((fan_in, rank), np.float32)}
    filled["up"] = np.zeros((rank, fan_out), np.float32)
    if adapter:
        own = adapter["down"].shape[-1]
        filled["down"][:, :own], filled["up"][:own] = adapter["down"], adapter["up"]
    return filled


def _adapter(
    tensors: tensor_files.Tensors,
    names: Mapping[str, str],
    shape: tuple[int, ...],
    alpha: float | None,
) -> dict[str, np.ndarray]:
    """Tensors of these names as an adapter of a kernel of this shape.

    Its own alpha, if it has one, goes before the one given; None is the rank.
    """
    for name in (names["down"], names["up"]):
        file, path, there = tensors[name]
        if (kind := file.get_slice(there).get_dtype()) not in weights.FLOATS:
            raise UserError(
                f"{name} of {path} is of type {kind}; save it as one of"
                f" {', '.join(weights.FLOATS)}."
            )
    found = {x: tensor_files.read(tensors, name) for x, name in names.items()}
    *window, fan_in, fan_out = shape
    rank = max((1, *found["down"].shape[:1]))
    wanted = {
        "down": (rank, fan_in, *window),
        "up": (fan_out, rank, *(1 for _ in window)),
        "alpha": (),
    }
    for x, array in found.items():
        if array.shape != wanted[x]:
            raise UserError(
                f"{names[x]} of {tensors[names[x]][1]} has shape {shown(array.shape)},"
                f" expected {wanted[x]}; give LoRA of this very model."
            )
    if "alpha" in found:
        alpha = found["alpha"].item()
    scale = 1.0 if alpha is None else alpha / rank
    each = (float(np.abs(found[x]).max()) for x in ("down", "up"))
    if not abs(scale) * math.prod(each) < 3e38:  # float32 ends there; nan is not
        raise UserError(f"{names['up']} times down and alpha is not finite; mend it.")
    down, up = (weights.from_torch("kernel", found[x]) for x in ("down", "up"))
    return {"down": down, "up": np.float32(scale) * up}


def _alpha(path: Path, part: str) -> float | None:
    """alpha of a part by PEFT's settings, beside the file or in it; None without."""
    with safetensors.safe_open(path, framework="numpy") as file:
        text = (file.metadata() or {}).get("lora_adapter_metadata", "{}")
    try:
        settings = {x.removeprefix(f"{part}."): y for x, y in json.loads(text).items()}
        if path.name == PEFT and path.with_name(PEFT_CONFIG).is_file():
            settings = tensor_files.read_json(path.with_name(PEFT_CONFIG))
        odd = ("use_rslora", "use_dora", "alpha_pattern")
        if any(settings.get(name) for name in odd):
            raise ValueError(f"of {', '.join(odd)} one is set")
        alpha = settings.get("lora_alpha")
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path}: its LoRA settings cannot be used ({error}); merge it into the"
            " model with PEFT's merge_and_unload() and give that as the model."
        ) from None
