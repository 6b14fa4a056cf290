"""Speed and memory at Stable Diffusion's real size on one GPU, with random weights.

    python benchmarks/gpu.py --output=gpu.json                 about 8 minutes
    python benchmarks/gpu.py --parts=matmul,sample --batch=32

`train` itself, its programs one by one, and PyTorch's. At real size XLA compiles each
for a minute or so; JAX_COMPILATION_CACHE_DIR keeps them for a second call. `train`
needs the package; the programs jax with CUDA, flax, optax and safetensors; the peers
also torch, diffusers and peft. Every part runs in a process of its own, so that its
peak of memory is its own; a part that fails or would end too late is left out.
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
# What to measure, with its flags and the seconds it may take, most telling first.
PROGRAM = (
    ("matmul", {}, 20),
    ("train_sd15", {"batch": 16}, 250),
    ("update", {"batch": 8}, 150),
    ("sample", {"batch": 16}, 80),
    ("peer", {"batch": 16}, 150),
    ("train_embedded", {}, 190),
    ("peer_compiled", {"batch": 16}, 250),
    ("train_sdxl", {"batch": 2}, 400),
    ("decode", {"batch": 8}, 40),
    ("update", {"batch": 4}, 150),
    ("sample", {"batch": 32}, 80),
    ("ratio", {"batch": 4}, 150),
)


def main() -> None:
    options = _parse()
    if options.part:
        room = "gpu_runs" if options.part.startswith("train") else "gpu_parts"
        result = getattr(importlib.import_module(room), options.part)(options)
        print(MARK + json.dumps(result), flush=True)
        return
    wanted = options.parts.split(",") if options.parts else None
    end, results = time.monotonic() + options.seconds, []
    for part, flags, allowed in PROGRAM:
        if wanted and part not in wanted:
            continue
        flags = {**flags, **({"batch": options.batch} if options.batch else {})}
        left = end - time.monotonic()
        if left < 0.4 * allowed:
            results.append({"part": part, **flags, "left_out": f"{left:.0f} s left"})
            continue
        results.append(_child(options, part, flags, min(left, 2 * allowed)))
        if options.output:
            Path(options.output).write_text(json.dumps(results, indent=2) + "\n")
        print(_line(results[-1]), flush=True)
    print("\n" + _table(results))


def _child(options: Any, part: str, flags: dict[str, int], seconds: float) -> dict:
    """Runs one part in its own process; returns its result or why there is none."""
    command = [sys.executable, "-X", "faulthandler", __file__]
    command += [f"--part={part}", f"--remat={options.remat}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    command += [f"--runs={options.runs}", *(["--tiny"] if options.tiny else [])]
    command += [f"--profile={options.profile}/{part}"] if options.profile else []
    environment = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", **os.environ}
    begin = time.monotonic()
    named = {"part": part, **flags}
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
    found = {(r["part"], r.get("batch")): r for r in results if "left_out" not in r}
    peak = next((r["tflops"] for (part, _), r in found.items() if part == "matmul"), 0)
    peers = [next((r for (p, _), r in found.items() if p == x), {}) for x in PEERS]
    rows = ["| | per second | TFLOP/s | of the matmul rate | GB | compile s | peer"]
    rows[0] += " | peer, compiled |"
    rows.append("|---|---|---|---|---|---|---|---|")
    for (part, batch), r in found.items():
        if part not in ("sample", "decode", "update"):
            continue
        unit = "images" if part != "update" else "pairs of image and step"
        speed = r.get("images_per_second") or r["pairs_per_second"]
        name = "images_per_second" if part == "sample" else f"pairs_per_second_{batch}"
        rivals = [x.get(name) if part != "decode" else None for x in peers]
        share = f"{r['tflops'] / peak:.0%}" if peak else "?"
        than = [f"{x:.3g} ({speed / x:.2f} x)" if x else "-" for x in rivals]
        rows.append(
            f"| {part}, batch {batch} | {speed:.3g} {unit} | {r['tflops']:.0f}"
            f" | {share} | {r['peak_gb']:.1f} | {r['compile_seconds']:.0f}"
            f" | {' | '.join(than)} |"
        )
    rest = [r for r in results if "left_out" in r]
    rows += [
        f"left out: {r['part']} {r.get('batch', '')}: {r['left_out']}" for r in rest
    ]
    if peak:
        rows.append(f"bfloat16 matrix products: {peak:.0f} TFLOP/s")
    rows += [
        f"{x['part']}'s peak: {x['peak_gb']:.1f} GB" for x in peers if "peak_gb" in x
    ]
    rows += [_line(r) for (part, _), r in found.items() if part.startswith("train")]
    return "\n".join(rows)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=480, help="in all")
    parser.add_argument("--parts", default="", help="names, with commas between")
    parser.add_argument("--batch", type=int, default=0, help="instead of the usual")
    parser.add_argument("--remat", default="none", help="see config.train.remat")
    parser.add_argument("--output", default="", help="JSON file")
    parser.add_argument("--runs", default="", help="folder for what `train` writes")
    parser.add_argument("--profile", default="", help="folder for JAX's profiles")
    parser.add_argument("--tiny", action="store_true", help="a toy, to try the script")
    parser.add_argument("--part", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.runs = options.runs or tempfile.mkdtemp(prefix="ddpo_fair_gpu_")
    if options.part in PEERS and not importlib.util.find_spec("diffusers"):
        parser.error("the peer needs diffusers")
    return options


if __name__ == "__main__":
    main()
