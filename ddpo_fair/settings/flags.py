"""Flags of the commands that read no config: their mistakes are a UserError, too."""

import argparse
from collections.abc import Callable
from typing import NoReturn

from ddpo_fair.errors import UserError, shown


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
