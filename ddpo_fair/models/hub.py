"""Models of the Hugging Face hub: only the files needed, once per host."""

import contextlib
import errno
import fcntl
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from ddpo_fair.errors import UserError, shown

TIMEOUT_SECONDS = 15  # for the hub to answer a question
STEMS = {"text_encoder": "model", "": "model"}  # the rest: diffusers' name
MODEL_PARTS = ("unet", "vae", "text_encoder")
CLASSIFIER_PARTS = ("",)
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".msgpack", ".h5")
GONE = {  # names that scripts still carry, and where the model is now
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5",
}


def download(
    field: str,
    reference: str,
    parts: tuple[str, ...],
    others: Callable[[str], bool],
    variant: str = "",
    with_weights: bool = True,
) -> Path:
    """The local folder of a model of the hub, in the hub's own cache.

    Of several processes on a host one downloads; the others wait, then find it there.

    Args:
        field: of the config, for messages: "model" or "classifier".
        reference: "owner/name" or "owner/name@revision".
        parts: folders that hold weights and a config.json; "" is the top.
        others: whether a file is needed that is neither.
        variant: e.g. "fp16" for the files named so; "" for the usual ones.
        with_weights: False leaves the weights and takes each part's config.json.

    Raises:
        UserError: says what is wrong, with the way out, if the model is not there.
    """
    # half a second, and only where a hub is wanted
    from huggingface_hub import constants

    name, _, revision = reference.partition("@")
    said = f"{field}={reference!r}"

    def needed(names: Iterable[str]) -> list[str]:
        names = sorted(names)
        found = [file for file in names if others(file)]
        for part in parts:
            part_files = _part_files(said, part, names, variant)
            found += part_files if with_weights else part_files[:1]
        for file in found:
            if file.startswith("/") or ".." in PurePosixPath(file).parts:
                raise UserError(
                    f"{said} lists the file {shown(file)}, which would lie outside of"
                    " the model's folder; do not trust this model."
                )
        return list(dict.fromkeys(found))

    with turn(Path(constants.HF_HUB_CACHE), name):
        try:
            return _fetch(name, revision or "main", needed)
        except UserError:
            raise
        except Exception as error:  # whatever the network and the disk come up with
            copy = _cached(name, revision or "main", parts[0], needed)
            if copy is None:
                raise UserError(_reason(said, name, revision, error)) from error
            if not constants.HF_HUB_OFFLINE:
                logging.getLogger(__name__).warning(
                    "%s: the hub gave no answer (%s); the copy in %s is used.",
                    said,
                    type(error).__name__,
                    copy,
                )
            return copy


def _fetch(name: str, revision: str, needed: Callable) -> Path:
    """Downloads what the cache lacks; returns the folder of the newest commit."""
    import huggingface_hub

    info = huggingface_hub.HfApi().model_info(
        name, revision=revision, timeout=TIMEOUT_SECONDS
    )
    files = needed(file.rfilename for file in info.siblings or ())

    def get(file: str, commit: str) -> str:
        return huggingface_hub.hf_hub_download(
            name, file, revision=commit, etag_timeout=TIMEOUT_SECONDS
        )

    for file in files:
        path = get(file, info.sha)
    get(files[0], revision)  # notes which commit the revision is, for offline use
    depth = len(PurePosixPath(files[-1]).parts)
    return Path(path).parents[depth - 1]


