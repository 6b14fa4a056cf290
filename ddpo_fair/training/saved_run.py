"""A run read back from its folder: its settings and its trained weights."""

import dataclasses
import logging
import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, files
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.errors import UserError, differences
from ddpo_fair.learning import goals
from ddpo_fair.training import assembly, checkpoint, description, run_folder


@dataclasses.dataclass(frozen=True)
class SavedRun:
    """What a run's folder says, without its weights."""

    folder: Path
    config: ConfigDict
    record: dict[str, Any]  # config.json: version, commit, devices, ...

    @property
    def targets(self) -> goals.Targets:
        """Those that differ from their attribute's, whatever became of their file."""
        return self.record.get("targets", {})


def read(folder: str | Path) -> SavedRun:
    """The run of a folder; a UserError if it holds none that keeps the rules."""
    folder = files.given("--run", folder)
    if not (folder / run_folder.CONFIG).is_file():
        raise UserError(
            f"--run={str(folder)!r} holds no {run_folder.CONFIG}: it is not the folder"
            f" of a run.{_known(folder)}"
        )
    try:
        record = run_folder.read_config(folder)
        config = configuration.of_settings(record["config"])
        found = config_rules.violations(config)
    except description.UNREADABLE as error:
        raise UserError(
            f"{folder / run_folder.CONFIG} cannot be read ({str(error)[:200]}); restore"
            " it from a copy."
        ) from error
    # Where the run's curves were shown may be out of reach here, and so may the file
    # of its targets, which the record has itself.
    if wrong := [x for x in found if not x.startswith(("log.", "targets"))]:
        raise UserError(
            f"{folder / run_folder.CONFIG} holds settings that no run can have had:"
            f" {' '.join(wrong)} Restore it from a copy."
        )
    return SavedRun(folder, config, record)


def with_weights(run: SavedRun, *fields: str) -> SavedRun:
    """The run with the place of its weights; a UserError if they are not what was."""
    config = run.config.copy_and_resolve_references()
    described = run_folder.described(run.folder / run_folder.CHECKPOINTS)
    records = [run.record, described or run.record]  # either may have been edited
    both = {field: [description.known(x, field) for x in records] for field in fields}
    known = {field: one or other for field, (one, other) in both.items()}
    if None in known.values():
        logging.getLogger(__name__).warning(description.UNKNOWN)
    for field in fields:
        reference = configuration.flatten(config)[field]
        if revision := (known[field] or {}).get("revision"):
            reference = f"{reference.partition('@')[0]}@{revision}"
            config.update_from_flattened_dict({field: reference})
        try:
            now = description.identity(config, field)
        except UserError as error:
            if not os.path.isabs(reference) or os.path.exists(reference):
                raise
            raise UserError(
                f"{error} If it was moved, give the training command"
                f" --config.{field}=PLACE once, which brings {run_folder.CONFIG} up to"
                " date."
            ) from error
        for record in records:
            description.check(record, field, reference, now)
    return dataclasses.replace(run, config=config)


def choose(run: SavedRun, wanted: int | None) -> int:
    """The checkpoint of that number, or the newest; a UserError if that cannot be."""
    place = run.folder / run_folder.CHECKPOINTS
    found = run_folder.numbers(place)
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
    number = found[-1] if wanted is None else wanted
    described = run_folder.described(place, number)
    if not described:
        return number
    was, now = (  # the targets themselves count, wherever they are kept
        configuration.renamed(record["config"])
        | {"targets": record.get("targets") or {}}
        for record in (described, run.record)
    )
    of_files = [x for x in description.fields(now) if was.get(x)]
    if changes := differences(was, now, {*description.FREE, "epochs", *of_files}):
        raise UserError(
            f"{run.folder / run_folder.CONFIG} is not that of checkpoint {number}:"
            f" {'; '.join(changes)}. Delete it, and train with the old settings: the"
            " same command writes it again."
        )
    return number


def trained_params(run: SavedRun, number: int, unet: Any) -> Any:
    """The trained parameters at a checkpoint: adapters, or all of a UNet like this."""
    template = assembly.initial_state(run.config, checkpoint.shapes(unet))
    place = run.folder / run_folder.CHECKPOINTS
    return checkpoint.read_one(place, number, template).params


def unet_template(folder: Path) -> Any:
    """Shapes of the UNet's parameters of a model folder; reads no weights."""
    configs = stable_diffusion.read_configs(folder)
    model = stable_diffusion.of_configs(folder, configs, jnp.float32)
    return model.params[model.part]


def _known(folder: Path) -> str:
    if run_folder.described(folder / run_folder.CHECKPOINTS):
        return " The command that trained it writes it again, from a checkpoint's copy."
    near = (*folder.glob("*/checkpoints"), *folder.parent.glob("*/checkpoints"))
    found = {str(x.parent) for x in near if (x.parent / run_folder.CONFIG).is_file()}
    return f" Runs near it: {', '.join(sorted(found))}." if found else ""
