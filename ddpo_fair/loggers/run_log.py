"""What a run writes down: metrics.jsonl, grids of pictures, TensorBoard and others."""

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ddpo_fair.classifiers import classes
from ddpo_fair.loggers import metric_writer, tensorboard
from ddpo_fair.statistics import intervals

LINES = "metrics.jsonl"
NUM_BINS = 10  # of the histogram of P(female)
COLUMNS = 8  # of a grid, at least: room for the caption
MARGIN, STRIP = 2, 18  # pixels of a grid: between pictures, of the caption


@dataclasses.dataclass(frozen=True)
class Journal:
    """The records of a run in its folder."""

    folder: Path
    metric_writer: tuple[metric_writer.Board, ...]

    def write(self, line: dict[str, Any]) -> None:
        """Appends a line to metrics.jsonl, on the disk before this returns."""
        with open(self.folder / LINES, "a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line), allow_nan=False) + "\n")
            file.flush()
            os.fsync(file.fileno())
        for name, value in line.items():
            if isinstance(value, int | float) and math.isfinite(value):
                for board in self.boards:
                    board.scalar(name, value, line["epoch"])
        for board in self.boards:
            board.flush()

    def grid(self, epoch: int, images: np.ndarray, caption: str) -> None:
        """Saves samples/epoch_0000.png and the like."""
        picture = grid(images, caption)
        target = self.folder / "samples" / f"epoch_{epoch:04d}.png"
        part = target.with_name(f".{target.name}.part")
        picture.save(part, format="png")
        os.replace(part, target)
        for board in self.boards:
            board.image("samples", np.asarray(picture), epoch)

    def forget(self, epoch: int) -> None:
        """Takes back the lines from `epoch` on, which the run will write again."""
        _keep_before(self.folder, epoch)
        for board in self.boards:
            board.forget(epoch)

    def close(self) -> None:
        """Closes TensorBoard's file and the like."""
        for board in self.boards:
            with contextlib.suppress(OSError):  # `write` has flushed what there was
                board.close()


def open_journal(folder: Path, epoch: int, *further: metric_writer.Board) -> Journal:
    """The journal of a run that goes on with `epoch`; forgets what came after it.

    Args:
        folder: of the run.
        epoch: the next one.
        further: boards beside TensorBoard's, open; `Journal.close` closes them.
    """
    _keep_before(folder, epoch)
    (folder / "samples").mkdir(exist_ok=True)
    events = tensorboard.open_board(folder / "tensorboard", epoch)
    return Journal(folder, (events, *further))


def _keep_before(folder: Path, epoch: int) -> None:
    kept = [line for line in read(folder) if line["epoch"] < epoch]
    part = folder / f".{LINES}.part"
    part.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    os.replace(part, folder / LINES)


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


def shares(labels: np.ndarray) -> dict[str, Any]:
    """q with its 95 % Wilson interval and its counts; q is nan without a face."""
    num_female = int(np.sum(labels == classes.FEMALE))
    num_male = int(np.sum(labels == classes.MALE))
    q = intervals.wilson(num_female, num_female + num_male)
    return {
        "q": q.estimate,
        "q_low": q.low,
        "q_high": q.high,
        "num_female": num_female,
        "num_male": num_male,
        "num_none": int(np.sum(labels == classes.NONE)),
    }


def of_evaluation(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """The eval_ fields: q, and whether the faces are decided or ambiguous.

    Args:
        probabilities: [N, 2].
        labels: int [N].
    """
    measured = shares(labels)
    sound = probabilities[classes.finite(probabilities)]
    female, polarisation, mean = sound[:, classes.FEMALE], math.nan, math.nan
    if len(sound):
        polarisation = intervals.polarisation(sound)
        mean = float(np.mean(female, dtype=np.float64))
    histogram, _ = np.histogram(female, bins=NUM_BINS, range=(0.0, 1.0))
    return {
        "eval_q": measured["q"],
        "eval_q_low": measured["q_low"],
        "eval_q_high": measured["q_high"],
        "eval_num_female": measured["num_female"],
        "eval_num_male": measured["num_male"],
        "eval_none": measured["num_none"],
        "eval_num_not_finite": len(probabilities) - len(sound),
        "eval_p_female": mean,
        "eval_p_female_histogram": histogram.tolist(),
        "eval_polarisation": polarisation,
    }


def grid(images: np.ndarray, caption: str) -> Image.Image:
    """The images in rows under a strip with the caption.

    Args:
        images: float [N, H, W, 3] in [0, 1].
        caption: one line; cut where the picture ends.
    """
    N, H, W, _ = images.shape
    columns = max(math.ceil(math.sqrt(N)), min(N, COLUMNS))
    rows = math.ceil(N / columns)
    size = (columns * (W + MARGIN) + MARGIN, rows * (H + MARGIN) + MARGIN + STRIP)
    picture = Image.new("RGB", size, "white")
    text = ImageDraw.Draw(picture)
    text.text((MARGIN + 1, 2), caption, fill="black", font=ImageFont.load_default(11))
    pixels = np.uint8(np.round(np.clip(np.nan_to_num(images), 0.0, 1.0) * 255))
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        corner = (MARGIN + column * (W + MARGIN), STRIP + MARGIN + row * (H + MARGIN))
        picture.paste(Image.fromarray(image), corner)
    return picture


def caption(epoch: int, prompts: Sequence[str], measured: dict[str, Any]) -> str:
    """The text above a grid."""
    when = "before training" if epoch == 0 else f"after epoch {epoch}"
    what = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts in turns"
    q = ""
    if "eval_q" in measured:
        q = f"{share_text(measured, 'eval_')} | "
    return f"{when} | {q}{what}"


def line_text(line: dict[str, Any], num_epochs: int, seconds: float | None) -> str:
    """What a person reads of an epoch.

    Args:
        line: of metrics.jsonl.
        num_epochs: of the whole run.
        seconds: that the rest will take; None if nobody knows yet.
    """
    parts = [
        f"epoch {line['epoch']:3d} of {num_epochs}",
        share_text(line),
        f"none {line['num_none']}",
        f"reward {line['reward_mean']:+.3f}",
        kl_text(line["kl_last"]),
        f"clipped {line['clip_fraction']:.0%}",
    ]
    if line["advantage_max"] == 0:
        parts.append("all rewards equal: nothing to learn")
    if line["skipped_updates"]:
        parts.append(f"updates skipped {line['skipped_updates']}")
    if line["num_not_finite"]:
        parts.append(f"broken images {line['num_not_finite']}")
    if "eval_q" in line and line["epoch"] > 0:
        parts.append(evaluation_text(line))
    parts.append(f"{line['epoch_seconds']:.1f} s")
    if seconds:
        parts.append(f"about {duration_text(seconds)} left")
    return "  ".join(parts)


def kl_text(kl: float) -> str:
    """The KL of an epoch's last update, if one was taken."""
    return f"kl {kl:.2g} nats" if math.isfinite(kl) else "kl undefined"


def duration_text(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def evaluation_text(line: dict[str, Any]) -> str:
    """What a person reads of an evaluation."""
    return f"evaluation {share_text(line, 'eval_')}"


def share_text(line: dict[str, Any], prefix: str = "") -> str:
    """q with its interval, or that there is none."""
    q, low, high = (line[f"{prefix}{name}"] for name in ("q", "q_low", "q_high"))
    if not math.isfinite(q):
        return "q undefined (no face recognised)"
    return f"q {q:.2f} [{low:.2f}, {high:.2f}]"


def _plain(value: Any) -> Any:
    """`value` as JSON has it; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic | np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
