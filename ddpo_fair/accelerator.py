"""Whether this host shows an accelerator, told without importing JAX."""

import os


def shown() -> bool:
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
