"""Command lines: flags of absl and config_flags, refused in one paragraph.

absl ends at the first mistake. Here a flag's parser notes it and goes on, so that all
mistakes, also those against the rules of `config_rules`, are said together.
"""

import ast
import dataclasses
import difflib
import functools
import importlib.util
import inspect
import io
import itertools
import re
import sys
import textwrap
import tokenize
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ddpo_fair import config as configuration
from ddpo_fair import files, process
from ddpo_fair.classifiers import classes
from ddpo_fair.errors import UserError, shown

ONE = "attributes.gender."  # whose settings --help shows for all attributes
MOST_ATTRIBUTES = 50  # each of which has flags of its own
LONGEST_REASON = 300  # characters of what a config file raises
CALIBRATION = (
    "Labelled images: a folder with a folder of each class, a name of TensorFlow"
    " Datasets; or a calibration.json that was written of them; of one attribute"
    " NAME=..., may be given again"
)
USAGE = """\
python -m MODULE --config=configs/mech_eng.py[:sd15|:sd35|:embedded] [--config.NAME=X]

A run is a folder, run.dir/run.name: metrics.jsonl (a line per epoch), samples/ (images
of the same seeds), checkpoints/, tensorboard/. The same command again continues it from
its newest checkpoint. Ctrl-C saves and leaves, a second one leaves at once.

Exit status: 0 finished, 1 a bug of this program, 2 something for you to fix, 75
interrupted; what was done is saved, 130 stopped at once by a second Ctrl-C.

For example, with another seed, in a folder of its own:
  python -m MODULE --config=configs/mech_eng.py --config.seed=1 --config.run.name=seed1
"""


@dataclasses.dataclass(frozen=True)
class Command:
    """An experiment, as a command line names it."""

    config: ConfigDict
    path: str  # of the config file
    variant: str | None  # what followed the colon
    overrides: tuple[str, ...]  # names of the settings given on the command line


