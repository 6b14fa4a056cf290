"""Speed and memory at Stable Diffusion's real size on one GPU, with random weights.

    python benchmarks/gpu.py --output=gpu.json                 about 8 minutes
    python benchmarks/gpu.py --parts=matmul,sampling --variant=sd35 --batch=8
    python benchmarks/gpu.py --parts=updating --config.train.remat=full

`train` itself, its programs one by one, and PyTorch's; --config.NAME=VALUE is a setting
of them all. At real size XLA compiles each program for a minute or so;
JAX_COMPILATION_CACHE_DIR keeps them for a second call. Needs the package, and the peers
torch, diffusers and peft. Every part runs in a process of its own, so that its peak of
memory is its own; a part that fails or would end too late is left out.
"""

import argparse
import importlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]
MARK = "RESULT "
PEERS = ("peer", "peer_compiled")
RATES = {"sampling": "images_per_second", "updating": "pairs_per_second_8"}  # theirs
# What to measure, with its flags and the seconds it may take, most telling first. A
# batch of 0 is the variant's own; of sd15 it is the peer's.
PROGRAM = (
    ("matmul", {}, 20),
    ("train_sd15", {"batch": 16}, 250),
    ("updating", {"variant": "sd15", "batch": 0}, 200),
    ("sampling", {"variant": "sd15", "batch": 0}, 100),
    ("peer", {"batch": 16}, 150),
    ("train_embedded", {}, 190),
    ("peer_compiled", {"batch": 16}, 250),
    ("decoding", {"variant": "sd15", "batch": 0}, 60),
    ("train_sdxl", {"batch": 2}, 400),
    ("sampling", {"variant": "sdxl", "batch": 0}, 150),
    ("decoding", {"variant": "sdxl", "batch": 0}, 80),
    ("updating", {"variant": "sdxl", "batch": 0}, 400),
)


def main() -> None:
    options = _parse()
    if options.part:
        room = "gpu_runs" if options.part.startswith("train") else "gpu_parts"
        result = getattr(importlib.import_module(room), options.part)(options)
        print(MARK + json.dumps(result), flush=True)
        return
    end, results = time.monotonic() + options.seconds, []
    given = {"batch": options.batch, "variant": options.variant}
    for part, flags, allowed in PROGRAM:
        flags = {name: x for name in flags if (x := given[name] or flags[name])}
        named = {"part": part, **flags}
        known = any(named.items() <= result.items() for result in results)
        if known or part not in options.parts:
            continue
        left = end - time.monotonic()
        if left < 0.4 * allowed:
            results.append({**named, "left_out": f"{left:.0f} s left"})
            continue
        results.append(_child(options, named, min(left, 2 * allowed)))
        if options.output:
            Path(options.output).write_text(json.dumps(results, indent=2) + "\n")
        print(_line(results[-1]), flush=True)
    print("\n" + _table(results))


def _child(options: Any, named: dict[str, Any], seconds: float) -> dict:
    """Runs one part in its own process; returns its result or why there is none."""
    command = [sys.executable, "-X", "faulthandler", __file__, *options.settings]
    command += [f"--{name}={value}" for name, value in named.items()]
    command += [f"--runs={options.runs}", *(["--tiny"] if options.tiny else [])]
    folder = "_".join(map(str, named.values()))
    command += [f"--profile={options.profile}/{folder}"] if options.profile else []
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}
    begin = time.monotonic()
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(
        command, env=environment, start_new_session=True, **pipes
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGABRT)  # and the run that it waits for
            where = [x for x in process.communicate()[1].splitlines() if "File" in x]
            late = f"not done in {seconds:.0f} s, at {' <'.join(where[:4])}"
            return {**named, "left_out": late}
    whole = round(time.monotonic() - begin, 1)
    lines = [line for line in out.splitlines() if line.startswith(MARK)]
    if not lines:
        tail = " | ".join(err.strip().splitlines()[-3:])
        return {**named, "left_out": f"failed after {whole} s: {tail[-600:]}"}
    return {**named, **json.loads(lines[-1].removeprefix(MARK)), "whole_seconds": whole}


def _line(result: dict[str, Any]) -> str:
    shown = {
        name: round(value, 3) if isinstance(value, float) else value
        for name, value in result.items()
    }
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def _table(results: list[dict[str, Any]]) -> str:
    """What was measured, beside the device's own rate and the peer."""
    found = [r for r in results if "left_out" not in r]
    by_part = {r["part"]: r for r in found}
    peak = by_part.get("matmul", {}).get("tflops")
    peers = [by_part.get(name, {}) for name in PEERS]
    rows = ["| | per second | TFLOP/s | of the matmul rate | GB | by the compiler"]
    rows[0] += " | lowering, s | compiling, s | peer | peer, compiled |"
    rows.append("|" + "---|" * 10)
    for r in [x for x in found if "program" in x]:
        speed = r.get("images_per_second") or r["pairs_per_second"]
        rate = RATES.get(r["part"]) if r["variant"] == "sd15" else None
        rivals = [x.get(rate) for x in peers]
        than = [f"{x:.3g} ({speed / x:.2f} x)" if x else "-" for x in rivals]
        share = f"{r['tflops'] / peak:.0%}" if peak else "?"
        rows.append(
            f"| {r['variant']}, {r['program']} | {speed:.3g} | {r['tflops']:.3g}"
            f" | {share} | {r['peak_gb']:.1f} | {r['needs_gb']:.1f}"
            f" | {r['lowering_seconds']:.0f} | {r['compile_seconds']:.0f}"
            f" | {' | '.join(than)} |"
        )
    rows += [f"left out: {_line(r)}" for r in results if "left_out" in r]
    if peak:
        rows.append(f"bfloat16 matrix products: {peak:.0f} TFLOP/s")
    rows += [_line(r) for r in found if r["part"].startswith(("train", "peer"))]
    return "\n".join(rows)


def _parse() -> argparse.Namespace:
    import gpu_setup

    from ddpo_fair import config_rules
    from ddpo_fair.config import VARIANTS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="in all")
    parts = list(dict.fromkeys(part for part, *_ in PROGRAM))
    every = ",".join(parts)
    parser.add_argument("--parts", default=every, help="names, with commas between")
    parser.add_argument("--batch", type=int, default=0, help="instead of the usual")
    variants = {"choices": VARIANTS, "help": "of the programs"}
    parser.add_argument("--variant", default="", **variants)
    parser.add_argument("--output", default="", help="JSON file")
    parser.add_argument("--runs", default="", help="folder for what `train` writes")
    parser.add_argument("--profile", default="", help="folder for JAX's profiles")
    parser.add_argument("--tiny", action="store_true", help="a toy, to try the script")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options, options.settings = parser.parse_known_args()
    if strange := [x for x in options.settings if not x.startswith("--config.")]:
        parser.error(f"{' '.join(strange)}: only --config.NAME=VALUE may follow")
    config, problems = gpu_setup.config(options, options.variant or "sd15")
    if problems := [*problems, *config_rules.violations(config)]:
        parser.error(" ".join(problems))
    options.parts = options.parts.split(",")
    if unknown := set(options.parts) - set(parts):
        parser.error(f"--parts: {', '.join(sorted(unknown))} must be of {every}")
    try:
        if options.output:
            Path(options.output).touch()  # before minutes of measuring
    except OSError as error:
        parser.error(f"--output: {error}; choose another path")
    options.runs = options.runs or tempfile.mkdtemp(prefix="ddpo_fair_gpu_")
    if options.part in PEERS and not importlib.util.find_spec("diffusers"):
        parser.error("the peer needs diffusers")
    return options


if __name__ == "__main__":
    main()
