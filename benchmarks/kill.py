"""Kills a run at 20 random moments; it must end as if nothing had happened.

    python benchmarks/kill.py --kills=20 --runs=5

A tiny model trains as a process. SIGKILL ends it while it starts, samples, updates,
evaluates or writes a checkpoint, with a random delay; the same command starts it again.
Some epochs count as collapsed and are rolled back, so that this is interrupted too.
At the end the metrics, the checkpoints' checksums and the last one's arrays must equal
those of a run that nothing disturbed, bit by bit. Exit status 1 if they do not. Several
runs are killed at the same time, and all share a persistent compilation cache.
"""

import argparse
import collections
import json
import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import termios
import threading
import time
from concurrent import futures
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PHASES = ("starting", "sampling", "saving", "updating", "evaluating")
PATIENCE = 2  # epochs for a phase to be seen; then it is killed wherever it is
MOST_KL = 4.0  # nats per step; some epochs exceed it
CLOCKS = ("seconds", "per_second", "memory_gb")  # what no two runs share


class Process:
    """A run on a terminal of its own, whose bar tells the phase."""

    def __init__(self, config: Path) -> None:
        reading, writing = pty.openpty()
        termios.tcsetwinsize(writing, (24, 200))  # else the bar has no room
        command = [sys.executable, "-m", "ddpo_fair.train", f"--config={config}"]
        cache = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        # tensorboardX and transformers import torch where they find it, for seconds.
        hidden = config.parent / "hidden"
        hidden.mkdir(exist_ok=True)
        (hidden / "torch.py").write_text("raise ImportError\n")
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={
                **os.environ,
                **cache,
                "JAX_PLATFORMS": "cpu",
                "PYTHONPATH": str(hidden),
            },
            stdout=subprocess.DEVNULL,
            stderr=writing,
        )
        os.close(writing)
        self.phase, self.text = "starting", ""
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def _watch(self, reading: int) -> None:
        while True:
            try:
                new = os.read(reading, 4096).decode(errors="replace")
            except OSError:  # the process has ended
                os.close(reading)
                return
            self.text = (self.text + new)[-5000:]
            found = re.findall(r"sampling|updating|evaluating|before training", new)
            self.phase = found[-1] if found else self.phase


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="of all runs together")
    parser.add_argument("--runs", type=int, default=5, help="to kill, at the same time")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=25)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")
        root, begin = Path(folder), time.monotonic()
        names = [f"killed_{index}" for index in range(options.runs)]
        configs = [
            write_config(root, name, options.epochs) for name in ["unbroken", *names]
        ]
        each = options.kills // options.runs
        with futures.ThreadPoolExecutor(len(configs)) as pool:
            whole = pool.submit(finish, configs[0])
            broken = [
                pool.submit(break_often, config, each, options.seed + i)
                for i, config in enumerate(configs[1:])
            ]
        whole.result()
        expected = result(root / "runs" / "unbroken")
        same = [result(root / "runs" / name) == expected for name in names]
        lines = expected[0]
        print(table([kill for one in broken for kill in one.result()]))
        print(f"{len(lines)} epochs, {lines[-1]['roll_backs']} roll-backs in each run.")
        print(f"{sum(same)} of {len(same)} killed runs equal the unbroken one.")
        print(f"{time.monotonic() - begin:.0f} s")
    return 0 if all(same) else 1


def break_often(config: Path, count: int, seed: int) -> list["Kill"]:
    """Kills a run `count` times, then lets it finish."""
    draw, kills = random.Random(seed), []
    for number in range(seed, seed + count):
        kills.append(kill_once(config, PHASES[number % len(PHASES)], draw))
        print(f"{config.stem}, kill {len(kills)}: {kills[-1]}", flush=True)
    finish(config)
    print(f"{config.stem}: finished", flush=True)
    return kills


def table(kills: list["Kill"]) -> str:
    """How often each phase was met, in Markdown."""
    counts = collections.Counter(kill.phase for kill in kills)
    rows = [
        "| while | kills | of these with a checkpoint half written |",
        "|---|---|---|",
    ]
    for phase, count in counts.most_common():
        half = sum(kill.phase == phase and bool(kill.unfinished) for kill in kills)
        rows.append(f"| {phase} | {count} | {half} |")
    return "\n".join(rows)


