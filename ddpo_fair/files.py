"""Paths that somebody typed: made absolute, or refused in words."""

import os
from pathlib import Path

from ddpo_fair.errors import UserError, shown


def given(name: str, text: str | os.PathLike) -> Path:
    """The absolute path of a flag or a setting; whether it exists is another question.

    Args:
        name: of the flag or setting, for the message.
        text: as it was typed; ~ is the home.

    Raises:
        UserError: if no file could be named so.
    """
    text = os.fspath(text)
    try:
        if not text.strip():
            raise ValueError("it is empty")
        if any(ord(character) < 32 for character in text):
            raise ValueError("it holds a control character")
        path = Path(text).expanduser().resolve()
        path.exists()  # fails for a name too long, or a folder closed to us
    except (OSError, RuntimeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise UserError(
            f"{name}={shown(text)} cannot be used as a path ({reason}); give another."
        ) from error
    return path


def cache() -> Path:
    """Where this user keeps what can be made again."""
    home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(home) / "ddpo_fair"
