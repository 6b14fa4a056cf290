"""Weights of the networks in the official safetensors folders, strict both ways.

The path of a parameter, joined by dots, is the name of its tensor; only the last
piece and the order of the axes differ between Flax and PyTorch.
"""

import json
import os
import pathlib
import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import traverse_util

from ddpo_fair import files
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import rows, tensor_files

Params = dict[str, Any]  # nested dicts of arrays

FLOATS = ("F16", "BF16", "F32", "F64")
MOST_NAMED = 8  # tensors that one message lists
LONGEST_NAME = 200  # characters of one that should not be there

# Tensors of published files that no forward pass of ours reads.
UNREAD = re.compile(
    r".*\.position_ids|vit\.pooler\.dense\.(weight|bias)"
    r"|logit_scale|(text|visual)_projection\.weight|vision_model\..*"  # CLIP's others
    r"|encoder\.embed_tokens\.weight"  # T5's, a copy of `shared`
)
ADAPTERS = re.compile(r"[._]lora([._]|$)")

# Older or newer spellings of a name: (pattern of the official one, replacement).
SPELLINGS = (
    # Stable Diffusion 1.x was saved before diffusers renamed the VAE's attention.
    (r"(mid_block\.attentions\.0)\.to_q\.", r"\1.query."),
    (r"(mid_block\.attentions\.0)\.to_k\.", r"\1.key."),
    (r"(mid_block\.attentions\.0)\.to_v\.", r"\1.value."),
    (r"(mid_block\.attentions\.0)\.to_out\.0\.", r"\1.proj_attn."),
    # transformers 5 saves CLIPTextModel without this prefix (and opens both).
    (r"^text_model\.", ""),
    (r"^shared\.", "encoder.embed_tokens."),  # T5's, by either of its two names
)


def init_template(
    network: nn.Module, *inputs: tuple[int, ...] | jax.ShapeDtypeStruct
) -> Params:
    """Shapes and dtypes of a network's parameters, from its inputs' (float32)."""
    structs = [
        jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple) else x
        for x in inputs
    ]
    return _init.eval_shape(network, jax.random.key(0), *structs)["params"]


@partial(jax.jit, static_argnums=0)  # which traces the same network once
def _init(network: nn.Module, key: jax.Array, *inputs: jax.Array) -> Params:
    return network.init(key, *inputs)


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The parsed config.json of a folder; a UserError if there is none."""
    return tensor_files.read_json(pathlib.Path(folder) / "config.json")


def load(
    folder: str | os.PathLike, template: Params, variant: str | None = None
) -> Params:
    """Parameters of a folder, as float32 NumPy arrays; the caller places them.

    One tensor is read at a time, so the peak is the parameters and one tensor, or those
    of one row (`rows`). For folder and variant see `tensor_files.find`. The template is
    nested dicts of shapes, e.g. of `init_template`; kernels [in, out] or
    [k, k, in, out], where the files have [out, in] and [out, in, k, k]. Raises a
    UserError that names every tensor that is missing, left over or misshapen, or one
    that is not finite, and the file; or says why there is no file to read.
    """
    paths = tensor_files.find(pathlib.Path(folder), variant)
    tensors = tensor_files.open_all(paths)
    if adapter := next(filter(ADAPTERS.search, tensors), None):
        raise UserError(
            f"{tensors[adapter][1]} holds adapters ({adapter}), and not their scale;"
            " merge them into the weights first, with PEFT's merge_and_unload() or"
            " diffusers' fuse_lora() and unload_lora_weights(), and save it again."
        )
    wanted = tensor_shapes(template)
    spelled = {name: _spelling(name, tensors) for name in wanted}
    shapes = {spelled[name]: shape for name, shape in wanted.items()}
    if wrong := list(_misfits(shapes, tensors)):
        more = f"; and {len(wrong) - MOST_NAMED} more" if wrong[MOST_NAMED:] else ""
        raise UserError(
            f"{' and '.join(map(str, paths))}: the weights do not fit config.json:"
            f" {'; '.join(wrong[:MOST_NAMED])}{more}. Take both from the same model."
        )

    def read(path: tuple[str, ...], _: Any) -> np.ndarray:
        names = rows.members(_tensor_name(path))
        layers = [_read(path[-1], tensors, spelled[name]) for name in names]
        return rows.together(layers, np)

    return traverse_util.path_aware_map(read, template)


def _read(leaf: str, tensors: tensor_files.Tensors, name: str) -> np.ndarray:
    """One tensor as our parameter; a UserError if it is not finite."""
    array = from_torch(leaf, tensor_files.read(tensors, name))
    if not np.isfinite([array.min(), array.max()]).all():  # a NaN is both
        raise UserError(
            f"{name} of {tensors[name][1]} is not finite (NaN or infinite in"
            " float32): the weights are broken. Take an earlier checkpoint of this"
            " model, or another one."
        )
    return array


def save(
    folder: str | os.PathLike,
    params: Params,
    config_dict: dict[str, Any],
    filename: str = "diffusion_pytorch_model.safetensors",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> None:
    """Writes a folder, made if need be, that diffusers or transformers opens.

    Each file appears whole or not at all. Params are shaped as `load` returns them, and
    must be finite in `dtype`, or a UserError says which is not; the file name is
    "model.safetensors" for transformers' models.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, array in traverse_util.flatten_dict(params).items():
        for name, layer in rows.apart({_tensor_name(path): array}).items():
            tensors[name] = to_torch(path[-1], layer, dtype)
            if not np.isfinite(tensors[name].astype(np.float32)).all():
                raise UserError(
                    f"{folder / filename}: {name} is not finite in "
                    f"{jnp.dtype(dtype).name}; nothing was written."
                )
    with files.replacing(folder / filename) as part:
        safetensors.numpy.save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors writes for the owner's eyes alone
    text = json.dumps(config_dict, indent=2, sort_keys=True)
    files.replace(folder / "config.json", text + "\n")


