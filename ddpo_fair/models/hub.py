"""Models of the Hugging Face hub: only the files needed, in the hub's own cache."""

import contextlib
import errno
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ddpo_fair.errors import UserError
from ddpo_fair.models import tensor_files

OPTIONAL = ("transformer", "text_encoder_2", "text_encoder_3")
TIMEOUT_SECONDS = 15  # for the hub to answer a question
MOVED = {  # names that scripts still carry, and where the model is now
    "runwayml/stable-diffusion-v1-5": "stable-diffusion-v1-5/stable-diffusion-v1-5"
}
COPY = "give a local folder instead: `hf download {name} --local-dir FOLDER`"
REASONS = {  # by the class of an exception of huggingface_hub or its HTTP client
    "OfflineModeIsEnabled": "is not in the cache, and HF_HUB_OFFLINE forbids to ask the"
    f" hub. Unset it; or, on a machine that is online, {COPY}.",
    "GatedRepoError": "is gated: its owner wants you to accept a licence. Do so on"
    " https://huggingface.co/{name}, then `hf auth login` or set HF_TOKEN.",
    "RevisionNotFoundError": "is a model of the hub, but has no revision {revision!r}.",
    "RepositoryNotFoundError": "is not on the hub: no such model, or it is private."
    " Check the spelling; for a private one `hf auth login` or set HF_TOKEN.",
    "TimeoutException": "is not here, and the hub did not answer in {seconds} s. Try"
    f" again later; or {COPY}.",
}


def download(
    field: str,
    reference: str,
    parts: Mapping[str, str | None],
    others: Sequence[str],
    variant: str = "",
) -> Path:
    """The local folder of a model of the hub, in the hub's own cache; or a UserError.

    Of several processes on a host one downloads a file; the others wait for it.

    The field, "model" or "classifier", is for messages. The reference is "owner/name"
    or "owner/name@revision". Parts are folders with a config.json and weights, "" for
    the top, each with the stem of its weights' name, or None to leave them; `others`
    are fetched where the model has them.
    """
    setting = f"{field}={reference!r}"
    return fetch(
        setting, reference, lambda x: [*others, *_checked(setting, x, parts, variant)]
    )


def fetch(
    setting: str, reference: str, wanted: Callable[[set[str]], list[str]]
) -> Path:
    """The local folder with files of a repository of the hub; see `download`.

    Of the names of all its files `wanted` makes patterns, or it raises a UserError.
    """
    import huggingface_hub  # half a second, and only where a hub is wanted

    name, _, revision = reference.partition("@")
    version = revision or None
    try:
        info = huggingface_hub.HfApi().model_info(
            name, revision=version, timeout=TIMEOUT_SECONDS
        )
        listed = {file.rfilename for file in info.siblings or ()}
        how = {"allow_patterns": wanted(listed), "etag_timeout": TIMEOUT_SECONDS}
        folder = huggingface_hub.snapshot_download(name, revision=version, **how)
    except UserError:
        raise
    except Exception as error:  # whatever the network and the disk come up with
        folder = None
        with contextlib.suppress(OSError, ValueError):  # an earlier download, or none
            folder = huggingface_hub.snapshot_download(
                name, revision=version, allow_patterns=[], local_files_only=True
            )
        found = Path(folder).rglob("*.*") if folder else ()
        try:
            names = {path.relative_to(folder).as_posix() for path in found}
            wanted(names)
        except UserError:
            raise UserError(_reason(setting, name, revision, error)) from error
        offline = huggingface_hub.constants.HF_HUB_OFFLINE
        logging.getLogger(__name__).log(
            logging.INFO if offline else logging.WARNING,
            f"{setting}: the hub gave no answer ({type(error).__name__}); the copy in"
            f" {folder} is used.",
        )
    return Path(folder)


def _checked(
    setting: str, names: set[str], parts: Mapping[str, str | None], variant: str
) -> list[str]:
    """Patterns of the files that are needed, of a model that has files of these names.

    Raises a UserError unless each part has its config.json and its weights; the UNet
    and those of `OPTIONAL` may be missing, but not both UNet and transformer.
    """
    patterns = []
    optional = OPTIONAL + ("unet",) * ("transformer/config.json" in names)
    for part, stem in parts.items():
        place = f"{part}/" if part else ""
        if f"{place}config.json" not in names:
            if part in optional:
                continue
            layout = "diffusers" if part else "transformers"
            raise UserError(
                f"{setting} has no {place}config.json: it is not a model in the layout"
                f" of {layout}; choose another model or revision."
            )
        within = {n.removeprefix(place) for n in names if n.startswith(place)}
        patterns.append(f"{place}config.json")
        if not stem:
            continue
        chosen = tensor_files.chosen_variant(within, (stem,), variant)
        weights = tensor_files.file_names(stem, chosen)
        if within.isdisjoint(weights):
            instead = tensor_files.instead(within)
            raise UserError(f"{setting} has no {place}{weights[0]}{instead}")
        patterns += [place + name for name in tensor_files.patterns(stem, chosen)]
    return patterns


def _reason(setting: str, name: str, revision: str, error: Exception) -> str:
    """What went wrong and the way out, from the exceptions of hub and network."""
    if name in MOVED:
        return f"{setting}: the hub has this model as {MOVED[name]} now; use that name."
    causes: list[BaseException] = [error]
    while cause := causes[-1].__cause__ or causes[-1].__context__:
        causes.append(cause)
    if any(getattr(cause, "errno", None) == errno.ENOSPC for cause in causes):
        return (
            f"{setting}: the disk is full. Free some space, or let HF_HOME name a"
            " folder on another disk; what was downloaded is kept."
        )
    details = {"name": name, "revision": revision, "seconds": TIMEOUT_SECONDS}
    for kind in (kind.__name__ for cause in causes for kind in type(cause).__mro__):
        if kind in REASONS:
            return f"{setting} {REASONS[kind].format(**details)}"
    text = (str(error).splitlines() or [""])[0]
    return (
        f"{setting} cannot be fetched ({type(error).__name__}: {text}). Check the"
        " connection and HF_ENDPOINT, and try again later; or, on a machine that is"
        f" online, {COPY.format(**details)}."
    )
