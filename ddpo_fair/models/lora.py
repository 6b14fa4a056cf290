"""Low-rank adapters of dense and convolution kernels (Hu et al. 2021).

An adapter is {"down", "up"}: a dense kernel [in, out] gets down [in, r] and up
[r, out]; a convolution [k, k, in, out] gets down [k, k, in, r] and up [1, 1, r, out].
These are the two layers of diffusers' and PEFT's format (lora_A and lora_B). A row of
layers, see `rows`, gets those of each layer in one: down [n, in, r] and up [n, r, out].
"""

import functools
import zlib
from collections.abc import Collection, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from ddpo_fair.errors import UserError
from ddpo_fair.models import layers, rows

Adapters = dict[str, dict[str, jax.Array]]  # by the dotted path of the layer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = ("",)


def init(
    key: jax.Array, params: dict[str, Any], rank: int, target_modules: Sequence[str]
) -> Adapters:
    """Adapters that change nothing yet: `up` is zero.

    A layer's `down` depends on the key and its path, not on the other layers. Of a row
    all layers are adapted, or none.

    Args:
        key: one PRNG key.
        params: nested dicts of a network; kernels [in, out] or [k, k, in, out], or
            their shapes.
        rank: of every adapter; a UserError for one that is too large.
        target_modules: parts of the dotted paths of the layers to adapt, e.g.
            `ATTENTION` or "mid_block"; `EVERYWHERE` for all that have a kernel. A
            UserError for one that is part of no layer's path.
    """
    if rank < 1:
        raise UserError(f"LoRA rank={rank} must be at least 1.")
    kernels = kernels_of(params)
    chosen = _chosen(kernels, target_modules)
    most = max(min(*kernels[path].shape[-2:]) for path in chosen)
    if rank > most:
        raise UserError(
            f"train.lora.rank={rank} must be at most {most}, the smaller side of the"
            " largest layer that is adapted; or 0, which trains all weights."
        )

    def of(path: str) -> dict[str, jax.Array]:
        each = rows.apart({path: kernels[path]})
        numbers = {x: np.uint32(zlib.crc32(x.encode())) for x in each}
        return rows.together(
            [_init_one(key, numbers[x], each[x].shape, rank) for x in each]
        )

    return {path: of(path) for path in sorted(chosen)}


def _chosen(kernels: dict[str, Any], target_modules: Sequence[str]) -> set[str]:
    """The kernels' paths that target modules name; a UserError for unfit ones."""
    members = {path: rows.members(path) for path in kernels}
    names = {name for each in members.values() for name in each}
    named: set[str] = set()
    for target in target_modules:
        found = {name for name in names if has_part(name, target)}
        if not found:
            parts = sorted({part for name in names for part in name.split(".")})
            raise UserError(
                f"train.lora.target_modules={target!r} is no part of a layer's path; "
                f"the parts are {', '.join(parts)}. Name some of them."
            )
        named |= found
    chosen = {path for path, each in members.items() if named & {*each}}
    for path in sorted(chosen):
        if left := sorted({*members[path]} - named):
            raise UserError(
                f"train.lora.target_modules={tuple(target_modules)} names some of"
                f" {path}, layers that are trained together or not at all, but not"
                f" {left[0]}; name a part of the path that all have, or none of them."
            )
    return chosen


@functools.partial(jax.jit, static_argnames=("shape", "rank"))  # one of each shape
def _init_one(
    key: jax.Array, number: np.uint32, shape: tuple[int, ...], rank: int
) -> dict[str, jax.Array]:
    *window, fan_in, fan_out = shape
    key = jax.random.fold_in(key, number)
    return {
        # PEFT's initialisation, which is PyTorch's of a layer
        "down": layers.kernel_init(key, (*window, fan_in, rank), jnp.float32),
        "up": jnp.zeros((*(1 for _ in window), rank, fan_out), jnp.float32),
    }


def merge(
    params: dict[str, Any], lora: Adapters, scale: float | jax.Array = 1.0
) -> dict[str, Any]:
    """Parameters with each adapted kernel W replaced by W + scale * down @ up.

    `params` is not changed; `scale` is alpha / rank, where alpha is used. A UserError
    if an adapter's layer is not among the parameters.
    """
    return replace(params, adapted(params, lora, scale))


def adapted(
    params: dict[str, Any], lora: Adapters, scale: float | jax.Array = 1.0
) -> dict[str, jax.Array]:
    """The kernels that `merge` puts in place, by the dotted path of their layer.

    Of the shapes of those in `params`: [in, out], [k, k, in, out], or [n, in, out].
    """
    kernels = kernels_of(params)
    strangers = sorted(lora.keys() - kernels.keys())
    if strangers:
        raise UserError(
            f"LoRA adapters of layers that the network lacks: {', '.join(strangers)}."
        )
    merged = {}
    for path, adapter in lora.items():
        up = adapter["up"]
        if up.ndim == 4:  # of a convolution
            up = up.reshape(up.shape[-2:])
        merged[path] = kernels[path] + scale * (adapter["down"] @ up)
    return merged


def frozen(
    params: dict[str, Any], adapted: Collection[str], dtype: jax.typing.DTypeLike
) -> dict[str, Any]:
    """Parameters whose kernels are in the dtype of the computation, but those adapted.

    The network casts them to it before use, so its outputs stay the same bits. Kernels
    of the layers `adapted`, dotted paths, stay float32: what an adapter adds may be too
    small for the dtype. Shapes stay shapes; `params` is not changed.
    """
    others = {x: y for x, y in kernels_of(params).items() if x not in adapted}
    return replace(params, jax.tree.map(lambda x: _cast(x, dtype), others))


def _cast(x: Any, dtype: Any) -> Any:
    is_shape = isinstance(x, jax.ShapeDtypeStruct)
    return x.update(dtype=dtype) if is_shape else x.astype(dtype, copy=False)


def replace(params: dict[str, Any], kernels: dict[str, jax.Array]) -> dict[str, Any]:
    """Parameters with other kernels, by the dotted path of their layer.

    Of the same shapes, see `adapted`; `params` is not changed.
    """

    def choose(path: tuple[str, ...], leaf: Any) -> Any:
        *layer, name = path
        return kernels.get(".".join(layer), leaf) if name == "kernel" else leaf

    return traverse_util.path_aware_map(choose, params)


def kernels_of(params: dict[str, Any]) -> dict[str, Any]:
    """The kernel of every layer that has one, by the dotted path of the layer."""
    leaves = traverse_util.flatten_dict(params).items()
    return {".".join(path[:-1]): leaf for path, leaf in leaves if path[-1] == "kernel"}


def has_part(path: str, target: str) -> bool:
    """Whether a target module of `init` names the layer at a dotted path."""
    return target == "" or f".{target}." in f".{path}."
