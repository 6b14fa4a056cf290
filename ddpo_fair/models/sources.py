"""Where weights come from: the package, a folder, a file, or the Hugging Face hub."""

import concurrent.futures
import contextlib
import hashlib
import json
import re
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from ddpo_fair import files
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import hub, single_file, tensor_files

# huggingface_hub's rule; all of owner/name has at most 96 characters.
MODEL_NAME = re.compile(
    r"(?=[^@]{3,96}(@|$))\w([\w.-]*\w)?/\w([\w.-]*\w)?(@[\w./-]{1,255})?", re.ASCII
)
WEIGHTS = Path(__file__).parents[1] / "embedded" / "weights"
# What else is read; a tokenizer has some of these.
TOKENIZER = (
    "added_tokens.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
)
NUMBERS = ("", "_2", "_3")  # of text encoders and their tokenizers
# Folders with weights, not all in every model (`hub.OPTIONAL`), with the stem
# of their files' names; further files.
NEEDED: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "model": (
        {
            "unet": "diffusion_pytorch_model",
            "transformer": "diffusion_pytorch_model",
            "vae": "diffusion_pytorch_model",
            **{f"text_encoder{number}": "model" for number in NUMBERS},
        },
        (
            "scheduler/scheduler_config.json",
            *(f"tokenizer{x}/{name}" for x in NUMBERS for name in TOKENIZER),
            "model_index.json",
        ),
    ),
    "classifier": ({"": "model"}, ("preprocessor_config.json",)),
}
# What ships with the package, by its name.
SHIPPED = {
    "model": {"embedded": WEIGHTS / "text_to_image", "embedded_flow": WEIGHTS / "flow"},
    "classifier": {"embedded": WEIGHTS / "classifier"},
}
# The embedded classifier of each attribute.
CLASSIFIERS = {"gender": WEIGHTS / "classifier", "skin_tone": WEIGHTS / "skin_tone"}


def model_folder(reference: str, variant: str = "", with_weights: bool = True) -> Path:
    """The local folder of `config.model`, downloaded if need be; or a UserError.

    The reference is one of `SHIPPED`, a folder, a single *.safetensors of a whole
    model, or "owner/name@revision" on the hub; of that `variant` is downloaded, or,
    without weights, only what describes the networks.
    """
    return _folder("model", reference, variant, with_weights)


def classifier_folder(
    reference: str, with_weights: bool = True, attribute: str = "gender"
) -> Path:
    """The local folder of a classifier of an attribute; see `model_folder`."""
    if reference != "embedded":
        return _folder("classifier", reference, "", with_weights)
    if attribute not in CLASSIFIERS:
        raise UserError(
            f"classifier='embedded' classifies by {', '.join(CLASSIFIERS)}, not by"
            f" {attribute}; name a folder or a model on the Hugging Face hub."
        )
    return _embedded("classifier", CLASSIFIERS[attribute])


def _folder(field: str, reference: str, variant: str, with_weights: bool) -> Path:
    folder = local_folder(field, reference)
    if folder is not None:
        return folder
    parts, others = NEEDED[field]
    stems = parts if with_weights else dict.fromkeys(parts)
    return hub.download(field, reference, stems, others, variant)


def _embedded(field: str, folder: Path) -> Path:
    """The folder that ships with the package; a UserError if it is not there."""
    if not folder.is_dir():
        raise UserError(
            f"{field}='embedded': this installation lacks {folder}; install the package"
            " again, or name a folder or a model on the Hugging Face hub."
        )
    return folder


def local_folder(field: str, reference: str) -> Path | None:
    """The local folder of a "model" or "classifier"; None for the hub's."""
    if reference in SHIPPED[field]:
        return _embedded(field, SHIPPED[field][reference])
    if not files.ADDRESS.match(reference):  # an address is no name on the hub either
        folder = files.given(field, reference)
        if folder.is_dir():
            return folder
        if folder.is_file():
            return single_file.folder_of(field, folder)
    if not MODEL_NAME.fullmatch(reference) or ".." in reference:
        raise UserError(
            f"{field}={shown(reference)}: there is no such folder or file. It must be"
            f" {', '.join(SHIPPED[field])}, a folder, or owner/name on the Hugging Face"
            " hub."
        )
    return None


def is_xl(parts: Container[str]) -> bool:
    """Whether a model's parts are SDXL's, whose model_index.json counts too."""
    return "text_encoder_2" in parts and "transformer" not in parts


def absolute(field: str, reference: str) -> str:
    """A reference that means the same in every folder; see `local_folder`."""
    shipped = any(reference in names for names in SHIPPED.values())
    if shipped or files.ADDRESS.match(reference):
        return reference
    path = files.given(field, reference)
    return str(path) if path.exists() else reference


def identity(field: str, reference: str, variant: str = "") -> dict[str, Any]:
    """What a model or a classifier is, wherever it lies, as JSON.

    `files` has the SHA-256 of each file that is read, `fingerprint` that of this list;
    `folder` and the hub's `revision` say where they are. At 1.4 GB/s, measured with two
    cores, the 4.3 GB of Stable Diffusion 1.5 take 3 s where they are in memory. A
    UserError if it is not there or cannot be read.
    """
    folder = _folder(field, reference, variant, with_weights=True)
    revision = folder.name if local_folder(field, reference) is None else None
    read = _read(field, folder, variant)
    paths = {path.relative_to(folder).as_posix(): path for path in read}
    single = files.given(field, reference)
    if reference not in SHIPPED[field] and single.is_file():
        paths = {single.name: single}  # what is made of it may differ
    return {"folder": str(folder), "revision": revision, **fingerprint(paths)}


def fingerprint(paths: Mapping[str, Path]) -> dict[str, Any]:
    """`fingerprint` and `files` of some by their names; a UserError for no file."""
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = dict(zip(paths, pool.map(_sha256, paths.values()), strict=True))
    whole = hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()
    return {"fingerprint": whole[:16], "files": found}


def _read(field: str, folder: Path, variant: str) -> Iterator[Path]:
    """The files that are read of a folder, as far as they are there."""
    parts, others = NEEDED[field]
    for part in parts:
        wanted = variant and (folder / part).is_dir()
        # Of other files who reads them says so.
        with contextlib.suppress(*() if wanted else (UserError,)):
            yield from tensor_files.find(folder / part, variant or None)
    there = [part for part in parts if (folder / part).is_dir()]
    unread = () if is_xl(there) else ("model_index.json",)
    for name in (*(f"{part}/config.json".lstrip("/") for part in parts), *others):
        if name not in unread and (folder / name).is_file():
            yield folder / name


def _sha256(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"{path} cannot be read ({error.strerror}); repair it or its disk."
        ) from error
