"""Command lines: flags of absl, whose mistakes are all said in one paragraph.

absl ends at the first one; here a flag's parser notes it and goes on.
"""

import difflib
import functools
import textwrap
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from absl import flags

from ddpo_fair import process
from ddpo_fair.errors import UserError, shown

HELP = {"--help", "-help", "-h", "--helpfull"}
CALIBRATION = (
    "Labelled images: a folder with a folder of each class, a name of TensorFlow"
    " Datasets; or a calibration.json that was written of them; of one attribute"
    " NAME=..., may be given again"
)


def definers(values: flags.FlagValues) -> tuple[Callable[..., None], ...]:
    """What defines flags: a text, a whole number, a number, texts, true or false."""
    kinds = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
    kinds += flags.DEFINE_multi_string, flags.DEFINE_bool
    return tuple(functools.partial(kind, flag_values=values) for kind in kinds)


def options(
    values: flags.FlagValues, arguments: Sequence[str], usage: str, *required: str
) -> flags.FlagValues:
    """`values`, set by a command line that has nothing else; raises as `read` does."""
    rest, problems = read(values, arguments, usage)
    problems += strangers(rest, values)
    missing = [name for name in required if values[name].value is None]
    problems += [f"--{name} is missing: {values[name].help}." for name in missing]
    if problems:
        raise UserError(" ".join(problems))
    return values


def read(
    values: flags.FlagValues, arguments: Sequence[str], usage: str | None
) -> tuple[list[str], list[str]]:
    """Sets flags; what is none of them, and what is wrong, a sentence each.

    Raises process.Help for --help; `python -OO` has no usage.
    """
    if HELP & set(arguments):
        text = [_explained(values[name]) for name in values]
        raise process.Help("\n".join([usage or "", "Flags and their defaults:", *text]))
    problems: list[str] = []
    for name in values:
        values[name].parser = _Noting(values[name], problems)
    values.set_gnu_getopt()
    try:
        return values(["", *arguments], known_only=True)[1:], problems
    except (flags.Error, ValueError, OSError) as error:  # a value missing, a flagfile
        values.mark_as_parsed()
        return [], [*problems, f"{error}."]


def _explained(flag: flags.Flag) -> str:
    """What --help says of a flag; without absl's own words behind some."""
    value = flag.default
    value = ",".join(map(str, value)) if isinstance(value, list) else value
    value = "" if value is None else value
    given = f"  --{flag.name}" + f"={value}" * (not flag.boolean)
    meaning = flag.help.partition(";\n    repeat this option")[0]
    return f"{given}\n" + textwrap.indent(textwrap.fill(meaning, 80), "      ")


def strangers(arguments: Iterable[str], known: Iterable[str]) -> list[str]:
    """A sentence for each argument, none of which is a flag."""
    known = list(known)
    return [f"{shown(x)} is no flag; {meant(flag_name(x), known)}." for x in arguments]


def flag_name(argument: str) -> str:
    """config.reward.soft of --config.reward.soft=true or --noconfig.reward.soft."""
    return argument.lstrip("-").partition("=")[0].removeprefix("no")


def meant(name: str, known: Iterable[str], prefix: str = "--") -> str:
    """What was probably meant by the name of a flag or setting that there is not."""
    known, leaf = list(known), name.rpartition(".")[2]
    same = [other for other in known if leaf and other.rpartition(".")[2] == leaf]
    inside = [other for other in known if other.startswith(f"{name}.")]
    leaves = [other.rpartition(".")[2] for other in known]
    close = difflib.get_close_matches(leaf, leaves, n=3, cutoff=0.7)
    similar = [other for other in known if other.rpartition(".")[2] in close]
    likely = [*same, *inside] or similar
    found = [prefix + other for other in dict.fromkeys(likely)]
    return f"did you mean {', '.join(found[:4])}" if found else "--help lists them all"


class _Noting(flags.ArgumentParser):
    """A flag's parser that notes what it refuses, and has the default instead."""

    def __init__(self, flag: flags.Flag, problems: list[str]):
        self.name, self.parser, self.default = flag.name, flag.parser, flag.default
        self.problems = problems

    def parse(self, text: str) -> Any:
        try:
            value = self.parser.parse(text)
            if value == value:  # else it is not a number
                return value
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            pass
        rule = self.parser.syntactic_help
        if isinstance(self.parser, flags.BooleanParser):
            rule = "true or false"
        elif isinstance(self.parser, flags.EnumParser):
            rule = f"one of {', '.join(self.parser.enum_values)}"
        elif self.default is not None and not isinstance(self.default, tuple):
            rule += f", like {shown(self.default)}"
        self.problems.append(f"--{self.name}={shown(text)} must be {rule}.")
        return self.default
