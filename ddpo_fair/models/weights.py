"""Weights of the networks in the official safetensors folders, strict both ways.

The path of a parameter, joined by dots, is the name of its tensor; only the last
piece and the order of the axes differ between Flax and PyTorch.
"""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from ddpo_fair import errors
from ddpo_fair.models import tensor_files

Params = dict[str, Any]  # nested dicts of arrays

FLOATS = ("F16", "BF16", "F32", "F64")
MOST_NAMED = 8  # tensors that one message lists
LONGEST_NAME = 200  # characters of one that should not be there

# Tensors of published files that no forward pass of ours reads.
UNREAD = re.compile(r".*\.position_ids|vit\.pooler\.dense\.(weight|bias)")

# Older or newer spellings of a name: (pattern of the official one, replacement).
SPELLINGS = (
    # Stable Diffusion 1.x was saved before diffusers renamed the VAE's attention.
    (r"(mid_block\.attentions\.0)\.to_q\.", r"\1.query."),
    (r"(mid_block\.attentions\.0)\.to_k\.", r"\1.key."),
    (r"(mid_block\.attentions\.0)\.to_v\.", r"\1.value."),
    (r"(mid_block\.attentions\.0)\.to_out\.0\.", r"\1.proj_attn."),
    # transformers 5 saves CLIPTextModel without this prefix (and opens both).
    (r"^text_model\.", ""),
)


def init_template(
    network: nn.Module, *inputs: tuple[int, ...] | jax.ShapeDtypeStruct
) -> Params:
    """Shapes and dtypes of a network's parameters; computes nothing.

    Args:
        network: to be initialised.
        inputs: one for each argument of its call: a shape, meaning float32, or a
            ShapeDtypeStruct.
    """
    structs = [
        jax.ShapeDtypeStruct(x, jnp.float32) if isinstance(x, tuple) else x
        for x in inputs
    ]
    return jax.eval_shape(network.init, jax.random.key(0), *structs)["params"]


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """The parsed config.json of a folder.

    Raises:
        UserError: if there is none, or it is not a JSON object.
    """
    return tensor_files.read_json(pathlib.Path(folder) / "config.json")


def load(
    folder: str | os.PathLike, template: Params, variant: str | None = None
) -> Params:
    """Parameters of a folder, as float32 NumPy arrays; the caller places them.

    One tensor is read at a time, so the peak is the parameters and one tensor.

    Args:
        folder: holds diffusion_pytorch_model.safetensors or model.safetensors, or
            such an index and its shards.
        template: nested dicts of shapes, e.g. of `init_template`.
        variant: e.g. "fp16" for diffusion_pytorch_model.fp16.safetensors.

    Raises:
        UserError: names every tensor that is missing, left over or misshapen, and
            the file; or says why there is no file to read.
    """
    paths = tensor_files.find(pathlib.Path(folder), variant)
    found = tensor_files.open_all(paths)
    leaves = list(_leaves(template))
    names = {path: _spelling(_tensor_name(path), found) for path, _ in leaves}
    _check(leaves, names, found, paths)
    params: Params = {}
    for path, _ in leaves:
        file, where = found[names[path]]
        array = tensor_files.read(file, names[path], where)
        _insert(params, path, _from_torch(path, array))
    return params


