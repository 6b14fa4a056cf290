"""The experiment of a command line: a config file, and settings that differ from it."""

import ast
import dataclasses
import importlib.util
import inspect
import io
import itertools
import re
import sys
import tokenize
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from ddpo_fair import command_line, files, process
from ddpo_fair import config as configuration
from ddpo_fair.errors import UserError, shown

MOST_ATTRIBUTES = 50  # each of which has flags of its own
LONGEST_REASON = 300  # characters of what a config file raises
USAGE = """\
python -m MODULE --config=configs/mech_eng.py[:VARIANTS]
    [--config.NAME=VALUE ...]

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
    model: str  # of the config file, which the other settings are for
    path: str  # of that file
    variant: str | None  # what followed the colon
    overrides: tuple[str, ...]  # names of the settings given on the command line


def parse(
    arguments: Sequence[str], module: str, values: flags.FlagValues | None = None
) -> tuple[Command, list[str]]:
    """The experiment of a command line, and what is wrong with it, a sentence each.

    Sets further flags, `values`. Raises UserError where there is no config, and Help.
    """
    values = flags.FlagValues() if values is None else values
    flags.DEFINE_string("config", None, "The experiment's file.", flag_values=values)
    variants = "|:".join(configuration.VARIANTS)
    usage = USAGE.replace("MODULE", module).replace("VARIANTS", variants)
    try:
        rest, problems = command_line.read(values, arguments, usage)
    except process.Help as text:
        given = [x for x in arguments if x not in command_line.HELP]
        command_line.read(values, given, None)
        raise process.Help(f"{text}\n{_settings(values.config)}") from None
    path, variant = _split(values.config)
    if not path:
        problems.append(
            "Which experiment? Give a config file, e.g. `python -m"
            f" {module} --config=configs/mech_eng.py`; --help lists the settings."
        )
        raise UserError(" ".join(problems))
    config, given = _load(path, variant)
    flat = configuration.flatten(config)
    for name in configuration.renamed(given).keys() - flat.keys():
        problems.append(
            f"{path}: {name} is no setting; {command_line.meant(name, flat, '')}."
        )
    renamed = {f"config.{x}": f"config.{y}" for x, y in configuration.RENAMED.items()}
    for old, new in renamed.items():
        if old[7:] in given or old in map(command_line.flag_name, rest):
            print(f"{module}: {old} is called {new} now.", file=sys.stderr)
    names = map(command_line.flag_name, rest)
    rest = [
        x.replace(y, renamed.get(y, y), 1) for x, y in zip(rest, names, strict=True)
    ]
    model, (overrides, more) = config.model, _override(rest, [*values], config)
    with config.ignore_type():
        config.update_from_flattened_dict(overrides)
        if "model" in overrides and "variant" not in overrides:
            config.variant = ""  # which of another model's files
    command = Command(config.lock(), model, path, variant, tuple(overrides))
    return command, [*problems, *more]


def _split(given: str | None) -> tuple[str, str | None]:
    """The config file's path, and the variant behind its colon."""
    path, colon, variant = (given or "").partition(".py:")
    return path + ".py" * bool(colon), variant or None


def _override(
    arguments: list[str], known: list[str], config: ConfigDict
) -> tuple[dict[str, Any], list[str]]:
    """Settings as config_flags reads them, by name, and what is wrong with them."""
    fresh = configuration.defaults(config.attributes)
    defaults = configuration.flatten(fresh)
    names = {f"config.{name}": default for name, default in defaults.items()}
    values = flags.FlagValues()
    ours = [
        argument for argument in arguments if command_line.flag_name(argument) in names
    ]
    config_flags.DEFINE_config_dict("config", fresh, "", values, sys_argv=ours)
    for name in values:
        if isinstance(names.get(name), tuple):
            values[name].parser = _Tuple(type((*names[name], "")[0]))
    rest, problems = command_line.read(values, arguments, "")
    problems += command_line.strangers(rest, [*known, *names])
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
            f" choose one of {', '.join(found) or 'your own'}, with"
            f" :{', :'.join(configuration.VARIANTS)} behind it to choose the model."
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


def settings(
    given: ConfigDict | None = None,
) -> Iterator[tuple[str, object, str, list[str]]]:
    """Every setting: its name, value, that of other variants in words, its comment.

    Of a config, or the defaults of all variants, `EMBEDDED`'s first.
    """
    flat = {
        x: configuration.flatten(
            configuration.choose_model(configuration.defaults(), x)
        )
        for x in (() if given else configuration.VARIANTS)
    }
    known = configuration.flatten(given) if given else flat[configuration.EMBEDDED]
    meaning: list[str] = []
    for line in inspect.getsource(configuration).splitlines():
        field = re.match(r"    config\.([\w.]+) = ", line)
        for name, value in known.items() if field and meaning else ():
            attribute = configuration.ATTRIBUTE.fullmatch(name)
            if field[1] in (name, attribute and attribute[2]):
                others: dict[str, list[str]] = {}
                for variant, own in flat.items():
                    if own[name] != value:
                        others.setdefault(repr(own[name]), []).append(f":{variant}")
                words = (f"{', '.join(who)} {what}" for what, who in others.items())
                yield name, value, "; ".join(words), meaning
        comment = re.fullmatch(r"    # (.*)", line)
        meaning = [*meaning, comment[1]] if comment else []


def _settings(file: str | None) -> str:
    """What --help says of the settings: of a config file, or of all variants."""
    title = "Settings and their defaults. A file's own: --config=FILE --help"
    given = _load(*_split(file))[0] if file else None
    lines = [f"Settings of {file}:" if file else title]
    for name, value, others, meaning in settings(given):
        differs = f"   ({others})" if others else ""
        lines.append(f"  --config.{name}={value!r}{differs}")
        lines += [f"      {line}" for line in meaning]
    return "\n".join(lines)


class _Tuple(flags.ArgumentParser):
    """A Python tuple or list; without brackets one text, or numbers with commas.

    config_flags' own parser refuses spaces in a text, and takes numbers for texts.
    """

    def __init__(self, kind: type):
        texts = 'texts, e.g. \'("one", "two")\', also where one begins with a bracket'
        numbers = "whole numbers" if kind is int else "numbers, e.g. '(0.5, 0.5)'"
        self.syntactic_help = f"{texts} or quote" if kind is str else numbers
        self.kind = kind

    def parse(self, text: str) -> tuple:
        if text.strip() == "None":
            raise ValueError(text)  # () is meant
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
        found = tuple(self.kind(item) for item in items)
        for item, value in zip(items, found, strict=True):
            if type(item) is bool or (not isinstance(item, str) and item != value):
                raise ValueError(text)  # 1.5 is no whole number, nor is True
        return found
