"""What the config.json of a network may say."""

from typing import Any

from ddpo_fair import errors


def refuse(
    options: dict[str, Any], network: str, fixed: dict[str, tuple], known: set[str]
) -> None:
    """Checks that a config.json asks for nothing that the network does not do.

    Args:
        options: the file's content.
        network: its name, for the message.
        fixed: options that are read only to be checked, with their allowed values.
        known: options that the network obeys. Any other must be null or false;
            names beginning with an underscore are the file's own business.

    Raises:
        UserError: names every option that is not supported, and its value.
    """
    wrong = []
    for name, value in options.items():
        if name.startswith("_") or name in known:
            continue
        allowed = fixed.get(name, (None, False))
        if value not in allowed:
            wrong.append(f"{name}={value!r} (supported: {_list(allowed)})")
    if wrong:
        raise errors.UserError(
            f"{network}: config.json asks for what is not supported: "
            f"{'; '.join(wrong)}. Use a Stable Diffusion 1.x or 2.x model."
        )


def require(condition: bool, network: str, message: str) -> None:
    """Checks one rule of a config.json.

    Raises:
        UserError: network and message, if the condition does not hold.
    """
    if not condition:
        raise errors.UserError(f"{network}: config.json: {message}")


def _list(values: tuple) -> str:
    return " or ".join(repr(value) for value in values)
