"""Leaving politely: a signal asks the run to save and go, a second Ctrl-C ends it."""

import os
import signal
import sys
import threading

INTERRUPTED = 75  # exit status, EX_TEMPFAIL of sysexits.h: "try again"
AT_ONCE = 130  # exit status, 128 + SIGINT as shells have it


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

    Python runs signal handlers between bytecodes, which may be minutes away while JAX
    compiles. So a thread reads the signals from the wake-up descriptor, to which C
    writes them at once. While it is `idle` nothing would be lost, and a signal ends the
    process at once.
    """

    def __init__(self) -> None:
        self.requested = self.idle = False

    def listen(self) -> None:
        """Takes over SIGINT and SIGTERM; only the main thread may call it."""
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._watch, args=(reading,), daemon=True).start()

    def _watch(self, reading: int) -> None:
        while numbers := os.read(reading, 1):
            if numbers[0] not in (signal.SIGINT, signal.SIGTERM):
                continue
            if self.requested and numbers[0] == signal.SIGINT:
                os._exit(AT_ONCE)
            name = signal.Signals(numbers[0]).name
            if self.idle:
                text = "nothing is unsaved; give the same command again"
                os.write(2, f"\n{name}: {text}.\n".encode())
                os._exit(INTERRUPTED)
            if not self.requested:
                print(
                    f"\n{name}: waiting for the batch or program under way (of a large"
                    " model on a CPU, minutes), then saving what is done; the same"
                    " command continues. Ctrl-C again leaves at once.",
                    file=sys.stderr,
                    flush=True,
                )
            self.requested = True
