"""After a collapse: back to the newest checkpoint, and on with other random numbers."""

from typing import TYPE_CHECKING

from ddpo_fair.errors import UserError
from ddpo_fair.training import checkpoint, divergence

if TYPE_CHECKING:
    from ddpo_fair.training import loop

STOP, RESTORE = "stop", "restore"  # values of train.on_divergence


def prepare(trainer: "loop.Trainer") -> None:
    """Saves the state before training, where a run may have to go back to it."""
    wanted = trainer.run.config.train.on_divergence == RESTORE
    if wanted and trainer.checkpoints.newest() is None:
        trainer.save(0, None)


def after(collapse: divergence.Collapsed, trainer: "loop.Trainer") -> int:
    """The epoch to go on with, once the trainer has what its checkpoint remembers.

    A run that is killed afterwards continues from the same checkpoint, collapses again
    and comes back here: it ends with the same numbers.

    Raises:
        UserError: if the config says to stop, or the run went back often enough.
    """
    train = trainer.run.config.train
    if train.on_divergence == STOP:
        raise UserError(
            f"{collapse} Lower train.learning_rate or train.updates_per_epoch under"
            " another --config.run.name, or continue with"
            " --config.train.on_divergence=restore, which goes on from the checkpoint"
            " with other random numbers, or with --config.train.max_kl=0."
        )
    if trainer.roll_backs >= train.max_restores:
        raise UserError(
            f"{collapse} So it has after {trainer.roll_backs} roll-backs"
            f" (train.max_restores={train.max_restores}). Lower"
            " train.learning_rate or train.updates_per_epoch under another"
            " --config.run.name."
        )
    shapes, trainer.state = checkpoint.shapes(trainer.state), None  # makes room
    found = trainer.checkpoints.go_back(
        shapes, trainer.run.config.checkpoint.every_epochs
    )
    for complaint in found.complaints:
        trainer.progress.say(complaint)
    count = trainer.roll_backs + 1  # the checkpoint knows of earlier ones only
    trainer.state = found.state
    trainer.remember(found.rest | {"roll_backs": count})
    if trainer.journal is not None:
        trainer.journal.forget(found.epochs_done)
    trainer.progress.say(
        f"{collapse} Roll-back {count} of at most {train.max_restores}:"
        f" goes on from checkpoint {found.epochs_done} with other random numbers."
    )
    return found.epochs_done
