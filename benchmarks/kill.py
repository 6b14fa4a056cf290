"""Kills a run at 20 random moments; it must end as if nothing had happened.

    python benchmarks/kill.py --kills=20 --seed=0

A tiny model trains as a process. SIGKILL ends it while it starts, samples, updates,
evaluates or writes a checkpoint, with a random delay; the same command starts it again.
At the end the metrics and the last checkpoint's checksum must equal those of a run that
nothing disturbed, bit by bit. Exit status 1 if they do not.
"""

import argparse
import json
import os
import pty
import random
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
PHASES = ("starting", "sampling", "saving", "updating", "evaluating")
PATIENCE = 4  # epochs for a phase to be seen; then it is killed wherever it is
CLOCKS = ("seconds", "per_second", "memory_gb")  # what no two runs share


class Process:
    """A run on a terminal of its own, whose bar tells the phase."""

    def __init__(self, config: Path) -> None:
        reading, writing = pty.openpty()
        command = [sys.executable, "-m", "ddpo_fair.train", f"--config={config}"]
        cache = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **cache, "JAX_PLATFORMS": "cpu"},
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
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--epochs", type=int, default=120)
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{folder}/jax")
        root = Path(folder)
        begin = time.monotonic()
        unbroken = write_config(root, "unbroken", options.epochs)
        finish(unbroken)
        print(f"unbroken: {time.monotonic() - begin:.0f} s", flush=True)
        killed = write_config(root, "killed", options.epochs)
        runs = root / "runs"
        for number in range(options.kills):
            phase = PHASES[number % len(PHASES)]
            print(f"kill {number + 1}: {kill_once(killed, runs, phase, draw)}")
            sys.stdout.flush()
        finish(killed)
        same = result(runs / "killed") == result(runs / "unbroken")
        print("identical" if same else "DIFFERENT", f"{time.monotonic() - begin:.0f} s")
    return 0 if same else 1


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
    settings.eval.every_epochs = 2
    settings.train.lora.sites = ("to_q", "to_v", "conv_out")
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


def kill_once(config: Path, runs: Path, wanted: str, draw: random.Random) -> str:
    """Starts the run and kills it in a phase; says where it was."""
    checkpoints = runs / config.stem / "checkpoints"
    before, run = lines(runs / config.stem), Process(config)
    rounds = draw.randrange(1, 4)  # epochs to let go by, where it gets that far
    delay = draw.uniform(0, 4.0 if wanted == "starting" else 0.1)
    while run.process.poll() is None:
        unfinished = list(checkpoints.glob("*tmp*"))
        seen = "saving" if wanted == "saving" and unfinished else run.phase
        gone = lines(runs / config.stem) - before
        far = wanted == "starting" or gone >= rounds
        if (far and seen == wanted) or gone >= rounds + PATIENCE:
            break
        time.sleep(0.0005 if wanted == "saving" else 0.005)
    time.sleep(0.0 if wanted == "saving" else delay)
    run.process.kill()
    if run.process.wait() != -9:
        raise RuntimeError(f"it ended by itself; give more --epochs\n{run.text}")
    left = [path.name for path in checkpoints.glob("*tmp*")]
    return (
        f"wanted {wanted:10s} was {run.phase:15s} lines {lines(runs / config.stem):3d}"
        f"{'  unfinished: ' + ', '.join(left) if left else ''}"
    )


def lines(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def result(folder: Path) -> tuple[list[dict], dict[str, int]]:
    """Metrics without clocks, and the checksum of every checkpoint."""
    text = (folder / "metrics.jsonl").read_text()
    metrics = [
        {name: x for name, x in json.loads(line).items() if not name.endswith(CLOCKS)}
        for line in text.splitlines()
    ]
    places = (folder / "checkpoints").glob("[0-9]*/rest/metadata")
    return metrics, {
        place.parents[1].name: json.loads(place.read_text())["checksum"]
        for place in places
    }


if __name__ == "__main__":
    sys.exit(main())
