"""Devices and hosts: the only module that knows how many there are.

Arrays of images travel as [D, n, ...]: D devices (of all hosts), n images on each.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "data"


def mesh() -> Mesh:
    """All devices of all hosts on one axis, in the order `pmap` uses."""
    return Mesh(np.asarray(jax.devices()), (AXIS,))


def num_devices() -> int:
    """Devices of all hosts together."""
    return jax.device_count()


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal."""
    return jax.process_index() == 0


def pmap(function: Callable, in_axes: Any) -> Callable:
    """`function` on every device: axis None is the same for all, axis 0 is split.

    The output is [D, n, ...] with the sharding that the jitted update takes: no copy.
    """
    return jax.pmap(function, axis_name=AXIS, in_axes=in_axes)


def split(array: np.ndarray | jax.Array) -> jax.Array:
    """[N, ...] on every host as [D, N/D, ...] over the devices, in the same order."""
    shape = (num_devices(), len(array) // num_devices(), *array.shape[1:])
    sharding = NamedSharding(mesh(), PartitionSpec(AXIS))
    blocks = array.reshape(shape)
    return jax.make_array_from_callback(shape, sharding, lambda index: blocks[index])


def replicate(tree: Any) -> Any:
    """`tree` on every device."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec()))


def gather(array: jax.Array) -> np.ndarray:
    """[D, n, ...] over the devices as NumPy [N, ...], the same on every host."""
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    host = np.asarray(array)
    return host.reshape(-1, *host.shape[2:])


def has_accelerator() -> bool:
    """Whether this host has a GPU or TPU that JAX may use; starts no backend.

    `jax.distributed.initialize` must come before any backend, and the choice of the
    model comes before both, so the answer is read from the environment and /dev.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return any(name in platforms for name in ("cuda", "rocm", "gpu", "tpu"))
    tpu = os.environ.get("TPU_WORKER_ID") or os.environ.get("TPU_NAME")
    names = ("/dev/nvidia0", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")
    return bool(tpu) or any(os.path.exists(name) for name in names)
