"""Rows: many equal layers, one after another, that run as a loop over one of them.

XLA compiles one layer, not each, and an optimizer has one array instead of many. A row
is called by the numbers of its layers, "transformer_blocks.0-9", and its parameters
have an axis of the layers in front. Files have tensors of each layer, by its own name.
"""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ddpo_fair import parallel

MANY = 8  # layers; a loop over fewer saves little

NUMBERS = re.compile(r"\.(\d+)-(\d+)(?=\.|$)")


def apply(
    make: Callable[..., nn.Module],
    name: str,
    numbers: Sequence[int],
    x: Any,
    *context: jax.Array,
) -> Any:
    """What equal layers make of x one after another; in a module's `__call__`.

    Args:
        make: makes a layer, given its name; it maps x and the context to a new x.
        name: of the layers but for their numbers, e.g. "transformer_blocks".
        numbers: of the layers, which follow each other.
        x: what goes through, a tree of arrays.
        context: what each layer gets besides.
    """
    if len(numbers) < MANY:
        for i in numbers:
            x = make(name=f"{name}.{i}")(x, *context)
        return x
    scan = nn.scan(
        lambda layer, x, *context: (layer(x, *context), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=len(numbers),
        # Of a loop XLA would count one turn.
        unroll=len(numbers) if parallel.counted() else 1,
    )
    row = make(name=f"{name}.{numbers[0]}-{numbers[-1]}")
    return scan(row, x, *context)[0]


def members(path: str) -> list[str]:
    """The dotted paths of a row's layers; of any other path it alone."""
    if not (match := NUMBERS.search(path)):
        return [path]
    before, after = path[: match.start()], path[match.end() :]
    numbers = range(int(match[1]), int(match[2]) + 1)
    return [f"{before}.{i}{after}" for i in numbers]


def apart(by_path: dict[str, Any]) -> dict[str, Any]:
    """Trees by the dotted paths of layers; of a row the part [...] of each of its own.

    Of arrays or shapes, of a row [n, ...].
    """

    def part(x: Any, i: int) -> Any:
        is_shape = isinstance(x, jax.ShapeDtypeStruct)
        return jax.ShapeDtypeStruct(x.shape[1:], x.dtype) if is_shape else x[i]

    found = {}
    for path, tree in by_path.items():
        if NUMBERS.search(path):
            for i, name in enumerate(members(path)):
                found[name] = jax.tree.map(functools.partial(part, i=i), tree)
        else:
            found[path] = tree
    return found


def together(trees: Sequence[Any], xp: Any = jnp) -> Any:
    """The tree of a row, arrays [n, ...], of those of its layers; of one it itself."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *x: xp.stack(x), *trees)
