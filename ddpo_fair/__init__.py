"""Reinforcement learning for fair image generation, in JAX."""

import os
import signal
import sys

__version__ = "0.1.0"


def leave_early(number: int, *_: object) -> None:
    """Ends a command at a signal while it still imports what it needs."""
    os.write(2, b"\nInterrupted; nothing was begun.\n")
    os._exit(130 if number == signal.SIGINT else 75)


# True while `python -m` looks for a command of the package, and at no other import.
if sys.argv[:1] == ["-m"] and (
    signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, leave_early)
    if "ddpo_fair.train" in sys.orig_argv:  # the others know nothing of it
        signal.signal(signal.SIGTERM, leave_early)
