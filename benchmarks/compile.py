"""Compiles a run's programs at real size for accelerators that are not there.

    python benchmarks/compile.py --rows=sd15@h100,sd15@v5e:2x2
    python benchmarks/compile.py --rows=          # the table of what the file has

A row is VARIANT[-full]@TARGET: configs/mech_eng.py with a variant's LoRA, or the update
of all weights, and a target of `train --plan`. NVIDIA GPUs need jax[cuda13] and TPUs
jax[tpu], in environments of their own; give both the same file. Each row has a process
of its own, and each program is a line of the file as soon as it is compiled. What the
file has is left out. All rows take hours. Nothing is executed: times are not known.
"""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

from compile_text import facts

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("sd15", "sd15-full", "sd21", "sd21-full", "sdxl", "sdxl-full", "sd35")
TARGETS = ("h100", "v5e:2x2", "h100:1x2x8", "v5p:2x2x1")
ROWS = [f"{model}@{target}" for target in TARGETS for model in MODELS]
GB = ("arguments", "temporary", "in_all")
COLUMNS = ("row", "program", *GB, "flash", "logits_mb", "products", "copied_mb")
COLUMNS += ("exchanged", "seconds")  # of the CPU, to compile


def main() -> int:
    """The number of rows that failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--output", type=Path, default=Path("compile.jsonl"))
    parser.add_argument("--keep", type=Path, help="a folder for the programs' text")
    parser.add_argument("--here", action="store_true", help="one row, in this process")
    options = parser.parse_args()
    if options.here:
        compile_row(options.rows, options.output, options.keep)
        return 0
    failed = 0
    for row in filter(None, options.rows.split(",")):
        if not any("updating" in x for x in done(options.output, row)):
            command = [sys.executable, *sys.argv, "--here", f"--rows={row}"]
            if status := subprocess.run(command).returncode:
                print(f"{row} ended with status {status}", file=sys.stderr)
                failed += 1
    print(table(lines(options.output)))
    return failed


def lines(path: Path) -> list[dict[str, Any]]:
    """Of a file, which need not be there."""
    return (
        [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []
    )


def done(path: Path, row: str) -> list[str]:
    """The programs of a row that a file has."""
    return [line["program"] for line in lines(path) if line["row"] == row]


def compile_row(row: str, output: Path, keep: Path | None) -> None:
    """Writes a line for each program of a row that the output has not."""
    sys.path[:0] = [str(ROOT), str(ROOT / "configs")]
    import jax  # here, for the table needs none of these
    import mech_eng

    from ddpo_fair import config_rules, parallel
    from ddpo_fair.training import plan, programs

    name, _, target = row.partition("@")
    variant, _, full = name.partition("-")
    config = mech_eng.get_config(variant)
    if full:
        config.train.lora.rank, config.train.shard_optimizer = 0, True
    devices, models = plan.described(target), programs.read(config)
    with parallel.made_for(devices):
        config_rules.validate(config, [], parallel.num_devices())
        for program in programs.lower(config, *models):
            kind = program.name.split()[0]
            if program.name in done(output, row) or (full and kind != "updating"):
                continue
            line, begin = {"row": row, "program": program.name}, _cpu_seconds()
            try:
                compiled = program.lowered.compile(devices.compiler_options)
            except jax.errors.JaxRuntimeError as error:  # more memory than there is
                line["in_all"] = str(error).splitlines()[0]
            else:
                text, needs = compiled.as_text(), program.needs(compiled)
                if keep:
                    (keep / f"{row}_{kind}.txt").write_text(text)
                needs["in_all"] = sum(needs.values())
                line |= {x: round(y / 1e9, 2) for x, y in needs.items()} | facts(text)
                line["exchanged"] = "; ".join(plan.collectives(text))
            line |= {"seconds": round(_cpu_seconds() - begin), "jax": jax.__version__}
            with output.open("a") as file:
                file.write(json.dumps(line) + "\n")


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def table(lines: list[dict[str, Any]]) -> str:
    """The lines as a table of Markdown."""
    rows = [COLUMNS, ["---"] * len(COLUMNS)]
    rows += [[str(line.get(key, "")) for key in COLUMNS] for line in lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


if __name__ == "__main__":
    sys.exit(main())