def definers(values: flags.FlagValues) -> tuple[Callable[..., None], ...]:
    """What defines flags in `values`: a text, a whole number, a number."""
    kinds = flags.DEFINE_string, flags.DEFINE_integer, flags.DEFINE_float
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

    Raises process.Help, with the usage (None under `python -OO`) and all flags, for
    --help.
    """
    if {"--help", "-help", "-h", "--helpfull"} & set(arguments):
        each = (values[name] for name in values)
        text = [
            f"  --{flag.name}={flag.default_as_str or ''}\n"
            + textwrap.indent(textwrap.fill(flag.help, 80), "      ")
            for flag in each
        ]
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


def by_attribute(
    flag: str, values: Sequence[str], names: Iterable[str]
) -> dict[str, str]:
    """What a flag says of each attribute: NAME=VALUE of one, VALUE of all others.

    Raises:
        UserError: if it is about an attribute that is not among them, or says two
            things of one.
    """
    own: dict[str, str] = {}
    rest: dict[str, str] = {}

    def once(value: str, before: str | None) -> None:
        if before not in (None, value):
            raise UserError(
                f"--{flag} is given twice, as {shown(before)} and {shown(value)}; leave"
                " out one, or say of which attributes they are, with NAME= before"
                " each."
            )

    for value in values:
        name, equals, said = value.partition("=")
        if equals and name in classes.DEFAULTS and name not in names:
            raise UserError(
                f"--{flag}={shown(value)} is about {name}, but the attributes are"
                f" {', '.join(names)}; add it, or leave this out."
            )
        if equals and name in names:
            once(said, own.get(name))
            own[name] = said
        else:
            once(value, next(iter(rest.values()), None))
            rest = dict.fromkeys(names, value)
    return rest | own


def strangers(arguments: Iterable[str], known: Iterable[str]) -> list[str]:
    """A sentence for each argument, none of which is a flag."""
    known = list(known)
    return [f"{shown(x)} is no flag; {_meant(_name(x), known)}." for x in arguments]


def _name(argument: str) -> str:
    """config.reward.soft of --config.reward.soft=true or --noconfig.reward.soft."""
    return argument.lstrip("-").partition("=")[0].removeprefix("no")


def _meant(name: str, known: Iterable[str], prefix: str = "--") -> str:
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
        elif self.default is not None and not isinstance(self.parser, _Tuple):
            rule += f", like {shown(self.default)}"
        self.problems.append(f"--{self.name}={shown(text)} must be {rule}.")
        return self.default


class _Tuple(flags.ArgumentParser):
    """A Python tuple or list; without brackets one text, or numbers with commas.

    config_flags' own parser refuses a text with a space unless it is quoted twice, and
    takes numbers for texts.
    """

    def __init__(self, kind: type):
        texts = 'texts, e.g. \'("one", "two")\', also where one begins with a bracket'
        numbers = "numbers, e.g. '(0.5, 0.5)'"
        self.syntactic_help = f"{texts} or quote" if kind is str else numbers
        self.kind = kind

    def parse(self, text: str) -> tuple:
        items = [text] if self.kind is str else text.split(",")
        if text.strip().startswith(("(", "[", "{", "'", '"')):
            items = ast.literal_eval(text.strip())
            items = items if isinstance(items, list | tuple) else [items]
            if self.kind is str and not all(isinstance(item, str) for item in items):
                raise TypeError(text)
            tokens = tokenize.generate_tokens(io.StringIO(text.strip()).readline)
            kinds = [token.type for token in tokens]
            if (tokenize.STRING, tokenize.STRING) in itertools.pairwise(kinds):
                raise TypeError(text)  # a comma is missing, and two would become one
        return tuple(self.kind(item) for item in items)


def parse(
    arguments: Sequence[str], module: str, values: flags.FlagValues | None = None
) -> tuple[Command, list[str]]:
    """The experiment of a command line, and what is wrong with it, a sentence each.

    Sets further flags, `values`. Raises UserError where there is no config, and Help.
    """
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_string("config", None, "The experiment's file.", flag_values=values)
    try:
        rest, problems = read(values, arguments, USAGE.replace("MODULE", module))
    except process.Help as text:
        raise process.Help(f"{text}\n{_settings()}") from None
    path, colon, variant = (values.config or "").partition(".py:")
    if not path:
        problems.append(
            "Which experiment? Give a config file, e.g. `python -m"
            f" {module} --config=configs/mech_eng.py`; --help lists the settings."
        )
        raise UserError(" ".join(problems))
    path, variant = path + ".py" * bool(colon), variant or None
    config, given = _load(path, variant)
    flat = configuration.flatten(config)
    for name in configuration.renamed(given).keys() - flat.keys():
        problems.append(f"{path}: {name} is no setting; {_meant(name, flat, '')}.")
    renamed = {f"config.{x}": f"config.{y}" for x, y in configuration.RENAMED.items()}
    for old, new in renamed.items():
        if old[7:] in given or old in map(_name, rest):
            print(f"{module}: {old} is called {new} now.", file=sys.stderr)
    rest = [x.replace(_name(x), renamed.get(_name(x), _name(x)), 1) for x in rest]
    overrides, more = _override(rest, [*values], config)
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
    return Command(config.lock(), path, variant, tuple(overrides)), [*problems, *more]


def _override(
    arguments: list[str], known: list[str], config: ConfigDict
) -> tuple[dict[str, Any], list[str]]:
    """Settings as config_flags reads them, by name, and what is wrong with them."""
    fresh = configuration.defaults(config.attributes)
    defaults = configuration.flatten(fresh)
    names = {f"config.{name}": default for name, default in defaults.items()}
    values = flags.FlagValues()
    ours = [argument for argument in arguments if _name(argument) in names]
    config_flags.DEFINE_config_dict("config", fresh, "", values, sys_argv=ours)
    for name in values:
        if isinstance(names.get(name), tuple):
            values[name].parser = _Tuple(type((*names[name], "")[0]))
    rest, problems = read(values, arguments, "")
    problems += strangers(rest, [*known, *names])
    return configuration.renamed(values["config"].override_values), problems


def _load(path: str, variant: str | None) -> tuple[ConfigDict, dict[str, Any]]:
    """The settings of a config file, and all that its get_config(variant) returns.

    config_flags' own loader would print a traceback, and drop what is a UserError.
    """
    file = files.given("--config", path)
    if not file.is_file() or file.suffix != ".py":
        found = sorted(map(str, Path("configs").glob("*.py")))[:8]
        raise UserError(
            f"--config={shown(path)} is not a file of Python, whose name ends in .py;"
            f" choose one of {', '.join(found) or 'your own'}, with :embedded, :sd15"
            " or :sd35 behind it to choose the model."
        )
    try:
        spec = importlib.util.spec_from_file_location("experiment", file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # where its dataclasses look for it
        spec.loader.exec_module(module)
        found = module.get_config(variant)
        if not isinstance(found, ConfigDict):
            raise TypeError(f"get_config() returned {shown(found)}")
        if not found.get("attributes", True):
            raise ValueError("attributes is empty: give one, e.g. gender")
        if (count := len(found.get("attributes", ()))) > MOST_ATTRIBUTES:
            raise ValueError(f"{count} attributes; give {MOST_ATTRIBUTES} at most")
        given = configuration.flatten(found)
        config = configuration.of_settings(given)
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        raise UserError(
            f"--config={shown(path)}{f', line {lines[-1]}' if lines else ''}:"
            f" {type(error).__name__}: {str(error)[:LONGEST_REASON]}. A config file"
            " defines get_config(variant=None), which returns a changed"
            " ddpo_fair.config.defaults()."
        ) from error
    return config, given


def settings() -> Iterator[tuple[str, object, object, list[str]]]:
    """Every setting: name, defaults of the embedded model and :sd15, its comment."""
    known, large = (
        configuration.flatten(configuration.choose_model(configuration.defaults(), x))
        for x in configuration.VARIANTS[:2]
    )
    meaning: list[str] = []
    for line in inspect.getsource(configuration).splitlines():
        field = re.match(r"    config\.([\w.]+) = ", line)
        found = [x for x in known if field and x in (field[1], ONE + field[1])]
        if found and meaning:
            yield found[0], known[found[0]], large[found[0]], meaning
        comment = re.fullmatch(r"    # (.*)", line)
        meaning = [*meaning, comment[1]] if comment else []


def _settings() -> str:
    lines = ["Settings and their defaults; a config file may change them:"]
    for name, small, large, meaning in settings():
        differs = f"   (:sd15 {large!r})" if large != small else ""
        lines.append(f"  --config.{name}={small!r}{differs}")
        lines += [f"      {line}" for line in meaning]
    return "\n".join(lines)
