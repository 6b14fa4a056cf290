"""A single-file checkpoint, in the layout of the first code, as a diffusers folder.

diffusers' own converter does it, once, in a process of its own (extra `torch`).
"""

import fcntl
import hashlib
import importlib.util
import logging
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import safetensors

from ddpo_fair import files
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import tensor_files

SUFFIX = ".safetensors"
# Of diffusers, by how a name begins that no other family's checkpoint has.
PIPELINES = {
    "conditioner.": "StableDiffusionXLPipeline",
    "model.diffusion_model.joint_blocks.": "StableDiffusion3Pipeline",
    "": "StableDiffusionPipeline",
}


def folder_of(field: str, file: Path) -> Path:
    """The diffusers folder of a *.safetensors, in the user's cache; made if need be.

    Configs and tokenizer are those of the folder that the file lies in, where that is
    one in the diffusers layout; else diffusers chooses and fetches them. A file that
    changes is converted again. A UserError if that fails, or it is another file.
    """
    setting = f"{field}={shown(str(file))}"
    if field != "model":
        raise UserError(f"{setting} is a file; give the folder that holds config.json.")
    if file.suffix != SUFFIX:
        raise UserError(
            f"{setting} is a file, but not one of safetensors, and a pickle can run any"
            f" code when it is opened; give the *{SUFFIX} of the same model, or a"
            " folder in the diffusers layout."
        )
    cache = files.cache() / "single_file"
    status = file.stat()
    what = f"{file}\n{status.st_size}\n{status.st_mtime_ns}"
    digest = hashlib.sha256(what.encode("utf-8", "surrogateescape")).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", file.stem, flags=re.ASCII)[:60]
    folder = cache / f"{stem}-{digest[:16]}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / f".{folder.name}.lock").open("a")
    except OSError as error:
        raise UserError(
            f"{setting}: its copy cannot be kept in {cache} ({error.strerror}); set"
            " XDG_CACHE_HOME to a folder that may be written."
        ) from error
    with lock:
        # Of the processes of this host one converts; the others wait for it.
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _convert(setting, file, folder)
    return folder


def _convert(setting: str, file: Path, folder: Path) -> None:
    for package in ("torch", "diffusers"):
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"{setting} is a single-file checkpoint, which needs {package} to be"
                ' converted: pip install "ddpo_fair[torch]", once; or give a folder in'
                " the diffusers layout, or a model on the Hugging Face hub."
            )
    logging.getLogger(__name__).warning(
        "%s: diffusers converts it, once, to %s.", setting, folder
    )
    beside = file.parent if (file.parent / "model_index.json").is_file() else ""
    with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as unfinished:
        result = Path(unfinished) / "model"
        done = subprocess.run(
            [sys.executable, "-m", __spec__.name, str(file), str(result), str(beside)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"{setting} cannot be converted by diffusers: {shown(reason)}. It must"
                " be a whole Stable Diffusion: its network, VAE and text encoders."
                f" If the file is damaged, {tensor_files.way_out(file)}."
                " Configs are fetched from the hub, unless the file lies in a folder"
                " that has them; or give a folder in the diffusers layout."
            )
        result.rename(folder)


def main(file: str, folder: str, configs: str) -> None:
    """The process that converts: writes `folder` in the diffusers layout, in float32.

    `configs` is a folder with configs and tokenizer; "" for those of the hub. Source:
    https://huggingface.co/docs/diffusers/api/loaders/single_file
    """
    import diffusers  # and torch, of an extra, which no other process wants

    with safetensors.safe_open(file, "np") as opened:
        names = list(opened.keys())
    kind = next(x for x in PIPELINES if any(name.startswith(x) for name in names))
    left_out = {"safety_checker": None, "feature_extractor": None}
    pipeline = getattr(diffusers, PIPELINES[kind]).from_single_file(
        file, config=configs or None, **({} if kind else left_out)
    )
    pipeline.save_pretrained(folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
