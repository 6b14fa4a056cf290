"""Low-rank adapters of dense and convolution kernels (Hu et al. 2021).

An adapter is {"down", "up"}: a dense kernel [in, out] gets down [in, r] and up
[r, out]; a convolution [k, k, in, out] gets down [k, k, in, r] and up [1, 1, r, out].
These are the two layers of diffusers' and PEFT's format (lora_A and lora_B).
"""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ddpo_fair import errors
from ddpo_fair.models import layers

Adapters = dict[str, dict[str, jax.Array]]  # by the dotted path of the layer

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
EVERYWHERE = ("",)


def init(
    key: jax.Array, params: dict[str, Any], rank: int, sites: Sequence[str]
) -> Adapters:
    """Adapters that change nothing yet: `up` is zero.

    A site's `down` depends on the key and its path, not on the other sites.

    Args:
        key: one PRNG key.
        params: of a network, or their shapes.
        rank: of every adapter.
        sites: parts of the dotted paths of the layers to adapt, e.g. `ATTENTION` or
            "mid_block"; `EVERYWHERE` for all that have a kernel.

    Raises:
        UserError: if the rank is not positive, or a site is part of no layer's path.
    """
    if rank < 1:
        raise errors.UserError(f"LoRA rank={rank} must be at least 1.")
    kernels = dict(_kernels(params))
    chosen = set()
    for site in sites:
        matches = {path for path in kernels if has_part(path, site)}
        if not matches:
            parts = sorted({part for path in kernels for part in path.split(".")})
            raise errors.UserError(
                f"LoRA site {site!r} is no part of a layer's path; the parts are "
                f"{', '.join(parts)}. Name some of them in train.lora.target_modules."
            )
        chosen |= matches
    return {
        path: _init_one(key, path, kernels[path].shape, rank) for path in sorted(chosen)
    }


def _init_one(
    key: jax.Array, path: str, shape: tuple[int, ...], rank: int
) -> dict[str, jax.Array]:
    *window, fan_in, fan_out = shape
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return {
        # PEFT's initialisation, which is PyTorch's of a layer
        "down": layers.kernel_init(key, (*window, fan_in, rank), jnp.float32),
        "up": jnp.zeros((*(1 for _ in window), rank, fan_out), jnp.float32),
    }


def merge(
    params: dict[str, Any], lora: Adapters, scale: float | jax.Array = 1.0
) -> dict[str, Any]:
    """Parameters with each adapted kernel W replaced by W + scale * down @ up.

    Args:
        params: of the network; not changed.
        lora: of `init`.
        scale: alpha / rank, where alpha is used.

    Raises:
        UserError: if an adapter's layer is not among the parameters.
    """
    return replace(params, adapted(params, lora, scale))


def adapted(
    params: dict[str, Any], lora: Adapters, scale: float | jax.Array = 1.0
) -> dict[str, jax.Array]:
    """The kernels that `merge` puts in place, by the dotted path of their layer."""
    kernels = dict(_kernels(params))
    strangers = sorted(lora.keys() - kernels.keys())
    if strangers:
        raise errors.UserError(
            f"LoRA adapters of layers that the network lacks: {', '.join(strangers)}."
        )
    merged = {}
    for path, adapter in lora.items():
        up = adapter["up"].reshape(adapter["up"].shape[-2:])  # [r, out]
        merged[path] = kernels[path] + scale * (adapter["down"] @ up)
    return merged


def replace(
    params: dict[str, Any],
    kernels: dict[str, jax.Array],
    path: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Parameters with other kernels at the dotted paths of `kernels`."""
    replaced = {}
    for name, value in params.items():
        if isinstance(value, dict):
            value = replace(value, kernels, (*path, name))
        elif name == "kernel":
            value = kernels.get(".".join(path), value)
        replaced[name] = value
    return replaced


def _kernels(params: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple]:
    """(dotted path of the layer, kernel) of every layer that has one."""
    for name, value in params.items():
        if isinstance(value, dict):
            yield from _kernels(value, (*path, name))
        elif name == "kernel":
            yield ".".join(path), value


def has_part(path: str, site: str) -> bool:
    """Whether a site of `init` names the layer at a dotted path."""
    return site == "" or f".{site}." in f".{path}."
