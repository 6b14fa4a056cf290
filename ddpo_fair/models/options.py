"""What the JSON files beside the weights may say: every option checked by a rule."""

import contextlib
import dataclasses
import os
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from ddpo_fair.errors import UserError, shown

T = TypeVar("T")
Rule = tuple[str, bool, str]  # an option, whether it is sound, what it must be

LARGEST = 10**6  # of a size; the largest vocabularies have a quarter of it
MOST_LAYERS = 200  # of one kind; the largest published encoders have 48
# Whole numbers that may be 0.
FROM_ZERO = ("freq_shift", "steps_offset", "dual_attention_layers")
FROM_ZERO += ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
SIGNED = ("shift_factor",)  # numbers of any sign, or 0
ORIGINAL = "use the file that came with the weights, or another model if this is it"
# What diffusers' EMAModel adds to the config.json of a network that it averaged.
OF_AVERAGING = ("decay", "inv_gamma", "min_decay", "optimization_step", "power")
OF_AVERAGING += ("update_after_step", "use_ema_warmup")


def check(
    place: str, values: Mapping[str, Any], rules: Iterable[Rule], fix: str = ORIGINAL
) -> None:
    """Raises a UserError with the place, every option that is wrong, and the fix."""
    wrong = [
        f"{name}={shown(values.get(name))} must be {rule}"
        for name, sound, rule in rules
        if not sound
    ]
    if wrong:
        raise UserError(f"{place}: {'; '.join(wrong)}; {fix}.")


def read(
    cls: type[T],
    content: Mapping[str, Any],
    place: str,
    fixed: Mapping[str, tuple] | None = None,
) -> T:
    """The dataclass `cls` of the options of its fields' names; lists become tuples.

    A flag that is null is false, as it is in Python. `fixed` has the allowed values of
    options that are no fields: any other must be null or false, unless its name begins
    with an underscore; None if further options concern no forward pass. A UserError
    names the options that are wrong and the `place`: the network and the file.
    """
    fields = {field.name: field.type for field in dataclasses.fields(cls)}
    if fixed is not None:
        read = {*fields, *OF_AVERAGING}
        others = {n: v for n, v in content.items() if n not in read and n[:1] != "_"}
        problem = f"{place} asks for what is not supported"
        rules = (among(others, n, fixed.get(n, (None, False))) for n in others)
        check(problem, others, rules, "use a Stable Diffusion 1, 2, XL or 3 model")
    given = {n: v for n, v in content.items() if n in fields}
    given |= {n: False for n, v in given.items() if v is None and fields[n] is bool}
    config = cls(**{name: _tuples(value) for name, value in given.items()})
    rules = []
    for name, kind in fields.items():
        most = MOST_LAYERS if "layers" in name else LARGEST
        least = -1000 if name in SIGNED else name not in FROM_ZERO
        fits, words = _rule(kind, range(least, most + 1))
        rules.append((name, fits(getattr(config, name)), words))
    check(place, vars(config), rules)
    return config


def divides(config: Any, divisor: str, size: str) -> Rule:
    """The rule that one option divides another, which is a number or several."""
    number, sizes = getattr(config, divisor), getattr(config, size)
    each = sizes if isinstance(sizes, tuple) else (sizes,)
    sound = all(n % number == 0 for n in each)
    return divisor, sound, f"a divisor of {size}={sizes}"


def among(config: Any, name: str, allowed: Iterable[Any]) -> Rule:
    """The rule that an option, of a dataclass or a dict, has one of some values."""
    content, values = config if isinstance(config, dict) else vars(config), [*allowed]
    return name, content.get(name) in values, " or ".join(map(repr, values))


@contextlib.contextmanager
def of(folder: str | os.PathLike) -> Iterator[None]:
    """Puts the model's folder before the message of a UserError from inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _rule(kind: Any, allowed: range) -> tuple[Callable[[Any], bool], str]:
    """Whether a value fits a field's type, and that in words."""
    parts = [_rule(part, allowed) for part in typing.get_args(kind) if part is not ...]
    if isinstance(kind, types.UnionType):
        words = " or ".join(words for _, words in parts)
        return lambda x: any(fits(x) for fits, _ in parts), words
    if typing.get_origin(kind) is tuple:
        ((fits, words),) = parts
        return (
            lambda x: type(x) is tuple and x != () and all(map(fits, x)),
            f"a list, each {words}",
        )
    least = min(1e-12, allowed[0])
    return {
        int: (
            lambda x: type(x) is int and x in allowed,
            f"a whole number from {allowed[0]} to {allowed[-1]}",
        ),
        float: (
            lambda x: type(x) in (int, float) and least <= x <= 1000,
            f"a number from {least} to 1000",
        ),
        bool: (lambda x: type(x) is bool, "true or false"),
        str: (lambda x: type(x) is str, "a text"),
        types.NoneType: (lambda x: x is None, "null"),
    }[kind]
