"""What follows `python -m ddpo_fair.train`: a config file and its overrides."""

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import files
from ddpo_fair.errors import LONGEST_ECHO, UserError, shown

LONGEST_REASON = 300  # characters of what a config file raises
TRUE, FALSE = ("true", "1", "yes"), ("false", "0", "no")


@dataclasses.dataclass(frozen=True)
class Command:
    """A parsed command line."""

    config: ConfigDict
    path: str  # of the config file
    variant: str | None  # what followed the colon
    overrides: tuple[str, ...]  # names of the fields given on the command line
    notes: tuple[str, ...] = ()  # on settings that have another name now


class Help(Exception):
    """Raised for --help; its text is what to print."""


def parse(arguments: Sequence[str], module: str) -> tuple[Command, list[str]]:
    """The command and everything wrong with its overrides, one sentence each.

    Args:
        arguments: `sys.argv[1:]`.
        module: e.g. "ddpo_fair.train", for the help.

    Raises:
        Help: for --help.
        UserError: if there is no config to apply the overrides to.
    """
    values, problems = _split(arguments, module)
    path, colon, variant = values.pop("", "").partition(".py:")
    if not path:
        raise UserError(
            "Which experiment? Give a config file, e.g. `python -m"
            f" {module} --config=configs/mech_eng.py`; --help lists the settings."
        )
    path = path + ".py" if colon else path
    config, notes = _load(path, variant or None)
    notes += [_renamed(name) for name in values if name in configuration.RENAMED]
    known = configuration.flatten(config)
    values = configuration.renamed(values)
    for name, text in values.items():
        problem = _override(config, known, name, text)
        if problem:
            problems.append(problem)
    given = tuple(name for name in values if name in known)
    return Command(config, path, variant or None, given, tuple(notes)), problems


def _split(arguments: Sequence[str], module: str) -> tuple[dict[str, str], list[str]]:
    """Text of each field by its name, the config file as "", and what is no flag."""
    values: dict[str, str] = {}
    problems = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument in ("--help", "-h", "-help", "--helpfull"):
            raise Help(help_text(module))
        match = re.fullmatch(r"--?config(?:\.([^=]*))?(?:=(.*))?", argument, re.DOTALL)
        if not match:
            problems.append(
                f"{shown(argument)} is no flag of this command; settings are given as"
                " --config.NAME=VALUE."
            )
            continue
        name, text = match.group(1) or "", match.group(2)
        if text is None:
            if not rest or rest[0].startswith("--"):
                problems.append(f"{argument} needs a value: {argument}=VALUE.")
                continue
            text = rest.pop(0)
        if name in values:
            problems.append(f"{argument.partition('=')[0]} is given twice; keep one.")
        values[name] = text
    return values, problems


def _load(path: str, variant: str | None) -> tuple[ConfigDict, list[str]]:
    """What the config file's `get_config(variant)` returns, and its old names."""
    file = Path(path)
    if not files.given("--config", path).is_file() or file.suffix != ".py":
        folder = file.parent if file.parent != Path() else Path("configs")
        if not any(folder.glob("*.py")):
            folder = Path("configs")
        found = sorted(str(other) for other in folder.glob("*.py"))[:8]
        raise UserError(
            f"--config={shown(path)} is not a file of Python, whose name ends in .py;"
            f" choose one of {', '.join(found) or 'your own'}, with :embedded or :sd15"
            " behind it to choose the model."
        )
    try:
        spec = importlib.util.spec_from_file_location("experiment", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        config = module.get_config(variant)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == str(file)]
        where = f"{path}, line {lines[-1]}" if lines else path
        raise UserError(
            f"--config={shown(path)}: {where}: {type(error).__name__}:"
            f" {str(error)[:LONGEST_REASON]}. A config file defines"
            " get_config(variant=None), which returns a changed"
            " ddpo_fair.config.defaults()."
        ) from error
    expected, actual = configuration.defaults(), config
    notes = _take_old_names(config) if isinstance(config, ConfigDict) else []
    if not isinstance(actual, ConfigDict) or set(configuration.flatten(actual)) != set(
        configuration.flatten(expected)
    ):
        raise UserError(
            f"--config={shown(path)}: get_config() must return the fields of"
            " ddpo_fair.config.defaults(), no more and no fewer."
        )
    return config.lock(), notes


def _take_old_names(config: ConfigDict) -> list[str]:
    """Gives fields of older names to those of today; a sentence for each."""
    flat = configuration.flatten(config)
    old = [name for name in flat if name in configuration.RENAMED]
    for name in old:
        *parents, leaf = name.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        del place[leaf]
    values = configuration.renamed({name: flat[name] for name in old})
    config.update_from_flattened_dict(values)
    return [_renamed(name) for name in old]


