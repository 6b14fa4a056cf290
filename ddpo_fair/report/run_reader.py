"""What a run left in its folder, read with patience: a run may be cut short anywhere.

Reads only what every run writes: config.json, metrics.jsonl, samples/*.png, and
evaluation.json and calibration.json where `python -m ddpo_fair.evaluate` wrote one.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ddpo_fair import config, files
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.training import description, run_folder

EVALUATION = re.compile(r"evaluation_(\d{4,9})")
CALIBRATION = "calibration.json"
# Of the embedded classifiers, on renders.
SHIPPED = Path(__file__).parents[1] / "embedded" / "assets" / CALIBRATION
GRID = re.compile(r"epoch_(\d{1,9})\.png")
LARGEST_COUNT = 2**53  # up to which a float is exact; beyond it is no count
# Settings in which runs of one experiment may differ.
OF_ONE_RUN = ("seed", *description.INCIDENTAL)


@dataclasses.dataclass(frozen=True, eq=False)  # a key of `measurements.of_run`
class Record:
    """One run's records."""

    folder: Path
    settings: dict[str, Any]  # by full name, "sample.eta"; {} without a config.json
    about: dict[str, Any]  # the rest of config.json: version, commit, devices, ...
    lines: tuple[dict[str, Any], ...]  # of metrics.jsonl, one an epoch, in their order
    grids: dict[int, Path]  # the grid of images of an epoch
    evaluation: dict[str, Any]  # evaluation.json of the newest checkpoint, or {}
    calibrations: tuple[dict[str, Any], ...]  # calibration.json, the likeliest first
    checksum: str  # SHA-256 of metrics.jsonl, "" without it
    notes: tuple[str, ...]  # what was missing or unreadable, a sentence each

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def prompts(self) -> list[str]:
        """The prompts of the settings, else those of the metrics, else one unknown."""
        prompts = self.settings.get("prompts")
        if isinstance(prompts, list) and prompts:
            return [str(prompt) for prompt in prompts]
        found = (prompt for line in self.lines for prompt in parts(line, "prompts"))
        return list(dict.fromkeys(found)) or [self.name]

    @property
    def num_epochs(self) -> int:
        """Epochs of the settings; those that are there without settings."""
        epochs = self.settings.get("epochs")
        return epochs if isinstance(epochs, int) else len(self.lines)


def read(folder: str | Path) -> Record:
    """The records of a run folder; a UserError if the folder holds no run."""
    folder = files.given("The run", folder)
    names = run_folder.CONFIG, run_log.LINES
    if not any((folder / name).is_file() for name in names):
        raise UserError(
            f"{folder} is no run: it has neither {' nor '.join(names)}. Give the folder"
            " of a run, e.g. runs/mech_eng."
        )
    notes: list[str] = []
    about = _object(folder / run_folder.CONFIG, notes)
    settings = about.pop("config", None)
    kept = sorted(folder.glob(f"evaluation_*/{CALIBRATION}"), reverse=True)
    kept = [x for x in (folder / CALIBRATION, *kept, SHIPPED) if x.is_file()]
    lines, checksum = _lines(folder, notes)
    paths = sorted(folder.glob("samples/epoch_*.png"))
    grids = ((GRID.fullmatch(path.name), path) for path in paths)
    grids = {int(name[1]): path for name, path in grids if name and path.is_file()}
    return Record(
        folder=folder,
        settings=config.renamed(settings) if isinstance(settings, dict) else {},
        about=about,
        lines=lines,
        grids=dict(sorted(grids.items())),
        evaluation=_evaluation(folder, notes),
        calibrations=tuple(_object(path, notes) for path in kept),
        checksum=checksum,
        notes=tuple(notes),
    )


def number(line: dict[str, Any], name: str) -> float:
    """A field as a float; nan where it is absent, null, or no number."""
    value = line.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def count(line: dict[str, Any], name: str) -> int:
    """A field as a count; 0 where it is none."""
    value = number(line, name)
    return int(value) if 0 < value < LARGEST_COUNT else 0


def series(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values [E] of a field; nan where an epoch lacks it."""
    epochs = np.array([line["epoch"] for line in record.lines], np.float64)
    return epochs, np.array([number(line, name) for line in record.lines], np.float64)


def parts(line: dict[str, Any], field: str) -> dict[str, dict[str, Any]]:
    """The parts of a line by "prompts" or "attributes"; {} where it is not divided."""
    found = line.get(field)
    if not isinstance(found, dict):
        return {}
    return {name: part for name, part in found.items() if isinstance(part, dict)}


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Runs that differ in their seed and in how they were run, together, in order."""
    experiments: dict[str, list[Record]] = {}
    for record in records:
        shared = {k: v for k, v in record.settings.items() if k not in OF_ONE_RUN}
        name = json.dumps(shared, sort_keys=True) if shared else str(record.folder)
        experiments.setdefault(name, []).append(record)
    return list(experiments.values())


def _object(path: Path, notes: list[str]) -> dict[str, Any]:
    """The JSON object of a file; {} with a note where there is none."""
    problem = "cannot be read (it holds no JSON object)"
    try:
        content = json.loads(files.content(path))
        if isinstance(content, dict):
            return content
    except FileNotFoundError:
        problem = "is missing"
    except (OSError, ValueError, RecursionError) as error:
        problem = f"cannot be read ({error})"
    notes.append(f"{path.name} {problem}.")
    return {}


def _evaluation(folder: Path, notes: list[str]) -> dict[str, Any]:
    """evaluation.json of the newest checkpoint; {} without one of this run."""
    paths = ((EVALUATION.fullmatch(x.name), x) for x in folder.glob("evaluation_*"))
    found = {int(name[1]): path / "evaluation.json" for name, path in paths if name}
    number = max((x for x, path in found.items() if path.is_file()), default=None)
    if number is None:
        return {}
    content, place = _object(found[number], notes), folder / run_folder.CHECKPOINTS
    source, is_now = content.get("source"), run_folder.fingerprint(place, number)
    was = source.get("fingerprint", is_now) if isinstance(source, dict) else is_now
    if is_now not in (None, was) or number > (run_folder.finished(place) or number):
        notes.append(f"{found[number].parent.name} is of another run; left out.")
        return {}
    return content


def _lines(folder: Path, notes: list[str]) -> tuple[tuple[dict, ...], str]:
    """Lines by epoch, the later of two with one epoch, and the file's SHA-256."""
    try:
        checksum = hashlib.sha256(files.content(folder / run_log.LINES)).hexdigest()
        found, damaged = run_log.split(folder)
    except OSError as error:
        reason = f"cannot be read ({error.strerror})"
        if isinstance(error, FileNotFoundError):
            reason = "is missing: no epoch is finished yet"
        notes.append(f"{run_log.LINES} {reason}.")
        return (), ""
    if damaged:
        count = f"{len(damaged)} of {run_log.LINES}'s lines"
        notes.append(f"{count} cannot be read; left out.")
    lines = {line["epoch"]: line for line in found if line["epoch"] < 10**9}
    return tuple(lines[epoch] for epoch in sorted(lines)), checksum
