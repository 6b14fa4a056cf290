"""What a run left in its folder, read with patience: a run may be cut short anywhere.

Reads only what every run writes: config.json, metrics.jsonl, samples/*.png, and
evaluation.json where `python -m ddpo_fair.evaluate` has been there.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpo_fair import config as configuration
from ddpo_fair import files
from ddpo_fair.errors import UserError
from ddpo_fair.statistics import intervals
from ddpo_fair.training import run_folder

CONFIG, LINES = "config.json", "metrics.jsonl"
EVALUATION = "evaluation_*/evaluation.json"
GRID = re.compile(r"epoch_(\d{1,9})\.png")
# Settings in which runs of one experiment may differ.
OF_ONE_RUN = ("seed", *run_folder.INCIDENTAL)


@dataclasses.dataclass(frozen=True)
class Record:
    """One run's records.

    Attributes:
        folder: of the run.
        settings: by full name, e.g. "sample.eta"; {} without a readable config.json.
        about: the rest of config.json: version, commit, devices, ...
        lines: of metrics.jsonl, one an epoch, in their order.
        grids: the grid of pictures of an epoch.
        evaluation: evaluation.json of the newest checkpoint; {} without one.
        checksum: SHA-256 of metrics.jsonl, "" without it.
        notes: what was missing or unreadable, a sentence each.
    """

    folder: Path
    settings: dict[str, Any]
    about: dict[str, Any]
    lines: tuple[dict[str, Any], ...]
    grids: dict[int, Path]
    evaluation: dict[str, Any]
    checksum: str
    notes: tuple[str, ...]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def prompts(self) -> list[str]:
        """The prompts of the settings, else those of the metrics."""
        said = self.settings.get("prompts")
        if isinstance(said, list) and said:
            return [str(prompt) for prompt in said]
        return list(dict.fromkeys(p for line in self.lines for p in by_prompt(line)))

    @property
    def target(self) -> float:
        """The wanted share classified as female; 1/2 where the settings do not say."""
        said = self.settings.get("reward.target")
        share = said[0] if isinstance(said, list) and said else 0.5
        return (
            float(share) if isinstance(share, int | float) and 0 <= share <= 1 else 0.5
        )

    @property
    def num_epochs(self) -> int:
        """Epochs that were asked for; those that are there if nobody said."""
        said = self.settings.get("epochs")
        return said if isinstance(said, int) else len(self.lines)


class Share(NamedTuple):
    """The share classified as female that one measurement of a model found.

    Attributes:
        q: with its 95 % Wilson interval.
        num_faces: recognised as one or the other; 0 where nobody wrote it down.
        num_none: not recognised.
        epochs_done: how much training the model had.
    """

    q: intervals.Interval
    num_faces: int
    num_none: int
    epochs_done: int


def read(folder: str | Path) -> Record:
    """The records of a run folder.

    Raises:
        UserError: if the folder holds no run.
    """
    folder = files.given("The run", folder)
    if not any((folder / name).is_file() for name in (CONFIG, LINES)):
        raise UserError(
            f"{folder} is no run: it has neither {CONFIG} nor {LINES}. Give the folder"
            " of a run, e.g. runs/mech_eng."
        )
    notes: list[str] = []
    about = _read_object(folder / CONFIG, notes)
    settings = about.pop("config", None)
    evaluations = sorted(folder.glob(EVALUATION))
    evaluation = _read_object(evaluations[-1], notes) if evaluations else {}
    lines, checksum = _read_lines(folder / LINES, notes)
    return Record(
        folder=folder,
        settings=configuration.renamed(flatten(settings))
        if isinstance(settings, dict)
        else {},
        about=about,
        lines=lines,
        grids=_grids(folder / "samples"),
        evaluation=evaluation,
        checksum=checksum,
        notes=tuple(notes),
    )


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their full names, whether they were nested or not."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


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
    return int(value) if math.isfinite(value) and value > 0 else 0


def series(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Epochs and values [E] of a field; nan where an epoch lacks it."""
    epochs = np.array([line["epoch"] for line in record.lines], np.float64)
    return epochs, np.array([number(line, name) for line in record.lines], np.float64)


def by_prompt(line: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The part of each prompt in a line; {} where there is one prompt only."""
    parts = line.get("prompts")
    if not isinstance(parts, dict):
        return {}
    return {name: part for name, part in parts.items() if isinstance(part, dict)}


def trained_on(line: dict[str, Any], epoch: int) -> Share | None:
    """q of the images that an epoch trained on, drawn before its updates."""
    return _share(line, "", "num_none", epoch)


def evaluated(line: dict[str, Any], epoch: int) -> Share | None:
    """q of an evaluation on fresh seeds; None where the line has none.

    Epoch 0's is of the model before training, any other follows its epoch's updates.
    """
    return _share(line, "eval_", "eval_none", epoch + 1 if epoch else 0)


def groups(records: Iterable[Record]) -> list[list[Record]]:
    """Runs that differ in their seed and in how they were run, together, in order."""
    found: dict[str, list[Record]] = {}
    for record in records:
        rest = {k: v for k, v in record.settings.items() if k not in OF_ONE_RUN}
        what = json.dumps(rest, sort_keys=True) if rest else str(record.folder)
        found.setdefault(what, []).append(record)
    return list(found.values())


def _share(
    line: dict[str, Any], prefix: str, none: str, epochs_done: int
) -> Share | None:
    female, male = f"{prefix}num_female", f"{prefix}num_male"
    num_none = count(line, none)
    if math.isfinite(number(line, female)) and math.isfinite(number(line, male)):
        faces = count(line, female) + count(line, male)
        q = intervals.wilson(count(line, female), faces)
        return Share(q, faces, num_none, epochs_done)
    names = (f"{prefix}q", f"{prefix}q_low", f"{prefix}q_high")
    q = intervals.Interval(*(number(line, name) for name in names))
    if not all(0 <= bound <= 1 for bound in q):
        return None
    return Share(q, 0, num_none, epochs_done)


def _read_object(path: Path, notes: list[str]) -> dict[str, Any]:
    """A JSON object; {} with a note where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        notes.append(f"{path.name} is missing.")
        return {}
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.name} cannot be read ({error}).")
        return {}
    if not isinstance(content, dict):
        notes.append(f"{path.name} holds no JSON object.")
        return {}
    return content


def _read_lines(path: Path, notes: list[str]) -> tuple[tuple[dict, ...], str]:
    """Lines by epoch, the later of two with one epoch, and the file's SHA-256."""
    try:
        content = path.read_bytes()
    except OSError:
        notes.append(f"{path.name} is missing: no epoch is finished yet.")
        return (), ""
    lines: dict[int, dict[str, Any]] = {}
    unread = 0
    for text in content.decode("utf-8", "replace").splitlines():
        try:
            line = json.loads(text)
            epoch = line["epoch"]
            if not isinstance(epoch, int) or not 0 <= epoch < 10**9:
                raise ValueError(epoch)
        except (ValueError, TypeError, KeyError, RecursionError):
            unread += bool(text.strip())
            continue
        lines[epoch] = line
    if unread:
        notes.append(f"{unread} of {path.name}'s lines cannot be read; left out.")
    in_order = tuple(lines[epoch] for epoch in sorted(lines))
    return in_order, hashlib.sha256(content).hexdigest()


def _grids(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    found = ((GRID.fullmatch(path.name), path) for path in folder.iterdir())
    grids = {int(match.group(1)): path for match, path in found if match}
    return dict(sorted(grids.items()))
