"""What a run needs of each device and what it costs, as the compiler says."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence

import jax
from ml_collections import ConfigDict

from ddpo_fair import config_rules, parallel
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.training import assembly, programs, targets

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

Say = Callable[[str], object]


def write(config: ConfigDict, target: str | None, say: Say = print) -> None:
    """Compiles the programs of a run and says, line by line, what each needs.

    Of the devices at hand, or of a target: see `targets.described`. A UserError for a
    target that cannot be, a model whose config.json files cannot be had, or settings
    that do not suit the number of devices.
    """
    if target is None:
        parallel.start(config.distributed.cpu_devices)
        devices = parallel.at_hand()
    else:
        devices = targets.described(target)
    models = programs.read(config)
    with parallel.made_for(devices):
        config_rules.validate(config, [], parallel.num_devices())
        place = "at hand" if target is None else "not at hand"
        say(_heading(config, models[0], f"{', '.join(parallel.describe())}, {place}"))
        say(_row("GB of each device", COLUMNS))
        needs = {
            program.name: _say_program(program, devices, say)
            for program in programs.lower(config, *models)
        }
    say(_verdict(needs, devices.memory))
    say(_work(flops(config)))


def flops(config: ConfigDict) -> dict[str, float]:
    """Operations of each device in an epoch, by program, as XLA counts them."""
    found = {}
    with parallel.made_for(parallel.one_cpu()):
        for program in programs.lower(config, *programs.read(config)):
            turn = program.lowered.cost_analysis()["flops"]  # XLA counts one of a loop
            found[program.name.split()[0]] = turn * program.turns * program.calls
    return found


def _heading(config: ConfigDict, model: stable_diffusion.Model, place: str) -> str:
    unet, rank = model.params["unet"], config.train.lora.rank
    state = assembly.initial_state(config, unet)
    trained, known = (
        sum(leaf.size for leaf in jax.tree.leaves(tree))
        for tree in (state.params, unet)
    )
    return (
        f"Plan of {config.model} in {config.dtype} for {place}."
        f" {f'LoRA of rank {rank}' if rank else 'Full fine-tuning'} trains {trained:,}"
        f" of the UNet's {known:,} parameters.\n"
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
    memory, text = compiled.memory_analysis(), compiled.as_text()
    parts = (
        memory.argument_size_in_bytes,
        memory.output_size_in_bytes - memory.alias_size_in_bytes,
        memory.temp_size_in_bytes,
        program.beside,
    )
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
    sizes: Counter[str] = Counter()
    where = ""
    for line in text.splitlines():
        if line[:1] in ("%", "E") and (head := COMPUTATION.match(line)):
            where = " in every turn of a loop" if head[1] in bodies else ""
        if found := COLLECTIVE.search(line):
            for kind, bits, shape in ARRAY.findall(found[1]):
                size = math.prod(map(int, filter(None, shape.split(","))))
                sizes[f"{found[2]} of {kind}{bits}{where}"] += int(bits) // 8 * size
    return [f"{name}: {size / 1e6:.3f} MB" for name, size in sizes.items()]


def _verdict(needs: dict[str, float], memory: int) -> str:
    name, most = max(needs.items(), key=lambda item: item[1])
    answer = (
        "it fits."
        if most <= memory
        else "it does not fit. Lower sample.batch_per_device or train.microbatch, or"
        " set dtype=bfloat16 or train.remat=full."
    )
    return (
        f"\nMost at once: {most / 1e9:.3f} GB, {name}. Programs may take"
        f" {memory / 1e9:.1f} GB of each device: {answer}"
    )


def _work(flops: dict[str, float]) -> str:
    parts = [f"{name} {x / 1e12:,.3f}" for name, x in flops.items()]
    total = sum(flops.values())
    return (
        f"An epoch costs each device {total / 1e12:,.3f} TFLOP: {', '.join(parts)}. At"
        f" 100 TFLOP/s that is {total / 1e14:,.3g} s, without evaluations."
    )
