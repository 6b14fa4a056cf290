"""Where weights come from: this package, a folder, or the Hugging Face hub."""

from pathlib import Path

from ddpo_fair import config_rules, hub
from ddpo_fair.errors import UserError

EMBEDDED = Path(__file__).parent / "embedded" / "weights"


def model_folder(reference: str, variant: str = "") -> Path:
    """The local folder of `config.model`, downloaded if need be.

    Args:
        reference: "embedded", a folder, or "owner/name@revision" on the hub.
        variant: `config.variant`, of what is downloaded.

    Raises:
        UserError: if there is no such model, or no way to it.
    """
    folder = _folder("model", reference, EMBEDDED / "text_to_image")
    if folder is not None:
        return folder
    return hub.download("model", reference, hub.MODEL_PARTS, _of_model, variant)


def classifier_folder(reference: str) -> Path:
    """The local folder of `config.classifier`, downloaded if need be."""
    folder = _folder("classifier", reference, EMBEDDED / "classifier")
    if folder is not None:
        return folder
    return hub.download("classifier", reference, hub.CLASSIFIER_PARTS, _of_classifier)


def _of_model(file: str) -> bool:
    folder, _, name = file.partition("/")
    return folder == "tokenizer" or (folder, name) == (
        "scheduler",
        "scheduler_config.json",
    )


def _of_classifier(file: str) -> bool:
    return file == "preprocessor_config.json"


def _folder(field: str, reference: str, embedded: Path) -> Path | None:
    """The folder that a reference means on this machine; None if it is on the hub."""
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
    return None
