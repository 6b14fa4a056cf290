"""200 epochs of the embedded model, very small: does anything grow?

    python benchmarks/soak.py --epochs=200
    python benchmarks/soak.py --tiny            random weights, for a busy machine

Prints, at a few epochs, the memory of the process now (RSS) and of its device at most
(metrics.jsonl's device_memory_gb; on a CPU that is the process's own peak), its threads
and open files, the mean seconds of an epoch since the row before, the size of the run's
folder without its checkpoints and of those, and the lines on stderr, where warnings go.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ROWS = (20, 50, 100, 150, 200)  # epochs done
COLUMNS = (
    "epochs",
    "RSS, MB",
    "device's peak, MB",
    "threads",
    "open files",
    "s per epoch",
    "folder, MB",
    "checkpoints, MB",
    "lines on stderr",
)
SETTINGS = {
    "sample.batch_per_device": 2,
    "sample.num_steps": 3,
    "train.skip_last_steps": 1,
    "train.timestep_fraction": 0.5,
    "train.updates_per_epoch": 1,
    "train.microbatch": 2,
    "eval.images": 4,
    "eval.every_epochs": 10,
    "log.images": 4,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=ROWS[-1])
    parser.add_argument("--tiny", action="store_true", help="a model of random weights")
    parser.add_argument("--output", default="", help="JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        more = tiny(Path(folder)) if options.tiny else {}
        rows = soak(Path(folder), options.epochs, more)
    if options.output:
        Path(options.output).write_text(json.dumps(rows, indent=2) + "\n")


def tiny(folder: Path) -> dict[str, object]:
    """Settings that replace the embedded model by one of a few thousand weights."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    import tiny_model

    tiny_model.save_model(folder / "model")
    tiny_model.save_classifier(folder / "classifier")
    return {
        "model": folder / "model",
        "attributes.gender.classifier": folder / "classifier",
        "prompts": tiny_model.PROMPTS[0],
        "train.lora.target_modules": "all",
        "distributed.cpu_devices": 1,
    }


def soak(folder: Path, epochs: int, more: dict) -> list[dict[str, float]]:
    """A row of measurements at each of `ROWS`, printed as it comes."""
    # one epoch more, for a process that is still there to be looked at
    flags = {
        **SETTINGS,
        **more,
        "epochs": epochs + 1,
        "run.dir": folder,
        "run.name": "soak",
    }
    command = [sys.executable, "-m", "ddpo_fair.train"]
    command += ["--config=configs/mech_eng_unrestrained.py:embedded"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    errors, rows, run = folder / "stderr", [], folder / "soak"
    with errors.open("w") as stderr:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=stderr
        )
        print("| " + " | ".join(COLUMNS) + " |")
        print("|" + "---|" * len(COLUMNS), flush=True)
        for epoch in ROWS:
            if epoch > epochs or not wait_for(process, run / "metrics.jsonl", epoch):
                break
            before = rows[-1]["epochs"] if rows else 1  # the first one compiles
            rows.append(measure(process.pid, run, errors, before, epoch))
            print("| " + " | ".join(f"{x:g}" for x in rows[-1].values()) + " |")
            sys.stdout.flush()
        if process.wait():
            raise RuntimeError(errors.read_text())
    return rows


def wait_for(process: subprocess.Popen, path: Path, count: int) -> bool:
    """Whether the run came to write so many lines; returns when it has."""
    while not path.exists() or path.read_bytes().count(b"\n") < count:
        if process.poll() is not None:
            return False
        time.sleep(0.05)
    return True


def measure(
    pid: int, run: Path, errors: Path, before: int, epoch: int
) -> dict[str, float]:
    """One row."""
    status = Path(f"/proc/{pid}/status")
    found = dict(
        line.split(":", 1) for line in status.read_text().splitlines() if ":" in line
    )
    lines = (run / "metrics.jsonl").read_text().splitlines()[before:epoch]
    written = [json.loads(line) for line in lines]
    seconds = [line["epoch_seconds"] for line in written]
    checkpoints = size_of(run / "checkpoints")
    return {
        "epochs": epoch,
        "rss_mb": round(int(found["VmRSS"].split()[0]) * 1024 / 1e6),
        "device_mb": round(written[-1]["device_memory_gb"] * 1e3),
        "threads": int(found["Threads"]),
        "open_files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
        "seconds": round(sum(seconds) / len(seconds), 3),
        "folder_mb": round((size_of(run) - checkpoints) / 1e6, 2),
        "checkpoints_mb": round(checkpoints / 1e6, 2),
        "stderr_lines": errors.read_text().count("\n"),
    }


def size_of(folder: Path) -> int:
    """Bytes of all files, some of which may vanish meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total


if __name__ == "__main__":
    main()
