"""Devices and hosts: the only module that knows how many there are.

Arrays of images travel as [D, n, ...]: D devices (of all hosts), n images on each.
"""

import contextlib
import ctypes
import dataclasses
import functools
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from ddpo_fair import accelerator, errors, files
from ddpo_fair.errors import UserError, first_line, shown

AXIS = "data"
# Of address space: measured on two cores, JAX's threads alone end the process in 3e9.
LEAST_BYTES = 6 * 10**9
ALONE = (
    "The other processes cannot be joined. Start the same command on all hosts within"
    " five minutes, with the same distributed.coordinator_address, which is process"
    " 0's, and num_processes, each with its own process_id from 0; TPU slices and Slurm"
    " need none of the three."
)


@dataclasses.dataclass(frozen=True, eq=False)
class Target:
    """Devices that programs are made for, and that need not be there."""

    devices: tuple[Any, ...]
    has_flash_attention: bool = False
    memory: int = 0  # bytes that programs may take of each device
    compiler_options: dict[str, Any] = dataclasses.field(default_factory=dict)
    counted: bool = False  # only lowered, for XLA to count the work


# `with made_for(target)` programs are traced, lowered and compiled for a `Target`; else
# for the devices at hand. JAX traces anew where it changes.
made_for = jax.make_user_context(default_value=None)


def devices() -> Sequence[Any]:
    """Of all hosts: those programs are made for, else those at hand."""
    return jax.devices() if made_for.value is None else made_for.value.devices


def mesh() -> Mesh:
    """All devices of all hosts on one axis, in the order `pmap` uses: host by host."""
    by_host = sorted(devices(), key=lambda device: device.process_index)
    return Mesh(np.asarray(by_host), (AXIS,))


def num_devices() -> int:
    """Devices of all hosts together."""
    return len(devices())


def on_cpu() -> bool:
    """Whether the devices are a CPU's."""
    return devices()[0].platform == "cpu"


def num_processes() -> int:
    """Processes of all hosts that train together."""
    return jax.process_count()


def is_main() -> bool:
    """Whether this process writes files and talks to the terminal."""
    return jax.process_index() == 0


def pmap(function: Callable, in_axes: Any) -> Callable:
    """`function` on every device: axis None is the same for all, axis 0 is split.

    The output is [D, n, ...] with the sharding that the jitted update takes: no copy.
    """
    of_target = None if made_for.value is None else devices()
    mapped = jax.pmap(function, axis_name=AXIS, in_axes=in_axes, devices=of_target)
    specs = [PartitionSpec(*([] if axis is None else [AXIS])) for axis in in_axes]

    def call(*arguments: Any) -> Any:
        if jax.process_count() == 1:
            return mapped(*arguments)
        # Among several processes pmap takes and returns each one's own part.
        own = [
            jax.tree.map(lambda x, spec=spec: _own(x, spec), argument)
            for argument, spec in zip(arguments, specs, strict=True)
        ]
        return multihost_utils.host_local_array_to_global_array(
            mapped(*own), mesh(), PartitionSpec(AXIS)
        )

    call.lower = mapped.lower
    return call


def on_each(function: Callable, in_axes: Any, axis: int) -> Callable:
    """Under `jit`, `function` of each device's part of its arguments; None: of all.

    Of the two trees that it returns the first is added up over all devices, in its own
    dtype, the second joined along the axis.
    """

    def on_one(*arguments: Any) -> Any:
        total, parts = function(*arguments)
        return jax.lax.psum(total, AXIS), parts

    specs = jax.tree.map(
        lambda x: PartitionSpec() if x is None else PartitionSpec(*[None] * x, AXIS),
        (in_axes, (None, axis)),
        is_leaf=lambda x: x is None,
    )
    return jax.shard_map(
        on_one, mesh=mesh(), in_specs=specs[0], out_specs=specs[1], check_vma=False
    )


