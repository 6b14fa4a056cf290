"""Where weights come from: this package, a folder, or the Hugging Face hub."""

from pathlib import Path

from ddpo_fair import config_rules
from ddpo_fair.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "weights"
TIMEOUT_SECONDS = 15  # for the hub to answer

# What of a hub's repository is downloaded: configs, tokenizer, safetensors.
MODEL_FILES = (
    "unet/config.json",
    "unet/diffusion_pytorch_model*.safetensors*",
    "vae/config.json",
    "vae/diffusion_pytorch_model*.safetensors*",
    "text_encoder/config.json",
    "text_encoder/model*.safetensors*",
    "tokenizer/*",
    "scheduler/scheduler_config.json",
)
CLASSIFIER_FILES = ("config.json", "preprocessor_config.json", "model*.safetensors*")
LEFT_OUT = ("*.fp16.*", "*.bf16.*", "*non_ema*")


def model_folder(reference: str) -> Path:
    """The local folder of `config.model`, downloaded if need be."""
    return _folder("model", reference, EMBEDDED / "text_to_image", MODEL_FILES)


def classifier_folder(reference: str) -> Path:
    """The local folder of `config.classifier`, downloaded if need be."""
    return _folder("classifier", reference, EMBEDDED / "classifier", CLASSIFIER_FILES)


def _folder(field: str, reference: str, embedded: Path, files: tuple[str, ...]) -> Path:
    if reference == "embedded":
        if not embedded.is_dir():
            raise UserError(
                f"{field}='embedded': this installation lacks {embedded}; install the"
                " package again, or name a folder or a model on the Hugging Face hub."
            )
        return embedded
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if not config_rules.MODEL_NAME.fullmatch(reference) or ".." in reference:
        raise UserError(
            f"{field}={reference!r}: there is no such folder. It must be 'embedded', a"
            " folder, or owner/name on the Hugging Face hub."
        )
    return _download(field, reference, files)


def _download(field: str, reference: str, files: tuple[str, ...]) -> Path:
    import huggingface_hub  # half a second, and only where a hub is wanted

    name, _, revision = reference.partition("@")
    try:
        path = huggingface_hub.snapshot_download(
            name,
            revision=revision or None,
            allow_patterns=list(files),
            ignore_patterns=list(LEFT_OUT),
            etag_timeout=TIMEOUT_SECONDS,
        )
    except Exception as error:  # whatever the network comes up with
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{field}={reference!r}: there is no folder of that name here, and the"
            f" Hugging Face hub did not give it ({type(error).__name__}: {reason})."
            " Check the name and the connection; a model that needs a licence wants"
            " `hf auth login`; or give the path of a copy."
        ) from error
    return Path(path)
