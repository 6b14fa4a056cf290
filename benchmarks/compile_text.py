"""What the text of a compiled program tells: its attentions, products and copies."""

import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(")  # of a computation
LINE = re.compile(r"^ *(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)")
ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")  # e.g. bf16[320,1280]
GIVEN = {"parameter", "get-tuple-element", "bitcast"}
MOVES = GIVEN | {"copy", "copy-start", "transpose", "convert", "reshape"}
PRODUCT = re.compile(r'custom_call_target="__(?:cudnn\$conv|cublas)')
LONG = 1024  # states: attention among fewer has small logits


class Array(NamedTuple):
    bits: int  # of an element
    shape: tuple[int, ...]  # without axes of size 1

    @property
    def megabytes(self) -> float:
        return self.bits * math.prod(self.shape) / 8e6


class Operation(NamedTuple):
    often: str  # "once", "each turn" of a loop, or "" within anything else
    where: str  # its computation
    name: str
    type: str
    arrays: list[Array]  # its results
    kind: str
    operands: list[str]
    rest: str

    @property
    def callee(self) -> str:
        return "".join(re.findall(r"calls=%?([\w.-]+)", self.rest)[:1])


def facts(text: str) -> dict[str, Any]:
    """Flash attentions; largest logits; products by their operands' bits; copies.

    Logits are results with an axis of at least `LONG` twice that no argument has alike.
    Copies are of arguments whose layout or dtype alone changes, in the device's memory.
    """
    operations = list(_operations(text))
    arrays = {x.name: x.arrays for x in operations}
    fused = {x.callee for x in operations}
    given: set[str] = set()  # names of arguments, of the program or of a loop
    kernels: set[tuple] = set()  # the program's, by shape
    does: dict[str, set[str]] = {}  # kinds of operations, by computation
    logits, products, copied = [0.0], Counter(), Counter()
    for x in operations:
        does.setdefault(x.where, set()).add(x.kind)
        if x.kind in GIVEN and given.issuperset(x.operands):
            given.add(x.name)
            kernels |= {tuple(sorted(a.shape)) for a in x.arrays if x.often == "once"}
        if x.kind in ("convolution", "dot") or PRODUCT.search(x.rest):
            products[f"{arrays[x.operands[0]][0].bits} bits"] += 1
        kinds = does[x.callee] if x.kind == "fusion" else {x.kind}
        moved = kinds <= MOVES and not kinds <= GIVEN and given.issuperset(x.operands)
        if x.often and moved and "S(1)" not in x.type:  # a TPU's fast memory
            copied[x.often] += x.arrays[0].megabytes
    for array in (a for x in operations if x.where not in fused for a in x.arrays):
        twice = any(n >= LONG and array.shape.count(n) > 1 for n in array.shape)
        if twice and tuple(sorted(array.shape)) not in kernels:
            logits.append(array.megabytes)
    return {
        "flash": len(re.findall("__cudnn.fmha", text)),
        "logits_mb": round(max(logits)),
        "products": "; ".join(f"{n} of {x}" for x, n in sorted(products.items())),
        "copied_mb": "; ".join(f"{n:.0f} {x}" for x, n in sorted(copied.items())[::-1]),
    }


def _operations(text: str) -> Iterator[Operation]:
    """In the order of the text, where what is called comes before its caller."""
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    often = where = ""
    for line in text.splitlines():
        if line[:1] in ("%", "E") and (head := HEAD.match(line)):
            where = head[2]
            often = "once" if head[1] else "each turn" if where in bodies else ""
        elif found := LINE.match(line):
            name, type_, kind, rest = found.groups()
            arrays = [
                Array(
                    int(bits),
                    tuple(int(n) for n in shape.split(",") if n not in ("", "1")),
                )
                for bits, shape in ARRAY.findall(type_)
            ]
            operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            yield Operation(often, where, name, type_, arrays, kind, operands, rest)
