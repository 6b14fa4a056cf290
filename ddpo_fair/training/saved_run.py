"""A run read back from its folder: settings, measurements, trained weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, files, parallel
from ddpo_fair.errors import UserError
from ddpo_fair.loggers import run_log
from ddpo_fair.models import unet, weights
from ddpo_fair.training import assembly, checkpoint, run_folder

# What parsing a file of JSON that means something else may raise.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
UNREADABLE += (RecursionError, OverflowError)
NEEDED = ("epoch", "eval_q", "eval_q_low", "eval_q_high")


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a run's folder says, without its weights."""

    folder: Path
    config: ConfigDict
    record: dict[str, Any]  # config.json: version, commit, devices, ...
    lines: list[dict[str, Any]]  # metrics.jsonl


@dataclasses.dataclass(frozen=True)
class BeforeAfter:
    """q before training and at a checkpoint; None where it was not evaluated."""

    before: dict[str, Any] | None  # a line of metrics.jsonl
    after: dict[str, Any] | None


def read(folder: str | Path) -> SavedRun:
    """The run of a folder.

    Raises:
        UserError: if it holds none, or config.json cannot be read, or breaks a rule.
    """
    folder = files.given("--run", folder)
    if not (folder / run_folder.CONFIG).is_file():
        raise UserError(
            f"--run={str(folder)!r} holds no {run_folder.CONFIG}: it is not the folder"
            f" of a run.{_known(folder.parent)}"
        )
    try:
        record = run_folder.read_config(folder)
        config = _config(record["config"])
    except UNREADABLE as error:
        raise UserError(
            f"{folder / run_folder.CONFIG} cannot be read ({str(error)[:200]}); restore"
            " it from a copy."
        ) from error
    # Where the run's curves were shown may be out of reach here.
    found = config_rules.violations(config)
    wrong = [problem for problem in found if not problem.startswith("log.")]
    if wrong:
        raise UserError(
            f"{folder / run_folder.CONFIG} holds settings that no run can have had:"
            f" {' '.join(wrong)} Restore it from a copy."
        )
    return SavedRun(folder, config, record, run_log.read(folder))


def checkpoints(run: SavedRun) -> list[int]:
    """Numbers of the run's checkpoints: epochs done, in order."""
    names = (path.name for path in (run.folder / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def choose(run: SavedRun, wanted: int | None) -> int:
    """The checkpoint of that number, or the newest.

    Raises:
        UserError: if there is none; lists what there is.
    """
    found = checkpoints(run)
    if not found:
        raise UserError(
            f"{run.folder} holds no checkpoint yet: train for at least"
            f" checkpoint.every_epochs={run.config.checkpoint.every_epochs} epochs."
        )
    if wanted is not None and wanted not in found:
        raise UserError(
            f"--checkpoint={wanted}: {run.folder} holds the checkpoints"
            f" {', '.join(map(str, found))}, numbered by the epochs that were done."
        )
    return found[-1] if wanted is None else wanted


def trained_params(run: SavedRun, number: int, unet_template: Any) -> Any:
    """The trained parameters at a checkpoint: adapters, or all of the UNet.

    Args:
        run: of `read`.
        number: of the checkpoint, see `choose`.
        unet_template: shapes of the UNet's parameters.

    Raises:
        UserError: if the checkpoint is damaged.
    """
    template = parallel.replicated_shapes(
        assembly.state_shapes(run.config, unet_template)
    )
    return checkpoint.read_one(run.folder / "checkpoints", number, template).params


def unet_template(folder: Path) -> Any:
    """Shapes of the UNet's parameters of a model folder; reads no weights."""
    config = unet.Config.from_dict(weights.read_config(folder / "unet"))
    size = 2 ** len(config.block_out_channels)  # any that all levels divide
    return weights.init_template(
        unet.UNet(config),
        (1, size, size, config.in_channels),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        (1, 1, config.cross_attention_dim),
    )


def result(run: SavedRun, number: int) -> BeforeAfter:
    """What the evaluations say of a checkpoint: before training, and at its epoch.

    Where its epoch was not evaluated, the latest evaluation before it counts: its
    line's `epoch` says which.
    """
    evaluated = [line for line in run.lines if _evaluated(line)]
    before = next((line for line in evaluated if line["epoch"] == 0), None)
    after = [line for line in evaluated if 0 < line["epoch"] < number]
    return BeforeAfter(before, after[-1] if after else None)


def _evaluated(line: dict[str, Any]) -> bool:
    counts = ("eval_num_female", "eval_num_male", "eval_none")
    return all(isinstance(line.get(name), int | float) for name in (*NEEDED, *counts))


def _config(flat: dict[str, Any]) -> ConfigDict:
    """Settings from their full names; what an older version did not have is default."""
    if not isinstance(flat, dict):
        raise TypeError("its config is no JSON object")
    flat = configuration.renamed(flat)
    config = configuration.defaults()
    for name in configuration.flatten(config):
        if name not in flat:
            continue
        value = flat[name]
        *parents, leaf = name.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[leaf] = tuple(value) if isinstance(value, list) else value
    return config


def _known(folder: Path) -> str:
    found = sorted(str(path.parent) for path in folder.glob(f"*/{run_folder.CONFIG}"))
    return f" Runs beside it: {', '.join(found)}." if found else ""
