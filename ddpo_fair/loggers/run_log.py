"""What a run writes into its folder: metrics.jsonl, grids of images, curves."""

import contextlib
import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpo_fair import files
from ddpo_fair.errors import shown

LINES, DAMAGED = "metrics.jsonl", "metrics.jsonl.damaged"
COLUMNS = 8  # of a grid, at least: room for the caption
MARGIN, STRIP = 2, 18  # pixels: between images, of the caption


@dataclasses.dataclass(frozen=True)
class RunLog:
    """The records of a run in its folder, and the writers that get them too."""

    folder: Path
    writers: tuple[Any, ...]  # of `tensorboard` and `weights_and_biases`; steps: epochs
    complaints: tuple[str, ...] = ()  # about the lines that were there

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, on the disk before this returns."""
        with open(self.folder / LINES, "a", encoding="utf-8") as file:
            file.write(files.json_text(line))
            file.flush()
            os.fsync(file.fileno())
        numbers = {
            name: value
            for name, value in (line | _of_attributes(line)).items()
            if isinstance(value, int | float) and math.isfinite(value)
        }
        for writer in self.writers:
            writer.add(line["epoch"], numbers)

    def grid(self, epoch: int, images: np.ndarray, caption: str) -> None:
        """Saves samples/epoch_0000.png and the like; see `grid`."""
        sheet = grid(images, caption)
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


def _of_attributes(line: dict[str, Any]) -> dict[str, float]:
    """Shares and distances of a line, e.g. "attributes/skin_tone/eval_light"."""
    found = {}
    for name, one in line.get("attributes", {}).items():
        for prefix in ("", "eval_"):
            fields = {"distance": one.get(f"{prefix}distance")}
            fields |= one.get(f"{prefix}shares", {})
            for field, value in fields.items():
                found[f"attributes/{name}/{prefix}{field}"] = value
    return found


def grid(images: np.ndarray, caption: str) -> Image.Image:
    """Images float [N, H, W, 3] in [0, 1], in rows under a caption of one line."""
    N, H, W, _ = images.shape
    columns = max(math.ceil(math.sqrt(N)), min(N, COLUMNS))
    rows = math.ceil(N / columns)
    size = (columns * (W + MARGIN) + MARGIN, rows * (H + MARGIN) + MARGIN + STRIP)
    sheet = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(sheet)
    text.text((MARGIN + 1, 2), caption, fill="black", font=ImageFont.load_default(11))
    pixels = np.uint8(np.round(np.clip(np.nan_to_num(images), 0.0, 1.0) * 255))
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (W + MARGIN), STRIP + MARGIN + row * (H + MARGIN))
        sheet.paste(Image.fromarray(image), corner)
    return sheet


def open_log(folder: Path, epoch: int, *further: Any) -> RunLog:
    """The log of a run that goes on with `epoch`; `further` writers get it, too."""
    # A quarter of a second, and no reader of a run needs it.
    from ddpo_fair.loggers import tensorboard

    complaints = _keep_before(folder, epoch)
    (folder / "samples").mkdir(exist_ok=True)
    events = tensorboard.open_writer(folder / "tensorboard", epoch)
    return RunLog(folder, (events, *further), complaints)


def _keep_before(folder: Path, epoch: int) -> tuple[str, ...]:
    """Takes back the lines from `epoch` on; complaints about the others."""
    lines, damaged = split(folder)
    kept = [line for line in lines if line["epoch"] < epoch]
    missing = sorted(set(range(epoch)) - {line["epoch"] for line in kept})
    complaints = []
    if damaged:
        with open(folder / DAMAGED, "ab") as file:
            file.write(b"".join(text + b"\n" for text in damaged))
        complaints.append(f"{len(damaged)} damaged line(s) moved to {DAMAGED}")
    if missing:
        complaints.append(
            f"no line of the epoch(s) {shown(missing)}, which are trained already:"
            " reports leave them out"
        )
    if lines and not kept:
        complaints.append(f"{len(lines)} epoch(s) not in a checkpoint: trained again")
    files.replace(folder / LINES, "".join(map(files.json_text, kept)))
    return tuple(f"{folder / LINES}: {text}." for text in complaints)


def read(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without those that are damaged or were cut short."""
    return split(folder)[0]


def split(folder: Path) -> tuple[list[dict[str, Any]], list[bytes]]:
    """Lines of metrics.jsonl, and those that are none but the last, if it was cut."""
    lines: list[dict[str, Any]] = []
    damaged: list[bytes] = []
    if (folder / LINES).is_file():  # a FIFO would be waited for
        whole, _, cut = (folder / LINES).read_bytes().rpartition(b"\n")
        for text in filter(bytes.strip, [*whole.split(b"\n"), cut]):
            try:
                line = json.loads(text.decode("utf-8-sig"))
                if type(line["epoch"]) is not int or line["epoch"] < 0:
                    raise ValueError("no epoch's line")
                lines.append(line)
            except (ValueError, TypeError, LookupError, RecursionError):
                damaged.append(text)
        if cut and damaged[-1:] == [cut]:
            damaged.pop()  # by a process that was killed
    return lines, damaged
