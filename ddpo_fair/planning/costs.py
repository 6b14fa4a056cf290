"""What a traced program costs, counted from its jaxpr: operations and memory.

Nothing is compiled and no weight is read, so the numbers of a model that fits no
machine at hand come in seconds.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core
from jax.interpreters import partial_eval as pe

from ddpo_fair import parallel

# Primitives whose result XLA writes to memory; the others are fused into their users.
WRITTEN = frozenset(
    (
        "dot_general",
        "conv_general_dilated",
        "concatenate",
        "gather",
        "scatter",
        "scatter-add",
        "dynamic_slice",
        "dynamic_update_slice",
        "scan",
        "while",
        "cond",
        "sort",
        "custom_call",
    )
)
# Primitives that read their operands from memory, which hence must be written.
READING = frozenset(("dot_general", "conv_general_dilated", "scan", "while", "cond"))
# Reductions write something small; it may still outlive what it was made of.
REDUCTIONS = frozenset(("reduce_sum", "reduce_max", "argmax", "reduce_and"))
# What is only another view of memory.
VIEWS = frozenset(("reshape", "squeeze", "expand_dims", "copy", "stop_gradient"))


@dataclasses.dataclass(frozen=True)
class Cost:
    """Of one call of a program."""

    flops: int  # of matrix products and convolutions; 2 a multiply-add
    working_bytes: int  # most that is live at once beyond the arguments: an estimate


def of(function: Any, *arguments: Any) -> Cost:
    """Cost of `function(*arguments)`, whose arguments may be shapes."""
    closed = jax.make_jaxpr(function)(*arguments)
    # Without what nobody uses, e.g. gradients of weights that no adapter changes.
    used, _ = pe.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return Cost(flops(used), working_bytes(used))


def num_bytes(tree: Any) -> int:
    """Bytes of the arrays, or shapes, of a tree."""
    return sum(_size(leaf) for leaf in jax.tree.leaves(tree))


def bytes_on_each(tree: Any, num_devices: int) -> int:
    """Bytes that each device has of a tree that `parallel.divided` divides."""

    def share(leaf: Any) -> int:
        whole = parallel.divided_axis(leaf.shape, num_devices) is None
        return _size(leaf) if whole else _size(leaf) // num_devices

    return sum(share(leaf) for leaf in jax.tree.leaves(tree))


def flops(jaxpr: core.Jaxpr) -> int:
    """Operations of matrix products and convolutions; loops count every turn."""
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _flops_of_dot(equation)
        elif name == "conv_general_dilated":
            total += _flops_of_convolution(equation)
        inner = [flops(one) for one in _inner(equation)]
        if name == "cond":
            total += max(inner)
        else:
            total += equation.params.get("length", 1) * sum(inner)
    return total


def working_bytes(jaxpr: core.Jaxpr) -> int:
    """Most bytes live at once, without the arguments, in the order of the program.

    What is neither input nor output of a product, a convolution or a loop is taken to
    be fused: it costs nothing, but keeps alive what it is computed from.
    """
    steps = list(_flat(jaxpr, {}))
    written = _written(steps)
    sources: dict[Any, frozenset] = {}
    for step in steps:
        _note_sources(step, written, sources)
    for variable in jaxpr.outvars:
        sources.setdefault(variable, frozenset())
    last_use: dict[Any, int] = {}
    for index, step in enumerate(steps):
        for variable in step.reads:
            for source in sources.get(variable, ()):
                last_use[source] = index
    for variable in map(_key, jaxpr.outvars):
        for source in sources.get(variable, ()):
            last_use[source] = len(steps)
    return _peak(steps, written, last_use)


@dataclasses.dataclass
class _Step:
    name: str
    reads: list[Any]
    writes: list[tuple[Any, int]]  # variable, bytes
    inside: int  # bytes that a loop's body needs for itself


def _peak(steps: list[_Step], written: set, last_use: dict[Any, int]) -> int:
    live, peak = 0, 0
    ends: dict[int, int] = {}
    for index, step in enumerate(steps):
        for variable, size in step.writes:
            if variable in written:
                live += size
                end = last_use.get(variable, index)
                ends[end] = ends.get(end, 0) + size
        peak = max(peak, live + step.inside)
        live -= ends.pop(index, 0)
    return peak


def _written(steps: list[_Step]) -> set:
    """Variables that are in memory at some time."""
    written = set()
    maker = {variable: step for step in steps for variable, _ in step.writes}
    for step in steps:
        if step.name in WRITTEN or step.name in REDUCTIONS:
            written |= {variable for variable, _ in step.writes}
        if step.name in READING:
            for variable in step.reads:
                while variable in maker and maker[variable].name in VIEWS:
                    variable = maker[variable].reads[0]  # a view costs nothing
                written.add(variable)
    return written


def _note_sources(step: _Step, written: set, sources: dict[Any, frozenset]) -> None:
    """Which variables in memory each result is computed from."""
    union = frozenset().union(*(sources.get(v, frozenset()) for v in step.reads))
    for variable, _ in step.writes:
        sources[variable] = frozenset((variable,)) if variable in written else union


def _flat(jaxpr: core.Jaxpr, names: dict[Any, Any]) -> Iterator[_Step]:
    """The steps of a program with its calls written out; loops stay one step."""
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        reads = [names.get(v, v) for v in map(_key, equation.invars) if v is not None]
        inner = list(_inner(equation))
        called = len(inner) == 1 and name not in ("scan", "while", "cond")
        if called and len(inner[0].invars) <= len(equation.invars):
            body = inner[0]
            given = equation.invars[len(equation.invars) - len(body.invars) :]
            inside = _named(body.invars, given, names)
            mark = object()  # a body called twice has variables of its own each time
            scope = _Scope(mark, inside)
            yield from _flat(body, scope)
            for outer, result in zip(equation.outvars, body.outvars, strict=True):
                key = _key(result)
                if key is not None:
                    names[outer] = scope.get(key, key)
            continue
        writes = [(names.get(v, v), _size(v.aval)) for v in equation.outvars]
        needs = max((working_bytes(one) for one in inner), default=0)
        yield _Step(name, reads, writes, needs)


class _Scope(dict):
    """Names inside one call: known ones, and fresh ones for its own variables."""

    def __init__(self, mark: object, known: dict[Any, Any]) -> None:
        super().__init__(known)
        self.mark = mark

    def get(self, variable: Any, default: Any = None) -> Any:
        if variable not in self:
            self[variable] = (self.mark, variable)
        return self[variable]


def _named(inner: Any, given: Any, names: dict[Any, Any]) -> dict[Any, Any]:
    pairs = zip(inner, map(_key, given), strict=True)
    return {
        variable: names.get(key, key) if key is not None else None
        for variable, key in pairs
    }


def _key(variable: Any) -> Any:
    """The variable, or None for a literal, which may not be hashable."""
    return None if isinstance(variable, core.Literal) else variable


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Programs that an equation calls."""
    for value in equation.params.values():
        for one in value if isinstance(value, tuple | list) else (value,):
            if isinstance(one, core.ClosedJaxpr):
                yield one.jaxpr
            elif isinstance(one, core.Jaxpr):
                yield one


def _size(aval: Any) -> int:
    try:
        return math.prod(aval.shape) * aval.dtype.itemsize
    except AttributeError:  # a token
        return 0


def _flops_of_dot(equation: core.JaxprEqn) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    depth = math.prod(left[axis] for axis in contracted)
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)


def _flops_of_convolution(equation: core.JaxprEqn) -> int:
    params, kernel = equation.params, equation.invars[1].aval.shape
    spec = params["dimension_numbers"].rhs_spec  # out, in, then the window
    depth = math.prod(kernel[axis] for axis in spec[1:])
    # Zeros between the pixels of a strided convolution's gradient are skipped.
    depth //= math.prod(params["lhs_dilation"])
    return 2 * depth * math.prod(equation.outvars[0].aval.shape)
