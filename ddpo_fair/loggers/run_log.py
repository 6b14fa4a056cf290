"""What a run writes into its folder: metrics.jsonl, grids of images, curves."""

import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ddpo_fair import files
from ddpo_fair.loggers import grids

LINES = "metrics.jsonl"


class MetricWriter(Protocol):
    """What a run log asks of TensorBoard and W&B; steps are epochs."""

    def add(self, step: int, values: dict[str, float | np.ndarray]) -> None:
        """Adds points to curves, and images uint8 [H, W, 3]; keeps none back."""

    def forget(self, first_step: int) -> None:
        """Leaves out what came from `first_step` on: it will come again."""

    def close(self) -> None:
        """Closes the writer."""


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The records of a run in its folder, and the writers that get them too."""

    folder: Path
    writers: tuple[MetricWriter, ...]

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, on the disk before this returns."""
        with open(self.folder / LINES, "a", encoding="utf-8") as file:
            file.write(files.json_text(line))
            file.flush()
            os.fsync(file.fileno())
        numbers = {
            name: value
            for name, value in line.items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for writer in self.writers:
            writer.add(line["epoch"], numbers)

    def grid(self, epoch: int, images: np.ndarray, caption: str) -> None:
        """Saves samples/epoch_0000.png and the like; see `grids.grid`."""
        sheet = grids.grid(images, caption)
        target = self.folder / "samples" / f"epoch_{epoch:04d}.png"
        with files.replacing(target) as part:
            sheet.save(part, format="png")
        for writer in self.writers:
            writer.add(epoch, {"samples": np.asarray(sheet)})

    def forget(self, epoch: int) -> None:
        """Takes back the lines from `epoch` on, which the run will write again."""
        _keep_before(self.folder, epoch)
        for writer in self.writers:
            writer.forget(epoch)

    def close(self) -> None:
        """Closes the writers."""
        for writer in self.writers:
            with contextlib.suppress(OSError):  # nothing is kept back
                writer.close()


def open_log(folder: Path, epoch: int, *further: MetricWriter) -> RunLog:
    """The log of a run that goes on with `epoch`; forgets what came after it.

    `further` are open writers beside TensorBoard's; `RunLog.close` closes them.
    """
    # tensorboardX imports torch where that is installed: seconds, and no reader of a
    # run needs them.
    from ddpo_fair.loggers import tensorboard

    _keep_before(folder, epoch)
    (folder / "samples").mkdir(exist_ok=True)
    events = tensorboard.open_writer(folder / "tensorboard", epoch)
    return RunLog(folder, (events, *further))


def _keep_before(folder: Path, epoch: int) -> None:
    kept = [line for line in read(folder) if line["epoch"] < epoch]
    files.replace(folder / LINES, "".join(map(files.json_text, kept)))


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, up to the first that is none or was cut short."""
    lines = []
    if (folder / LINES).exists():
        content = (folder / LINES).read_bytes().decode("utf-8", "replace")
        for text in content.splitlines():
            try:
                line = json.loads(text)
                if type(line["epoch"]) is not int:
                    break
            except (ValueError, TypeError, LookupError, RecursionError):
                break
            lines.append(line)
    return lines
