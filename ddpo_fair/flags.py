"""Flags of the commands that read no config: their mistakes are a UserError, too."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from ddpo_fair import errors
from ddpo_fair.errors import UserError, shown

BAD_INPUT, INTERRUPTED = 2, 130  # exit statuses


def status(command: str, work: Callable[[], None], interrupted: str) -> int:
    """Does a command's work; its exit status: 0, 2 for something to mend, or 130.

    Args:
        command: e.g. "ddpo_fair.evaluate", which stands before its messages.
        work: the command, once its flags are told.
        interrupted: what Ctrl-C leaves behind, in words.
    """
    try:
        work()
    except UserError as error:
        print(f"{command}: {errors.paragraph(error)}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt:
        print(f"\nInterrupted; {interrupted}.", file=sys.stderr)
        return INTERRUPTED
    return 0


class Parser(argparse.ArgumentParser):
    """argparse, which would print its usage and end the process by itself."""

    def error(self, message: str) -> NoReturn:
        """Raises a UserError with the flag, its value and the rule."""
        text = message.removeprefix("argument ")
        raise UserError(f"{text[:1].upper()}{text[1:]}; --help lists all flags.")


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """What turns a flag's text into a number from `low` to `high`, for `type=`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} must be a whole number from {low} to {high}"
            )
        return number

    return read