def save(
    folder: str | os.PathLike,
    params: Params,
    config_dict: dict[str, Any],
    filename: str = "diffusion_pytorch_model.safetensors",
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> None:
    """Writes a folder that diffusers or transformers opens.

    Each file appears whole or not at all: it is written beside its place, then moved.

    Args:
        folder: made if need be.
        params: nested dicts of arrays.
        config_dict: becomes config.json.
        filename: "model.safetensors" for transformers' models.
        dtype: of the tensors in the file.

    Raises:
        UserError: if a parameter is not finite in `dtype`.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for path, array in _leaves(params):
        name = _tensor_name(path)
        tensors[name] = _to_torch(path, array, dtype)
        if not np.isfinite(tensors[name].astype(np.float32)).all():
            raise errors.UserError(
                f"{folder / filename}: {name} is not finite in "
                f"{jnp.dtype(dtype).name}; nothing was written."
            )
    with _replacing(folder / filename) as part:
        safetensors.numpy.save_file(tensors, part, metadata={"format": "pt"})
        part.chmod(0o644)  # safetensors writes for the owner's eyes alone
    with _replacing(folder / "config.json") as part:
        text = json.dumps(config_dict, indent=2, sort_keys=True)
        part.write_text(text + "\n", encoding="utf-8")


@contextlib.contextmanager
def _replacing(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A path to write to, moved to `path` if nothing fails and deleted otherwise."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def _leaves(tree: Params, path: tuple[str, ...] = ()) -> Iterator[tuple]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*path, name))
        else:
            yield (*path, name), value


def _insert(params: Params, path: tuple[str, ...], array: np.ndarray) -> None:
    for piece in path[:-1]:
        params = params.setdefault(piece, {})
    params[path[-1]] = array


def _tensor_name(path: tuple[str, ...]) -> str:
    *parents, leaf = path
    leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
    return ".".join((*parents, leaf))


def _from_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    if path[-1] == "kernel":  # [out, in, k, k] -> [k, k, in, out]
        array = array.transpose((2, 3, 1, 0) if array.ndim == 4 else (1, 0))
    return np.ascontiguousarray(array, dtype=np.float32)


def _to_torch(
    path: tuple[str, ...], array: jax.Array | np.ndarray, dtype: jax.typing.DTypeLike
) -> np.ndarray:
    array = np.asarray(array)
    if path[-1] == "kernel":  # [k, k, in, out] -> [out, in, k, k]
        array = array.transpose((3, 2, 0, 1) if array.ndim == 4 else (1, 0))
    with np.errstate(over="ignore"):  # save() looks for infinities itself
        return np.ascontiguousarray(array, dtype=jnp.dtype(dtype))


def _torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] == "kernel":
        return (*shape[:-3:-1], *shape[:-2])  # [k, k, in, out] -> [out, in, k, k]
    return tuple(shape)


def _spelling(name: str, found: dict[str, Any]) -> str:
    """The name under which the files hold a tensor; the official one if none."""
    if name in found:
        return name
    for pattern, replacement in SPELLINGS:
        other = re.sub(pattern, replacement, name)
        if other in found:
            return other
    return name


def _check(
    leaves: list[tuple],
    names: dict[tuple, str],
    found: dict[str, tuple[Any, pathlib.Path]],
    paths: list[pathlib.Path],
) -> None:
    """Raises if the files do not hold exactly the template's tensors."""
    wrong = []
    for path, leaf in leaves:
        name, expected = names[path], list(_torch_shape(path, leaf.shape))
        if name not in found:
            wrong.append(f"{name} {expected} is missing")
            continue
        file, where = found[name]
        tensor = file.get_slice(name)
        if tensor.get_shape() != expected:
            wrong.append(
                f"{name} of {where} has shape {errors.shown(tensor.get_shape())},"
                f" expected {expected}"
            )
        elif tensor.get_dtype() not in FLOATS:
            wrong.append(
                f"{name} of {where} is of type {tensor.get_dtype()}, expected one of "
                f"{', '.join(FLOATS)}"
            )
    for name in sorted(set(found) - set(names.values())):
        if not UNREAD.fullmatch(name):
            file, where = found[name]
            shape = file.get_slice(name).get_shape()
            called = f"{name[:LONGEST_NAME]} {errors.shown(shape)}"
            wrong.append(f"{called} of {where} is left over")
    if wrong:
        more = len(wrong) - MOST_NAMED
        tail = f"; and {more} more" if more > 0 else ""
        raise errors.UserError(
            f"{' and '.join(map(str, paths))}: the weights do not fit config.json: "
            f"{'; '.join(wrong[:MOST_NAMED])}{tail}. Use the config.json that came "
            "with the weights."
        )