def _override(
    config: ConfigDict, known: dict[str, Any], name: str, text: str
) -> str | None:
    """Sets one field; returns what is wrong with it, or None."""
    if name not in known:
        called = f"--config.{name[:LONGEST_ECHO]}{'...' * (len(name) > LONGEST_ECHO)}"
        return f"{called} is no setting; {_closest(name, known)}."
    default = configuration.flatten(configuration.defaults())[name]
    value = _value(default, text)
    if value is None:
        return (
            f"--config.{name}={shown(text)} must be {_kind(default)}; without it, it is"
            f" {shown(known[name])}."
        )
    *parents, leaf = name.split(".")
    for parent in parents:
        config = config[parent]
    config[leaf] = value
    return None


def _renamed(name: str) -> str:
    return f"{name} is called {configuration.RENAMED[name]} now; both are taken."


def _closest(name: str, known: dict[str, Any]) -> str:
    leaf = name.rpartition(".")[2]
    same = [other for other in known if other.rpartition(".")[2] == leaf]
    similar = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    inside = [other for other in known if other.startswith(f"{name}.")]
    found = list(dict.fromkeys([*same, *inside, *similar]))
    if found:
        return f"did you mean {', '.join(found[:4])}"
    return "--help lists all settings"


def _value(default: Any, text: str) -> Any:
    """`text` as the type of `default`, or None."""
    try:
        if isinstance(default, bool):
            lowered = text.lower()
            return {**dict.fromkeys(TRUE, True), **dict.fromkeys(FALSE, False)}.get(
                lowered
            )
        if isinstance(default, tuple):
            return _tuple(type(default[0]), text)
        return type(default)(text)
    except (ValueError, OverflowError):
        return None


def _tuple(kind: type, text: str) -> tuple | None:
    """A Python tuple or list; without brackets one text, or numbers with commas."""
    if text.strip()[:1] in ("(", "["):
        try:
            items = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            return None
        items = items if isinstance(items, list | tuple) else (items,)
        fits = {str: (str,), float: (int, float)}[kind]
        if any(not isinstance(x, fits) or isinstance(x, bool) for x in items):
            return None
        return tuple(kind(item) for item in items)
    return (text,) if kind is str else tuple(kind(item) for item in text.split(","))


def _kind(default: Any) -> str:
    if isinstance(default, tuple):
        return (
            'texts, e.g. \'("one", "two")\', also where one begins with a bracket'
            if isinstance(default[0], str)
            else "numbers, e.g. '(0.5, 0.5)'"
        )
    names = {bool: "true or false", int: "a whole number", float: "a number"}
    return names.get(type(default), "a text")


def help_text(module: str) -> str:
    """How to call the command, and every setting with its default and meaning."""
    meaning: list[str] = []
    lines = []
    known = configuration.flatten(configuration.defaults())
    for line in inspect.getsource(configuration).splitlines():
        comment = re.fullmatch(r"    # (.*)", line)
        field = re.match(r"    config\.([\w.]+) = ", line)
        if comment:
            meaning.append(comment.group(1))
        elif field and field.group(1) in known and meaning:
            name = field.group(1)
            lines += [f"  --config.{name}={known[name]!r}"]
            lines += [f"      {part}" for part in meaning]
            meaning = []
        else:
            meaning = []
    return "\n".join(
        [
            f"python -m {module} --config=configs/mech_eng.py[:embedded|:sd15]"
            " [--config.NAME=VALUE ...]",
            "",
            "A run is a folder, run.dir/run.name: metrics.jsonl (a line per epoch),"
            " samples/ (pictures",
            "of the same seeds), checkpoints/, tensorboard/. The same command again"
            " continues it from",
            "its newest checkpoint. Ctrl-C saves and leaves, a second one leaves at"
            " once. With --plan",
            "it only prints what the run would need of each device and what an epoch"
            " would cost.",
            "",
            "Exit status: 0 finished, 2 something for you to mend, 75 interrupted; what"
            " was done is",
            "saved, 130 stopped at once by a second Ctrl-C.",
            "",
            "For example, with another seed and fewer denoising steps, in a folder of"
            " its own:",
            f"  python -m {module} --config=configs/mech_eng.py --config.seed=1 \\",
            "      --config.sample.num_steps=20 --config.run.name=seed1",
            "",
            "Settings and their defaults, which a config file may change:",
            *lines,
        ]
    )