def write_config(root: Path, name: str, epochs: int) -> Path:
    """A config file of a tiny run, with its models."""
    import tiny_model

    from ddpo_fair import config as configuration

    if not (root / "model").exists():
        tiny_model.save_model(root / "model")
        tiny_model.save_classifier(root / "classifier")
    settings = tiny_model.config(root / "model", root / "classifier", root / "runs")
    settings.run.name, settings.epochs = name, epochs
    settings.prompts = tiny_model.PROMPTS
    settings.sample.batch_per_device = 4
    settings.train.microbatch = 16  # all of an update at once compiles fastest
    settings.distributed.cpu_devices = 1
    settings.train.max_kl = MOST_KL
    settings.train.on_divergence, settings.train.max_restores = "restore", 1000
    settings.train.final_learning_rate = 1.0
    settings.eval.every_epochs = 2
    settings.train.lora.target_modules = ("to_q", "to_v", "conv_out")
    settings.advantage.name, settings.advantage.min_count = "per_prompt", 2
    flat = configuration.flatten(settings)
    file = root / f"{name}.py"
    file.write_text(
        "from ddpo_fair import config\n"
        "def get_config(variant=None):\n"
        "    settings = config.defaults()\n"
        f"    settings.update_from_flattened_dict({flat!r})\n"
        "    return settings\n"
    )
    return file


def finish(config: Path) -> None:
    """Runs to the end."""
    run = Process(config)
    if run.process.wait():
        raise RuntimeError(run.text)


class Kill(NamedTuple):
    """Where a run was when it was killed."""

    wanted: str
    phase: str
    lines: int  # of metrics.jsonl
    unfinished: tuple[str, ...]  # folders of checkpoints that were half written


def kill_once(config: Path, wanted: str, draw: random.Random) -> Kill:
    """Starts the run and kills it in a phase; says where it was."""
    folder = config.parent / "runs" / config.stem
    checkpoints = folder / "checkpoints"
    before, run = lines(folder), Process(config)
    rounds = draw.randrange(1, 3)  # epochs to let go by, where it gets that far
    delay = draw.uniform(0, 4.0 if wanted == "starting" else 0.1)
    while run.process.poll() is None:
        unfinished = list(checkpoints.glob("*tmp*"))
        seen = "saving" if wanted == "saving" and unfinished else run.phase
        gone = lines(folder) - before
        far = wanted == "starting" or gone >= rounds
        if (far and seen == wanted) or gone >= rounds + PATIENCE:
            break
        time.sleep(0.005)
    time.sleep(0.0 if wanted == "saving" else delay)
    run.process.kill()
    if run.process.wait() != -9:
        raise RuntimeError(f"it ended by itself; give more --epochs\n{run.text}")
    left = tuple(path.name for path in checkpoints.glob("*tmp*"))
    return Kill(wanted, run.phase, lines(folder), left)


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def result(folder: Path) -> tuple[list[dict], dict[str, int], dict[str, bytes]]:
    """Metrics without clocks, each checkpoint's checksum, the last one's arrays."""
    text = (folder / "metrics.jsonl").read_text()
    metrics = [
        {name: x for name, x in json.loads(line).items() if not name.endswith(CLOCKS)}
        for line in text.splitlines()
    ]
    places = (folder / "checkpoints").glob("[0-9]*/rest/metadata")
    checksums = {
        place.parents[1].name: json.loads(place.read_text())["checksum"]
        for place in places
    }
    return metrics, checksums, arrays(folder / "checkpoints" / str(len(metrics)))


def arrays(checkpoint: Path) -> dict[str, bytes]:
    """Every array of a checkpoint by its path, as Orbax alone reads it."""
    import jax
    import numpy as np
    import orbax.checkpoint

    reader = orbax.checkpoint.StandardCheckpointer()
    found = jax.tree.leaves_with_path(reader.restore(checkpoint / "state"))
    return {jax.tree_util.keystr(path): np.asarray(x).tobytes() for path, x in found}


if __name__ == "__main__":
    sys.exit(main())