def _cached(name: str, revision: str, part: str, needed: Callable) -> Path | None:
    """The folder of an earlier download, if it is complete."""
    import huggingface_hub

    first = f"{part}/config.json" if part else "config.json"
    found = huggingface_hub.try_to_load_from_cache(name, first, revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parents[len(PurePosixPath(first).parts) - 1]
    names = [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file()
    ]
    try:
        needed(names)
    except UserError:
        return None
    return folder


def _part_files(said: str, part: str, names: list[str], variant: str) -> list[str]:
    """config.json and the weights of one part: a single file, or shards with an index.

    Raises:
        UserError: if there are none; says what there is instead.
    """
    place = f"{part}/" if part else ""
    if f"{place}config.json" not in names:
        raise UserError(
            f"{said} has no {place}config.json: it is not a model in the layout of"
            f" {'transformers' if not part else 'diffusers'}, or the download was cut"
            " short; choose another model or revision."
        )
    middle = f".{variant}" if variant else ""
    stem = re.escape(place + STEMS.get(part, "diffusion_pytorch_model"))
    found = [name for name in names if name == _plain(part, middle)]
    if not found:
        shard = rf"-\d+-of-\d+{re.escape(middle)}|{re.escape(middle)}-\d+-of-\d+"
        index = rf"\.safetensors\.index{re.escape(middle)}\.json"
        index += rf"|{re.escape(middle)}\.safetensors\.index\.json"
        pattern = re.compile(rf"{stem}(({shard})\.safetensors|{index})")
        found = [name for name in names if pattern.fullmatch(name)]
        if not any(name.endswith(".json") for name in found):
            raise UserError(
                f"{said} has no {_plain(part, middle)}{_instead(place, names)}"
            )
    return [f"{place}config.json", *found]


def _plain(part: str, middle: str) -> str:
    stem = STEMS.get(part, "diffusion_pytorch_model")
    return f"{part}/{stem}{middle}.safetensors".lstrip("/")


def _instead(place: str, names: list[str]) -> str:
    here = [name for name in names if name.startswith(place)]
    variants = sorted(
        {
            match[1]
            for name in here
            if (match := re.search(r"(?:model)\.(\w+)[.-].*safetensors", name))
            and match[1] not in ("safetensors", "non_ema")
        }
    )
    if variants:
        return (
            f", but the variants {', '.join(variants)}: choose with --config.variant."
        )
    pickles = [name for name in here if name.endswith(PICKLES)]
    if pickles:
        return (
            f", only {', '.join(pickles[:3])}: a pickle can run any code when it is"
            " opened, so it is not downloaded. Choose a revision with safetensors"
            " (owner/name@refs/pr/N often has them), or convert it to a local folder."
        )
    return "; choose another model or revision."


@contextlib.contextmanager
def turn(cache: Path, name: str) -> Iterator[None]:
    """Waits until no other process of this host makes the same thing in a cache."""
    with contextlib.ExitStack() as stack:
        # A cache that can only be read needs no turns.
        with contextlib.suppress(OSError):
            cache.mkdir(parents=True, exist_ok=True)
            path = cache / f".ddpo_fair--{name.replace('/', '--')}.lock"
            file = stack.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX)  # freed when the process ends, however
        yield


def _reason(said: str, name: str, revision: str, error: Exception) -> str:
    """What went wrong and the way out, from the exceptions of hub and network."""
    chain = list(_chain(error))
    kinds = {kind.__name__ for one in chain for kind in type(one).__mro__}
    status = next((s for s in map(_status, chain) if s), None)
    copy = f"give a local folder instead: `hf download {name} --local-dir FOLDER`"
    if "OfflineModeIsEnabled" in kinds:
        return (
            f"{said} is not in the cache, and HF_HUB_OFFLINE forbids to ask the hub."
            f" Unset it; or, on a machine that is online, {copy}."
        )
    if "GatedRepoError" in kinds:
        return (
            f"{said} is gated: its owner wants you to accept a licence. Do so on"
            f" https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN."
        )
    if "RevisionNotFoundError" in kinds:
        return f"{said}: the hub has the model, but no revision {revision!r}."
    if "RepositoryNotFoundError" in kinds:
        moved = f" It is now {GONE[name]}." if name in GONE else ""
        return (
            f"{said}: the hub has no such model, or it is private.{moved} Check the"
            " spelling; for a private one `hf auth login` or set HF_TOKEN."
        )
    if any(getattr(one, "errno", None) == errno.ENOSPC for one in chain):
        return (
            f"{said}: the disk is full. Free some space, or let HF_HOME name a folder"
            " on another disk; what was downloaded is kept."
        )
    if "TimeoutException" in kinds or "TimeoutError" in kinds:
        return (
            f"{said}: the hub did not answer in {TIMEOUT_SECONDS} s. Try again later;"
            f" or {copy}."
        )
    if status:
        return f"{said}: the hub answered with status {status}. Try later; or {copy}."
    text = (str(chain[-1]).strip().splitlines() or [""])[0]
    return (
        f"{said}: the hub cannot be reached ({type(chain[-1]).__name__}: {text}). Check"
        f" the connection and HF_ENDPOINT; or, on a machine that is online, {copy}."
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
