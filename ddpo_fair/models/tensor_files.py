"""The safetensors files of a folder: found, opened, read; never a pickle."""

import contextlib
import json
import logging
import os
import pathlib
import re
from collections.abc import Collection, Iterable, Iterator
from typing import Any

import numpy as np
import safetensors

from ddpo_fair import files
from ddpo_fair.errors import UserError

# By name, less `WRAPPERS`: the open file, its path, and the name there.
Tensors = dict[str, tuple[Any, pathlib.Path, str]]

STEMS = ("diffusion_pytorch_model", "model")  # diffusers', transformers'
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5")
# "model.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"; not the weights
# before averaging, which Stable Diffusion 1.x has beside the others.
VARIANT = re.compile(r"[\w-]+\.(?!non_ema)(\w+)(?:-[\w-]+)?\.safetensors")
HALF = ("fp16", "bf16")  # variants that differ from the usual files by rounding
MOST_NAMED = 8  # files that one message lists
# What torch.compile, DistributedDataParallel and PEFT put around a module.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|module|base_layer)\.")
PACKAGE = pathlib.Path(__file__).parents[1]
POINTER = b"version https://git-lfs.github.com/spec/"


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """The JSON object in a file, in any UTF; a UserError if there is none."""
    if not path.is_file():  # a FIFO would be waited for
        raise UserError(f"{path} does not exist; name a folder that holds such a file.")
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read as JSON ({error}{_size(path)}); {way_out(path)}."
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{path} holds no JSON object; {way_out(path)}.")
    return content


def way_out(*paths: pathlib.Path, otherwise: str = "") -> str:
    """What to do about files that cannot be read: what git-lfs says, or `otherwise`,
    or how to get the first of them again."""
    for path in filter(pathlib.Path.is_file, paths):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if file.read(len(POINTER)) == POINTER:
                return (
                    f"{path.name} is a pointer that git-lfs left in its place: run"
                    " `git lfs install` once and `git lfs pull` in the folder"
                )
    return otherwise or again(paths[0])


def again(path: pathlib.Path) -> str:
    """How to get a damaged file or folder again, which depends on where it lies."""
    converted = files.cache() / "single_file"
    for place in path.parents:
        if place.parent == converted:
            return f"delete {place}; the same command then converts it again"
        if place.name.startswith("models--"):  # the hub's cache, whose files are links
            target = path.resolve() if path.is_file() else place
            return f"delete {target}; the same command then downloads it again"
    if PACKAGE in path.parents:
        return "install the package again"
    return "copy it again from where it came"


def _size(path: pathlib.Path) -> str:
    """How many bytes a file has, and how many a safetensors header says it has."""
    size, said = path.stat().st_size, ""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        length, header = _header(path)
        ends = [header[name]["data_offsets"][1] for name in header if name[:2] != "__"]
        said = f", and by its header {8 + length + max(ends):,}"
    return f"; it has {size:,} bytes{said}"


def find(folder: pathlib.Path, variant: str | None) -> list[pathlib.Path]:
    """The files with the weights of a network's folder: one, or its index's shards.

    `variant` is the middle of the name, e.g. "fp16"; None for none, or the only one in
    half precision where there are no others. A UserError says what there is instead.
    """
    names = {path.name for path in folder.glob("*") if path.is_file()}
    variant = chosen_variant(names, STEMS, variant or "")
    for stem in STEMS:
        for name in file_names(stem, variant):
            if (folder / name).is_file():
                whole = name.endswith(".safetensors")
                return [folder / name] if whole else _shards(folder / name)
    if not folder.is_dir():
        raise UserError(f"{folder} holds no weights: there is no such folder.")
    wanted = " or ".join(file_names(stem, variant)[0] for stem in STEMS)
    usual = any(name in names for stem in STEMS for name in file_names(stem, ""))
    told = f" Leave variant={variant!r} out to read the usual files." * usual
    raise UserError(f"{folder} holds no {wanted}{instead(names)}{told}")


def chosen_variant(names: Collection[str], stems: Iterable[str], wanted: str) -> str:
    """The variant to read of the files of these names: the wanted one ("": the usual
    files), or the only one in half precision where there are no usual files."""
    usual = any(name in names for stem in stems for name in file_names(stem, ""))
    if wanted or usual or len(found := _variants(names)) != 1 or found[0] not in HALF:
        return wanted
    logging.getLogger(__name__).info("There are only weights in %s.", *found)
    return found[0]


def _variants(names: Iterable[str]) -> list[str]:
    """The variants of which there are weights."""
    return sorted({match[1] for name in names if (match := VARIANT.fullmatch(name))})


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
    """The end of a message that weights are missing: what there is, and the way out."""
    names = sorted(names)
    if variants := _variants(names):
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
        raise UserError(f"{index} has no weight_map; {again(index)}.")
    names = sorted(set(map(str, weight_map.values())))
    for name in names:
        if os.path.basename(name) != name or not name.endswith(".safetensors"):
            raise UserError(
                f"{index} names the file {name!r}, which is no safetensors file of"
                " its folder; do not trust these weights."
            )
        if not (index.parent / name).is_file():
            raise UserError(
                f"{index} names {name}, which does not exist; copy it there, or choose"
                " another model or revision."
            )
    return [index.parent / name for name in names]


def open_all(paths: list[pathlib.Path]) -> Tensors:
    """Every tensor of some files; a UserError if one is not sound, or there twice."""
    tensors: Tensors = {}
    for path in paths:
        with _sound(path, f"{path} is no sound safetensors file"):
            file = safetensors.safe_open(path, framework="numpy")
            _header(path)
        for name in file.keys():  # noqa: SIM118 - not a dict
            plain = WRAPPERS.sub("", name)
            if plain in tensors:
                raise UserError(
                    f"{plain} is both in {tensors[plain][1]} and in {path}; delete the "
                    "file that does not belong to the index."
                )
            tensors[plain] = (file, path, name)
    return tensors


@contextlib.contextmanager
def _sound(path: pathlib.Path, problem: str) -> Iterator[None]:
    """Makes a UserError of what safetensors and the disk raise."""
    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{problem} ({error}{_size(path)}); {way_out(path)}.") from None


def _header(path: pathlib.Path) -> tuple[int, dict[str, Any]]:
    """The length and the content of a header; a ValueError if it holds a name twice.

    safetensors takes the last one, other readers may take the first.
    """
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("it has no header")
        return length, json.loads(file.read(length), object_pairs_hook=files.once)


def read(tensors: Tensors, name: str) -> np.ndarray:
    """One tensor of `open_all`; a UserError if its file ends too early."""
    file, path, name = tensors[name]
    with _sound(path, f"{name} of {path} cannot be read"):
        return file.get_tensor(name)
