"""The safetensors files of a folder: found, opened, read; never a pickle."""

import json
import os
import pathlib
from typing import Any

import numpy as np
import safetensors

from ddpo_fair import errors

STEMS = ("diffusion_pytorch_model", "model")  # diffusers', transformers'
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: if there is no such file, or it holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise errors.UserError(
            f"{path} does not exist; name a folder that holds one."
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise errors.UserError(
            f"{path} cannot be read as JSON ({error}); download it again."
        ) from None
    if not isinstance(content, dict):
        raise errors.UserError(f"{path} holds no JSON object; download it again.")
    return content


def find(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    """The files with a folder's weights: one, or the shards of its index.

    Args:
        folder: of one network.
        variant: the middle of the name, e.g. "fp16"; None for none.

    Raises:
        UserError: if there is no such file; says what there is instead.
    """
    middle = f".{variant}" if variant else ""
    for stem in STEMS:
        single = folder / f"{stem}{middle}.safetensors"
        if single.is_file():
            return [single]
        for name in (
            f"{stem}.safetensors.index{middle}.json",
            f"{stem}{middle}.safetensors.index.json",
        ):
            if (folder / name).is_file():
                return _shards(folder / name)
    wanted = " or ".join(f"{stem}{middle}.safetensors" for stem in STEMS)
    raise errors.UserError(f"{folder} holds no {wanted}{_what_else(folder)}")


def _shards(index: pathlib.Path) -> list[pathlib.Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise errors.UserError(f"{index} has no weight_map; download it again.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise errors.UserError(
                f"{index} names the file {name!r}, which is no safetensors file of "
                "its folder; do not trust these weights."
            )
        if not (index.parent / name).is_file():
            raise errors.UserError(
                f"{index} names {name}, which does not exist; download it again."
            )
    return [index.parent / name for name in names]


def _what_else(folder: pathlib.Path) -> str:
    if not folder.is_dir():
        return ": there is no such folder."
    files = sorted(path.name for path in folder.iterdir() if path.is_file())
    variants = sorted(
        {
            name.split(".")[1].split("-")[0]
            for name in files
            if name.endswith(".safetensors") and name.count(".") == 2
        }
    )
    if variants:
        return f", but the variants {', '.join(variants)}; choose one of them."
    pickles = [name for name in files if name.endswith(PICKLES)]
    if pickles:
        return (
            f", only {', '.join(pickles)}: a pickle can run any code when it is "
            "opened, so it is not read. Use a revision with safetensors, or convert "
            "it once: torch.load(..., weights_only=True), then "
            "safetensors.torch.save_file."
        )
    return f"; it holds {', '.join(files) or 'nothing'}."


def open_all(paths: list[pathlib.Path]) -> dict[str, tuple[Any, pathlib.Path]]:
    """Every tensor's name, with the open file that holds it and the file's path.

    Raises:
        UserError: if a file is not sound, or two files hold the same tensor.
    """
    found: dict[str, tuple[Any, pathlib.Path]] = {}
    for path in paths:
        try:
            file = safetensors.safe_open(path, framework="numpy")
            _check_names(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise errors.UserError(
                f"{path} is no sound safetensors file ({error}); download it again."
            ) from None
        for name in file.keys():  # noqa: SIM118 - not a dict
            if name in found:
                raise errors.UserError(
                    f"{name} is both in {found[name][1]} and in {path}; delete the "
                    "file that does not belong to the index."
                )
            found[name] = (file, path)
    return found


def _check_names(path: pathlib.Path) -> None:
    """Raises a ValueError if a header, sound else, holds a name twice.

    safetensors takes the last one, other readers may take the first.
    """
    with open(path, "rb") as file:
        header = file.read(int.from_bytes(file.read(8), "little"))

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a name stands there twice")
        return found

    json.loads(header, object_pairs_hook=once)


def read(file: Any, name: str, path: pathlib.Path) -> np.ndarray:
    """One tensor of an open file.

    Raises:
        UserError: if the file ends too early or cannot be read.
    """
    try:
        return file.get_tensor(name)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise errors.UserError(
            f"{name} of {path} cannot be read ({error}); download the file again."
        ) from None
