"""The safetensors files of a folder: found, opened, read; never a pickle."""

import contextlib
import json
import os
import pathlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import safetensors

from ddpo_fair.errors import UserError

Tensors = dict[str, tuple[Any, pathlib.Path]]  # the open file and its path, by name

STEMS = ("diffusion_pytorch_model", "model")  # diffusers', transformers'
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
# "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"; not the weights
# before averaging, which Stable Diffusion 1.x has beside the others.
VARIANT = re.compile(r"[\w-]+\.(?!non_ema)(\w+)(?:-[\w-]+)?\.safetensors")
MOST_NAMED = 8  # files that one message lists


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file; a UserError if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; name a folder that holds one."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}); download it again."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; download it again.")
    return content


def find(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    """The files with a folder's weights: one, or the shards of its index.

    Args:
        folder: of one network.
        variant: the middle of the name, e.g. "fp16"; None for none.

    Raises:
        UserError: if there is no such file; says what there is instead.
    """
    for stem in STEMS:
        for name in file_names(stem, variant or ""):
            if (folder / name).is_file():
                whole = name.endswith(".safetensors")
                return [folder / name] if whole else _shards(folder / name)
    if not folder.is_dir():
        raise UserError(f"{folder} holds no weights: there is no such folder.")
    wanted = " or ".join(file_names(stem, variant or "")[0] for stem in STEMS)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    raise UserError(f"{folder} holds no {wanted}{instead(names)}")


def file_names(stem: str, variant: str) -> tuple[str, ...]:
    """Names that weights may have: of a single file, and of an index of shards."""
    middle = f".{variant}" if variant else ""
    return (
        f"{stem}{middle}.safetensors",
        f"{stem}.safetensors.index{middle}.json",
        f"{stem}{middle}.safetensors.index.json",
    )


def patterns(stem: str, variant: str) -> tuple[str, ...]:
    """`file_names` and, as globs, the names of shards; nothing in another folder."""
    middle = f".{variant}" if variant else ""
    shard = f"-{5 * '[0-9]'}-of-{5 * '[0-9]'}"
    return (
        *file_names(stem, variant),
        f"{stem}{middle}{shard}.safetensors",
        f"{stem}{shard}{middle}.safetensors",
    )


def instead(names: Iterable[str]) -> str:
    """The end of a message that weights are missing: what there is, and the way out.

    Args:
        names: of the files in the folder.
    """
    names = sorted(names)
    variants = sorted(
        {match[1] for name in names if (match := VARIANT.fullmatch(name))}
    )
    if variants:
        return (
            f", but the variants {', '.join(variants)}; choose one of them (of a model"
            " with --config.variant)."
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return (
            f", only {', '.join(pickles[:MOST_NAMED])}: a pickle can run any code when"
            " it is opened, so it is not read. Use a revision with safetensors"
            " (owner/name@refs/pr/N often has them), or convert it once:"
            " torch.load(..., weights_only=True), then safetensors.torch.save_file."
        )
    return f"; it holds {', '.join(names[:MOST_NAMED]) or 'nothing'}."


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; download it again.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names the file {name!r}, which is no safetensors file of"
                " its folder; do not trust these weights."
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index} names {name}, which does not exist; download it again."
            )
    return [index.parent / name for name in names]


def open_all(paths: list[pathlib.Path]) -> Tensors:
    """Every tensor's name, with the open file that holds it and the file's path.

    Raises:
        UserError: if a file is not sound, or a tensor is there twice.
    """
    tensors: Tensors = {}
    for path in paths:
        with _sound(f"{path} is no sound safetensors file"):
            file = safetensors.safe_open(path, framework="numpy")
            _check_names(path)
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name in tensors:
                raise UserError(
                    f"{name} is both in {tensors[name][1]} and in {path}; delete the "
                    "file that does not belong to the index."
                )
            tensors[name] = (file, path)
    return tensors


@contextlib.contextmanager
def _sound(problem: str) -> Iterator[None]:
    """Makes a UserError of what safetensors and the disk raise."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{problem} ({error}); download it again.") from None


def _check_names(path: pathlib.Path) -> None:
    """Raises a ValueError if a header, sound else, holds a name twice.

    safetensors takes the last one, other readers may take the first.
    """
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        tensors = dict(pairs)
        if len(tensors) < len(pairs):
            raise ValueError("a name stands there twice")
        return tensors

    json.loads(header, object_pairs_hook=once)


def read(tensors: Tensors, name: str) -> np.ndarray:
    """One tensor of `open_all`; a UserError if its file ends too early."""
    file, path = tensors[name]
    with _sound(f"{name} of {path} cannot be read"):
        return file.get_tensor(name)