def _own(x: Any, spec: PartitionSpec) -> Any:
    """This process's part of an array over all hosts; else `x` itself. No copy."""
    if not isinstance(x, jax.Array):
        return x
    return multihost_utils.global_array_to_host_local_array(x, mesh(), spec)


def split(array: np.ndarray | jax.Array) -> jax.Array:
    """[N, ...] on every host as [D, N/D, ...] over the devices, in the same order."""
    shape = (num_devices(), len(array) // num_devices(), *array.shape[1:])
    sharding = NamedSharding(mesh(), PartitionSpec(AXIS))
    blocks = array.reshape(shape)
    return jax.make_array_from_callback(shape, sharding, lambda index: blocks[index])


def replicate(tree: Any) -> Any:
    """`tree`, the same on every host, on every device.

    Shapes stay shapes; so do arrays become where programs are made for a target.
    """
    return jax.tree.map(_placed, tree)


def divide(tree: Any) -> Any:
    """`tree`, the same on every host, in parts on the devices, as axes allow."""

    def place(x: Any) -> Any:
        divisible = [i for i, size in enumerate(x.shape) if size % num_devices() == 0]
        return _placed(x, *[None] * divisible[0], AXIS) if divisible else _placed(x)

    return jax.tree.map(place, tree)


def _placed(x: Any, *axes: str | None) -> Any:
    sharding = NamedSharding(mesh(), PartitionSpec(*axes))
    if isinstance(x, jax.ShapeDtypeStruct) or made_for.value is not None:
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    # Here device_put would send all weights around, to see that they are the same.
    array = np.asarray(x)
    return jax.make_array_from_callback(x.shape, sharding, lambda index: array[index])


def spread_shapes(tree: Any) -> Any:
    """Shapes and dtypes of `tree`, [D, n, ...], with a part on each device."""
    sharding = NamedSharding(mesh(), PartitionSpec(AXIS))
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )


def spread(tree: Any) -> Any:
    """Arrays [N, ...] of `tree` with their images divided among the devices."""
    return jax.device_put(tree, NamedSharding(mesh(), PartitionSpec(AXIS)))


def start(cpu_devices: int, distributed: Any = None) -> None:
    """Starts JAX's devices, and joins other hosts if the settings say so.

    A UserError if there are none such, or the address space is limited.
    """
    errors.check_address_space(
        LEAST_BYTES,
        f"but JAX reserves more than it uses, {LEAST_BYTES / 1e9:.0f} GB at least. Call"
        " `ulimit -v unlimited`, or ask the cluster for as much virtual memory.",
    )
    _check_flags(os.environ.get("XLA_FLAGS", ""))
    if jax.config.jax_compilation_cache_dir is None:  # else a variable of JAX's own
        jax.config.update("jax_compilation_cache_dir", str(files.cache() / "jax"))
    # A host's CPU becomes several devices, so that a batch is divided among its cores:
    # XLA's convolutions keep little more than one busy. Measured on two, the embedded
    # UNet's gradient takes 0.74 s on two devices, 0.96 s on one.
    given = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not accelerator.shown() and not given:
        with contextlib.suppress(RuntimeError):  # whoever calls us has started them
            jax.config.update("jax_num_cpu_devices", cpu_devices)
    if distributed is not None and distributed.enabled:
        _join_hosts(distributed)
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # the latter without a plugin
        platforms = os.environ.get("JAX_PLATFORMS", "")
        reason = first_line(error) if str(error) else "there are none"
        raise UserError(
            f"JAX cannot start the devices that JAX_PLATFORMS={shown(platforms)} names"
            f" ({reason}). Unset it, to have what there is, or give cpu. NVIDIA GPUs"
            f' need pip install "ddpo_fair[cuda]", TPUs "ddpo_fair[tpu]".'
        ) from error


