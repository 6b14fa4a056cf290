"""Which accelerators this host shows to JAX, told without importing JAX."""

import glob
import importlib.metadata
import importlib.util
import os

# By the extra whose plugin it needs: devices, and what hides them where it is empty.
KINDS = {
    "cuda": (("/dev/nvidia[0-9]*", "/dev/dxg"), "CUDA_VISIBLE_DEVICES"),
    "rocm": (("/dev/kfd",), "HIP_VISIBLE_DEVICES"),
    "tpu": (("/dev/accel[0-9]*", "/dev/vfio/[0-9]*"), "TPU_VISIBLE_CHIPS"),
}


def shown() -> bool:
    """Whether this host has a GPU or TPU that JAX can use; starts no backend.

    `jax.distributed.initialize` must come before any backend, and the choice of the
    model comes before both, so the answer is read from the environment, /dev, and
    JAX's installed plugins.
    """
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms:
        return any(name in platforms for name in ("cuda", "rocm", "gpu", "tpu"))
    return any(map(_has_plugin, _present()))


def without_plugin() -> list[str]:
    """Extras that JAX lacks for devices that this host has."""
    if os.environ.get("JAX_PLATFORMS"):
        return []
    return [kind for kind in _present() if not _has_plugin(kind)]


def _present() -> list[str]:
    """Kinds of accelerators of which this host has devices that are not hidden."""
    tpu = os.environ.get("TPU_WORKER_ID") or os.environ.get("TPU_NAME")
    return [
        kind
        for kind, (devices, hiding) in KINDS.items()
        if os.environ.get(hiding, "0") not in ("", "-1")
        and (any(map(glob.glob, devices)) or (kind == "tpu" and tpu))
    ]


def _has_plugin(kind: str) -> bool:
    if kind == "tpu":
        return importlib.util.find_spec("libtpu") is not None
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return any(kind in plugin.name for plugin in plugins)
