"""Descriptions of GPUs and TPUs that are not there, for which XLA compiles.

It needs the plugin of their kind, and no driver. No accelerator is woken.
"""

import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from ddpo_fair import parallel
from ddpo_fair.errors import UserError, shown

# XLA's GpuTargetConfigProto of this card, for the plugin of jax 0.10.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448 registers_per_core_limit: 65536
  registers_per_block_limit: 65536 cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA" device_description_str: "NVIDIA H100 80GB HBM3"
dnn_version_info { major: 9 minor: 28 patch: 1 }
runtime_version { major: 13 minor: 0 patch: 0 }
"""
H100_BYTES = 84942979072  # device_memory_size
FRACTION = "XLA_PYTHON_CLIENT_MEM_FRACTION"  # what JAX takes of it; .75 where unset
# Kernels would be measured on the device.
UNMEASURED = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Of each chip; libtpu 0.0.42 names it where it refuses a program.
TPU_GIB = {"v5e": 15.75, "v5p": 95.74, "v6e": 31.25}

GPUS = re.compile(r"h100(?::([1-9]\d{0,3}x[1-9]\d{0,3}x[1-9]\d{0,3}))?")
CHIPS = re.compile(r"(v5e|v5p|v6e):[1-9]\d{0,2}(?:x[1-9]\d{0,2}){1,2}")


def described(text: str) -> parallel.Target:
    """The devices that `--plan=text` names; a UserError where the plugin is missing.

    They are h100, h100:PARTITIONSxHOSTSxGPUS, or v5e, v5p, v6e with a topology.
    """
    jax.config.update("jax_platforms", "cpu")
    if gpus := GPUS.fullmatch(text):
        fraction = os.environ.get(FRACTION, "0.75")
        if not re.fullmatch(r"0?\.\d*[1-9]\d*|1(\.0*)?", fraction):
            raise UserError(
                f"{FRACTION}={shown(fraction)} must be above 0 and at most 1; unset it."
            )
        memory = int(float(fraction) * H100_BYTES)
        return parallel.Target(_gpus(gpus[1] or "1x1x1"), True, memory, UNMEASURED)
    if chips := CHIPS.fullmatch(text):
        return parallel.Target(_chips(text), memory=int(TPU_GIB[chips[1]] * 2**30))
    count = text if re.fullmatch(r"[1-9]\d{0,3}", text) else "8"
    raise UserError(
        f"--plan={shown(text)} must be h100, h100:1xHOSTSxGPUS, or"
        f" {' or '.join(TPU_GIB)} with a topology: {count} GPUs of one host are"
        f" --plan=h100:1x1x{count}, four TPU chips --plan=v5e:2x2. --plan alone is for"
        " the devices at hand."
    )


def _gpus(shape: str) -> tuple[Any, ...]:
    # Without a driver cuPTI has no version to check.
    os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
    try:
        topology = topologies.get_topology_desc(
            shape, "cuda", target_config=H100, topology=shape
        )
    except NotImplementedError:
        raise _lacking("NVIDIA GPUs", "cuda13") from None
    return tuple(topology.devices)


def _chips(name: str) -> tuple[Any, ...]:
    # Else libtpu asks Google Cloud which machine this is.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_WORKER_ID", "0")
    one = {"chips_per_host_bounds": [1, 1, 1]} if name.endswith(":1x1") else {}
    try:
        topology = topologies.get_topology_desc(name, "tpu", **one)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"--plan={name}: there is no such topology ({error}). Four chips of one"
            " host are v5e:2x2, v6e:2x2 or v5p:2x2x1."
        ) from None
    except RuntimeError:
        raise _lacking("TPUs", "tpu") from None
    return tuple(topology.devices)


def _lacking(kind: str, extra: str) -> UserError:
    return UserError(
        f"--plan: JAX has no compiler for {kind} here: `pip install"
        f" 'jax[{extra}]=={jax.__version__}'`, in an environment of its own if you"
        " like. It needs no device and no driver."
    )
