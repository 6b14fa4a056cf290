"""What the person at the terminal sees: lines, and a bar with the time left."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import tqdm

from ddpo_fair.learning.goals import JOINT

POLL_SECONDS = 0.02


class Progress:
    """Lines on stdout; a bar on stderr where that is a terminal, nothing elsewhere."""

    def __init__(self, enabled: bool = True) -> None:
        self._enabled = enabled  # only the main process talks
        self._bar: tqdm.tqdm | None = None

    def say(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._enabled and self._bar is not None:
            self._bar.write(text, file=sys.stdout)
        elif self._enabled:
            print(text)
        sys.stdout.flush()

    def start(self, total: int, done: int = 0) -> None:
        """Shows a new bar, of `total` units of work (batches and updates)."""
        self.close()
        if self._enabled and sys.stderr.isatty():
            self._bar = tqdm.tqdm(
                total=total,
                initial=done,
                smoothing=0.05,  # the first epoch compiles; later ones count more
                dynamic_ncols=True,
                bar_format="{desc} {percentage:3.0f} % |{bar}| {elapsed} so far,"
                " {remaining} left",
            )

    def wait(
        self,
        arrays: Iterable[jax.Array],
        doing: str,
        stopped: Callable[[], bool] | None = None,
    ) -> None:
        """Waits for each array in turn, one unit of the bar each.

        In small naps, so that the bar's clock runs; it returns early once `stopped()`.
        """
        for array in arrays:
            self._show(doing, 0)
            while not array.is_ready():
                if stopped is not None and stopped():
                    return
                time.sleep(POLL_SECONDS)
                self._show(doing, 0)
            self._show(doing, 1)

    def _show(self, doing: str, units: int) -> None:
        if self._bar is not None:
            self._bar.set_description(doing, refresh=False)
            self._bar.update(units)
            if units == 0 and time.monotonic() - self._bar.last_print_t > 1:
                self._bar.refresh()

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class Clock:
    """How long each part of an epoch took, and what is left may take."""

    def __init__(self) -> None:
        self._last = time.monotonic()  # the end of the last lap
        self._epochs: list[float] = []  # seconds of each

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self._last = self._last, time.monotonic()
        return self._last - before

    def seconds_left(self, seconds: float, num_epochs: int) -> float | None:
        """What the epochs left may take, on average; None after the first."""
        self._epochs.append(seconds)
        known = self._epochs[1:]  # the first compiles
        return num_epochs * sum(known) / len(known) if known else None


def caption(epoch: int, prompts: Sequence[str], measured: dict[str, Any]) -> str:
    """The text above a grid."""
    when = "before training" if epoch == 0 else f"after epoch {epoch}"
    what = prompts[0] if len(prompts) == 1 else f"{len(prompts)} prompts in turns"
    q = ""
    if texts := share_texts(measured, "eval_"):
        q = f"{texts[0]} | "  # more would not fit a grid
    return f"{when} | {q}{what}"


def line_text(line: dict[str, Any], num_epochs: int, seconds: float | None) -> str:
    """What a person reads of a line of metrics.jsonl; the rest takes `seconds`."""
    kl = line["kl_last"]  # of the last update, to the policy that sampled
    parts = [
        f"epoch {line['epoch']:3d} of {num_epochs}",
        *share_texts(line),
        f"reward {line['reward_mean']:+.3f}",
        f"kl {kl:.2g} nats" if math.isfinite(kl) else "kl undefined",
        *([f"to the base {line['base_kl']:.2g}"] if "base_kl" in line else []),
        f"clipped {line['clip_fraction']:.0%}",
    ]
    if line["advantage_max"] == 0:
        parts.append("all rewards equal: nothing to learn")
    if line["skipped_updates"]:
        parts.append(f"updates skipped {line['skipped_updates']}")
    if line["num_not_finite"]:
        parts.append(f"broken images {line['num_not_finite']}")
    if line["epoch"] > 0 and (text := evaluation_text(line)):
        parts.append(text)
    parts.append(f"{line['epoch_seconds']:.1f} s")
    if seconds:
        parts.append(f"about {duration_text(seconds)} left")
    return "  ".join(parts)


def duration_text(seconds: float) -> str:
    """Seconds, minutes, or hours and minutes."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def evaluation_text(line: dict[str, Any]) -> str:
    """What a person reads of an evaluation; empty where there is none."""
    texts = share_texts(line, "eval_")
    return f"evaluation {'  '.join(texts)}" if texts else ""


def share_texts(line: dict[str, Any], prefix: str = "") -> list[str]:
    """q and its interval, shares of other attributes, distance of a joint goal."""
    parts = []
    if f"{prefix}q" in line:
        q, low, high = (line[f"{prefix}{name}"] for name in ("q", "q_low", "q_high"))
        known = math.isfinite(q)
        text = f"q {q:.2f} [{low:.2f}, {high:.2f}]"
        parts.append(text if known else "q undefined (no face recognised)")
        if not prefix:
            parts.append(f"none {line['num_none']}")
    for name, one in line.get("attributes", {}).items():
        distance = one.get(f"{prefix}distance")
        if JOINT in name and distance is not None:
            parts.append(f"{name}: distance {distance:.2f}")
        elif name != "gender" and f"{prefix}shares" in one:
            shares = one[f"{prefix}shares"].items()
            each = ", ".join(f"{word} {share:.2f}" for word, share in shares)
            parts.append(f"{name}: {each}")
    return parts
