"""Leaving politely: a signal asks the run to save and go, a second Ctrl-C ends it."""

import os
import signal
import sys
import threading
from collections.abc import Callable

INTERRUPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: "try again"
AT_ONCE = 130  # exit status, 128 + SIGINT as shells have it


def watch(answer: Callable[[int], object]) -> None:
    """Calls `answer` with each signal's number, in a thread; of the main thread only.

    Python runs signal handlers between bytecodes, which may be minutes away while JAX
    compiles. The thread reads the wake-up descriptor, to which C writes at once.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def read() -> None:
        while numbers := os.read(reading, 1):
            answer(numbers[0])

    threading.Thread(target=read, daemon=True).start()


class Interrupted(Exception):
    """The run has saved what it needs to go on, and leaves."""

    def __init__(self, epochs_done: int = 0) -> None:
        super().__init__(epochs_done)
        self.epochs_done = epochs_done

    def message(self) -> str:
        """What was saved, and what the same command will do."""
        if not self.epochs_done:
            return (
                "Interrupted before the first epoch was done, so there is nothing to"
                " save. The same command begins again."
            )
        done = "1 epoch" if self.epochs_done == 1 else f"{self.epochs_done} epochs"
        return f"Saved, with {done} done. The same command continues from here."


class Stop:
    """Whether someone asked the run to stop.

    While it is `idle` nothing would be lost, and a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.requested = self.idle = False

    def listen(self) -> None:
        """Takes over SIGINT and SIGTERM; only the main thread may call it."""
        watch(self._answer)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)

    def _answer(self, number: int) -> None:
        if number not in (signal.SIGINT, signal.SIGTERM):
            return
        if self.requested and number == signal.SIGINT:
            os._exit(AT_ONCE)
        name = signal.Signals(number).name
        if self.idle:
            text = "nothing is unsaved; give the same command again"
            os.write(2, f"\n{name}: {text}.\n".encode())
            os._exit(INTERRUPTED)
        if not self.requested:
            print(
                f"\n{name}: waiting for the batch or program under way (of a large"
                " model on a CPU, minutes), then saving what is done; the same command"
                " continues. Ctrl-C again leaves at once.",
                file=sys.stderr,
                flush=True,
            )
        self.requested = True
