"""What the person at the terminal sees: lines, and a bar with the time left."""

import sys
import time
from collections.abc import Callable, Iterable

import jax
import tqdm

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

    def start(self, total: int, done: int) -> None:
        """Shows the bar, of `total` units of work (batches and updates)."""
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

        In small naps, so that the bar's clock runs, and a request to stop is seen: then
        it returns before the arrays are there.
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