def _tensor_name(path: tuple[str, ...]) -> str:
    *parents, leaf = path
    leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
    return ".".join((*parents, leaf))


def from_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    """A tensor as float32, a "kernel" from [out, in(, k, k)] to [(k, k,) in, out]."""
    if leaf == "kernel":
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=np.float32)


def to_torch(
    leaf: str, array: jax.Array | np.ndarray, dtype: jax.typing.DTypeLike = jnp.float32
) -> np.ndarray:
    """A parameter as a tensor, "kernel" from [(k, k,) in, out] to [out, in(, k, k)]."""
    array = np.asarray(array)
    if leaf == "kernel":
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(array, dtype=jnp.dtype(dtype))


def tensor_shapes(template: Params) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors in a file of parameters, by their official names."""
    shapes = {}
    for path, leaf in traverse_util.flatten_dict(template).items():
        for name, layer in rows.apart({_tensor_name(path): leaf}).items():
            shape = tuple(layer.shape)
            if path[-1] == "kernel":  # [k, k, in, out] -> [out, in, k, k]
                shape = (*shape[:-3:-1], *shape[:-2])
            shapes[name] = shape
    return shapes


def _spelling(name: str, tensors: dict[str, Any]) -> str:
    """The name under which the files hold a tensor; the official one if none."""
    others = (re.sub(*spelling, name) for spelling in SPELLINGS)
    return next((x for x in (name, *others) if x in tensors), name)


def _misfits(
    shapes: dict[str, tuple[int, ...]], tensors: tensor_files.Tensors
) -> Iterator[str]:
    """What the files lack of the tensors of a template, or have instead or besides."""
    for name, shape in shapes.items():
        expected = list(shape)
        if name not in tensors:
            yield f"{name} {expected} is missing"
            continue
        file, where, there = tensors[name]
        tensor = file.get_slice(there)
        shape, kind = tensor.get_shape(), tensor.get_dtype()
        if shape != expected:
            yield f"{name} of {where} has shape {shown(shape)}, expected {expected}"
        elif kind not in FLOATS:
            allowed = ", ".join(FLOATS)
            yield f"{name} of {where} is of type {kind}, expected one of {allowed}"
    for name in sorted(tensors.keys() - shapes.keys()):
        if not UNREAD.fullmatch(name):
            file, where, there = tensors[name]
            shape = shown(file.get_slice(there).get_shape())
            yield f"{name[:LONGEST_NAME]} {shape} of {where} is left over"