@functools.cache
def _check_flags(flags: str) -> None:
    """Raises a UserError for XLA_FLAGS for which XLA would end the process, in C++."""
    if not flags:
        return
    parse = "from jaxlib import xla_client; xla_client.CompileOptions()"
    command = [sys.executable, "-c", parse]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode and "parse_flags" in tried.stderr:  # a file of XLA
        reason = tried.stderr.splitlines()[0].partition("] ")[2].rstrip(".")
        raise UserError(
            f"XLA_FLAGS={shown(flags)} of the environment cannot be used ({reason});"
            " unset it, or give another value."
        )


def gather(array: jax.Array) -> np.ndarray:
    """[D, n, ...] over the devices as NumPy [N, ...], the same on every host."""
    if jax.process_count() > 1:
        array = multihost_utils.process_allgather(array, tiled=True)
    host = np.asarray(array)
    return host.reshape(-1, *host.shape[2:])


def counted() -> bool:
    """Whether a program is only lowered for XLA to count its work."""
    return made_for.value is not None and made_for.value.counted


def has_flash_attention() -> bool:
    """Whether the devices are NVIDIA GPUs of the Ampere generation or later."""
    if made_for.value is not None:
        return made_for.value.has_flash_attention
    device = jax.local_devices()[0]
    try:
        return device.platform == "gpu" and float(device.compute_capability) >= 8.0
    except (AttributeError, ValueError):  # of another maker: "gfx942"
        return False


def _join_hosts(settings: Any) -> None:
    # JAX's own answer to SIGTERM would replace ours, which saves and leaves.
    jax.config.update("jax_enable_preemption_service", False)
    processes, process = settings.num_processes, settings.process_id
    try:
        with last_words(f"ddpo_fair.train: {ALONE}"):
            jax.distributed.initialize(
                coordinator_address=settings.coordinator_address or None,
                num_processes=processes or None,
                process_id=process if process >= 0 else None,
                heartbeat_timeout_seconds=settings.timeout_seconds,
            )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{ALONE} ({error})") from error


def leave(status: int, finished: bool = True) -> int:
    """`status`; but where Python would wait for others, the process ends here.

    Python would stay until all other processes exit too, and the devices are done with
    what was started. If that is not `finished`, all processes leave together.
    """
    if not finished and jax.distributed.is_initialized():
        jax.distributed.shutdown()
    if not finished or jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


@contextlib.contextmanager
def last_words(text: str, status: int | None = None) -> Iterator[None]:
    """Has `text`, if any, printed if this process is ended inside the `with`.

    When a process is lost JAX ends the others in C++, where no code of Python runs. So
    a shell waits at the other end of a pipe, and a handler of C's ends the process with
    `status` where C++ aborts it; None for the system's.
    """
    if not text:
        yield
        return
    system = ctypes.CDLL(None)
    end = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda _: os._exit(status))
    if status is not None:
        system.signal(signal.SIGABRT, end)
    shell = subprocess.Popen(
        ["sh", "-c", 'read word || echo "$0" >&2', text],
        stdin=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is not for it
    )
    try:
        yield
    finally:
        shell.communicate(b"\n")
        if status is not None:
            system.signal(signal.SIGABRT, None)  # the system's


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host; all hosts must ask."""
    if jax.process_count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def describe() -> list[str]:
    """The kinds of all devices with their numbers, e.g. ["8 x NVIDIA H100"]."""
    kinds = [device.device_kind for device in devices()]
    return [f"{kinds.count(kind)} x {kind}" for kind in dict.fromkeys(kinds)]


def memory_gb() -> float:
    """Peak memory in GB of this host's fullest device; the process's own on a CPU."""
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peak = max(stats.get("peak_bytes_in_use", 0) for stats in statistics)
    return (peak or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 1e9


def at_hand() -> Target:
    """This host's devices; those of a CPU share the machine's memory."""
    local = jax.local_devices()
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    statistics = local[0].memory_stats() or {}
    memory = statistics.get("bytes_limit", machine // len(local))
    return Target(tuple(local), has_flash_attention(), memory)


def one_cpu() -> Target:
    """This host's CPU, there beside any accelerator, for programs whose work counts."""
    return Target((jax.local_devices(backend="cpu")[0],), counted=True)
