"""What a run needs of each device and what it costs, as the compiler says."""

import math
import os
import re
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, parallel
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.errors import UserError, shown
from ddpo_fair.training import assembly, programs

COLUMNS = ("arguments", "results", "temporary", "beside", "in all")
KERNELS = {  # in the text of a compiled program
    "flash attentions of cuDNN": r'custom_call_target="__cudnn\$fmha',
    "convolutions of cuDNN": r'custom_call_target="__cudnn\$conv',
    "products of cuBLAS": r'custom_call_target="__cublas',
    "convolutions and products of XLA": r" (?:convolution|dot)\(",
}
COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|reduce-scatter|collective-permute|all-to-all)"
    r"(?:-start)?\("
)
ARRAY = re.compile(r"\b([a-z]+)(\d+)\w*\[([\d,]*)\]")  # e.g. bf16[320,1280]
COMPUTATION = re.compile(r"(?:ENTRY )?%?([\w.-]+) \(")

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

Say = Callable[[str], object]


def write(config: ConfigDict, target: str | None, say: Say = print) -> None:
    """Compiles the programs of a run and says, line by line, what each needs.

    Of the devices at hand, or of a target, see `described`; a UserError for unfit ones.
    """
    if target is None:
        parallel.start(config.distributed.cpu_devices)
        devices = parallel.at_hand()
    else:
        devices = described(target)
    models = programs.read(config)
    with parallel.made_for(devices):
        config_rules.validate(config, [], parallel.num_devices())
        count = parallel.num_devices()
        place = "at hand" if target is None else "not at hand"
        say(_heading(config, models[0], f"{', '.join(parallel.describe())}, {place}"))
        say(_row("GB of each device", COLUMNS))
        needs = {
            program.name: _say_program(program, devices, say)
            for program in programs.lower(config, *models)
        }
    name, most = max(needs.items(), key=lambda item: item[1])
    answer = (
        "it fits."
        if most <= devices.memory
        else "it does not fit. Lower sample.batch_per_device or train.microbatch, or"
        " set dtype=bfloat16 or train.remat=full."
    )
    say(
        f"\nMost at once: {most / 1e9:.3f} GB, {name}. Programs may take"
        f" {devices.memory / 1e9:.1f} GB of each device: {answer}"
    )
    work = {name: x / 1e12 for name, x in flops(config, count).items()}
    parts = ", ".join(f"{name} {x:,.3f}" for name, x in work.items())
    total = sum(work.values())
    say(
        f"An epoch costs each device {total:,.3f} TFLOP: {parts}. At 100 TFLOP/s that"
        f" is {total / 100:,.3g} s, without evaluations."
    )


def flops(
    config: ConfigDict, num_devices: int, last: str = "updating"
) -> dict[str, float]:
    """Operations of a device in an epoch, by program up to `last`, as XLA counts."""
    found = {}
    with parallel.made_for(parallel.one_cpu()):
        for program in programs.lower(config, *programs.read(config)):
            name = program.name.split()[0]
            turn = program.lowered.cost_analysis()["flops"]  # XLA counts one of a loop
            found[name] = turn * program.turns * program.calls
            if name == last:
                break
    if "updating" in found and config.train.recompute_log_probs:  # `with_old_policy`
        steps = config_rules.steps_per_update(configuration.flatten(config))
        share = config.train.inner_epochs * steps / config.sample.num_steps
        forward = found["sampling"] * share
        only_forward = num_devices == 1 or config.dtype != "float32"
        found["updating"] += forward if only_forward else found["updating"]
    return found


def _heading(config: ConfigDict, model: stable_diffusion.Model, place: str) -> str:
    unet, rank = model.params[model.part], config.train.lora.rank
    state = assembly.initial_state(config, unet)
    name = {"unet": "UNet"}.get(model.part, model.part)
    trained, known = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, unet)
    )
    return (
        f"Plan of {config.model} in {config.dtype} for {place}."
        f" {f'LoRA of rank {rank}' if rank else 'Full fine-tuning'} trains {trained:,}"
        f" of the {name}'s {known:,} parameters.\n"
    )


def _row(name: str, columns: Sequence[str]) -> str:
    return f"{name:<38}" + "".join(f"{column:>10}" for column in columns)


def _say_program(
    program: programs.Program, devices: parallel.Target, say: Say
) -> float:
    """Says what a program needs of a device; the bytes, inf where it cannot be."""
    begin = time.monotonic()
    try:
        compiled = program.lowered.compile(devices.compiler_options)
    except jax.errors.JaxRuntimeError as error:
        _, exhausted, reason = str(error).partition("RESOURCE_EXHAUSTED: ")
        if not exhausted:
            raise
        say(_row(program.name, ["", "", "", "", "too much"]))
        say(f"  the compiler refuses it: {reason.splitlines()[0][:300]}")
        return math.inf
    parts, text = program.needs(compiled).values(), compiled.as_text()
    say(_row(program.name, [f"{x / 1e9:.3f}" for x in (*parts, sum(parts))]))
    seconds = f"compiled in {time.monotonic() - begin:.0f} s"
    say(f"  {', '.join([*kernels(text), *collectives(text), seconds])}")
    return sum(parts)


def kernels(text: str) -> list[str]:
    """Kinds of kernels with their numbers, of a compiled program's text."""
    counts = {name: len(re.findall(kind, text)) for name, kind in KERNELS.items()}
    return [f"{count} {name}" for name, count in counts.items() if count]


def collectives(text: str) -> list[str]:
    """What devices exchange, by kind and dtype, of a compiled program's text."""
    bodies = set(re.findall(r"body=%?([\w.-]+)", text))
    sizes: dict[str, list[int]] = {}
    where = ""
    for line in text.splitlines():
        if line[:1] in ("%", "E") and (head := COMPUTATION.match(line)):
            where = " in every turn of a loop" if head[1] in bodies else ""
        if found := COLLECTIVE.search(line):
            # Of a start in two tuples the first is of what it was given.
            results = found[1].rpartition("), ")[2]
            for kind, bits, shape in ARRAY.findall(results):
                size = math.prod(map(int, filter(None, shape.split(","))))
                name = f"{found[2]} of {kind}{bits}{where}"
                sizes.setdefault(name, []).append(int(bits) // 8 * size)
    return [
        f"{name}: {sum(of) / 1e6:.3f} MB in {len(of)} arrays"
        for name, of in sizes.items()
    ]


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
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # two plans at once
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
