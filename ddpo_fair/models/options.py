"""What the config.json of a network may say."""

import contextlib
import dataclasses
import math
import os
import types
import typing
from collections.abc import Iterator
from typing import Any, TypeVar

from ddpo_fair import errors

T = TypeVar("T")

LARGEST = 10**6  # of a size; the largest vocabularies have a quarter of it
MOST_LAYERS = 200  # of one kind; the largest published encoders have 48
FROM_ZERO = ("freq_shift",)  # whole numbers that may be 0


def read(cls: type[T], json_dict: dict[str, Any], network: str) -> T:
    """The dataclass `cls` of the options of its fields' names; lists become tuples.

    Args:
        cls: whose fields say what is obeyed, and of which type it must be.
        json_dict: the file's content.
        network: its name, for the message.

    Raises:
        UserError: names the first option that is of another type, or cannot be so
            large.
    """
    names = {field.name for field in dataclasses.fields(cls)}
    config = cls(
        **{
            name: tuple(value) if isinstance(value, list) else value
            for name, value in json_dict.items()
            if name in names
        }
    )
    for name, kind in ((field.name, field.type) for field in dataclasses.fields(cls)):
        value, allowed = getattr(config, name), _range(name)
        rule = f"{name}={errors.shown(value)} must be {_meaning(kind, allowed)}"
        require(_fits(value, kind, allowed), network, rule)
    return config


def refuse(
    cls: type, json_dict: dict[str, Any], network: str, fixed: dict[str, tuple]
) -> None:
    """Checks that a config.json asks for nothing that the network does not do.

    Args:
        cls: whose fields are obeyed. Any other option must be null or false; names
            beginning with an underscore are the file's own business.
        json_dict: the file's content.
        network: its name, for the message.
        fixed: options that are read only to be checked, with their allowed values.

    Raises:
        UserError: names every option that is not supported, and its value.
    """
    known = {field.name for field in dataclasses.fields(cls)}
    wrong = []
    for name, value in json_dict.items():
        if name.startswith("_") or name in known:
            continue
        allowed = fixed.get(name, (None, False))
        if value not in allowed:
            wrong.append(f"{name}={errors.shown(value)} (supported: {_list(allowed)})")
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
        raise errors.UserError(
            f"{network}: config.json: {message}; use the config.json that came with"
            " the weights."
        )


def require_divisor(config: Any, network: str, divisor: str, size: str) -> None:
    """Checks that one option divides another, which is a number or several.

    Raises:
        UserError: names both, if it does not.
    """
    number, sizes = getattr(config, divisor), getattr(config, size)
    require(
        all(n % number == 0 for n in (sizes if isinstance(sizes, tuple) else (sizes,))),
        network,
        f"{divisor}={number} must divide {size}={sizes}",
    )


@contextlib.contextmanager
def of(folder: str | os.PathLike) -> Iterator[None]:
    """Puts the model's folder before the message of a UserError from inside."""
    try:
        yield
    except errors.UserError as error:
        raise errors.UserError(f"{folder}: {error}") from None


def _range(name: str) -> range:
    most = MOST_LAYERS if "layers" in name else LARGEST
    return range(0 if name in FROM_ZERO else 1, most + 1)


def _fits(value: Any, kind: Any, allowed: range) -> bool:
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_fits(value, part, allowed) for part in parts)
    if typing.get_origin(kind) is tuple:
        return (
            isinstance(value, tuple)
            and len(value) > 0
            and all(_fits(item, parts[0], allowed) for item in value)
        )
    if kind is int:
        return type(value) is int and value in allowed
    if kind is float:
        return type(value) in (int, float) and 0 < value < math.inf
    return isinstance(value, kind)


def _meaning(kind: Any, allowed: range) -> str:
    """The rule of `_fits` in words."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return " or ".join(_meaning(part, allowed) for part in parts)
    if typing.get_origin(kind) is tuple:
        return f"a list, each {_meaning(parts[0], allowed)}"
    words = {
        int: f"a whole number from {allowed[0]} to {allowed[-1]}",
        float: "a number above 0",
        bool: "true or false",
        types.NoneType: "null",
    }
    return words.get(kind, "a text")


def _list(values: tuple) -> str:
    return " or ".join(repr(value) for value in values)
