"""Whether an epoch's updates can be trusted, or the policy has diverged."""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair.errors import UserError, shown

STOP, RESTORE = "stop", "restore"  # values of train.on_divergence
NUM_NAMED = 3  # prompts that a message names


class Diverged(UserError):
    """An epoch moved the policy too far. An earlier one may be gone back to."""


def check(
    line: dict[str, Any],
    skipped: Sequence[bool],
    before: int,
    config: ConfigDict,
    newest: int | None,
) -> int:
    """How many updates in a row were skipped, up to the epoch's last.

    Args:
        line: of metrics.jsonl.
        skipped: whether each of the epoch's updates was.
        before: in a row, up to the epoch before.
        config: all settings.
        newest: number of the newest checkpoint.

    Raises:
        Diverged: where the policy moved too far.
        UserError: where training should not go on; names the checkpoint.
    """
    saved = "none was saved" if newest is None else f"checkpoint {newest} is intact"
    for one in skipped:
        before = before + 1 if one else 0
        if before > config.train.max_skipped_updates:
            raise UserError(_not_finite(line, before, config, saved))
    if 0 < config.train.max_kl < line["kl_last"]:
        raise Diverged(
            f"Epoch {line['epoch']} moved the policy by {line['kl_last']:.3g} nats per"
            f" step, above train.max_kl={config.train.max_kl:g}: it has diverged;"
            f" {saved}."
        )
    tolerance = config.train.ratio_tolerance
    if line["ratio_deviation"] > tolerance:
        raise UserError(
            f"Before the first update of epoch {line['epoch']}, sampler and learner"
            " should give every step the same probability, but |ratio - 1| is"
            f" {line['ratio_deviation']:.3g}, above train.ratio_tolerance="
            f"{tolerance:g}; {saved}. PPO would clip rounding errors. Use"
            " train.recompute_log_probs or dtype=float32, skip the last steps"
            " (train.skip_last_steps=2), train with guidance if you sample with it, or"
            " raise the tolerance."
        )
    return before


def _not_finite(line: dict, in_a_row: int, config: ConfigDict, saved: str) -> str:
    count = in_a_row - 1
    earlier = f", after {count} others in a row" if count else ""
    return (
        f"Epoch {line['epoch']} skipped an update, for loss, gradient or weights were"
        f" not finite{earlier} (train.max_skipped_updates="
        f"{config.train.max_skipped_updates}); {line['num_not_finite']} of its images"
        f" are broken. Its prompts: {_prompts(line, config)}; {saved}. Lower"
        " train.learning_rate or use dtype=float32, under another --config.run.name."
    )


def _prompts(line: dict[str, Any], config: ConfigDict) -> str:
    """The epoch's prompts; only those with broken images, if there are any."""
    parts = line.get("prompts", {})
    broken = [text for text, part in parts.items() if part.get("num_not_finite")]
    found = broken or list(config.prompts)
    more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
    return ", ".join(shown(text) for text in found[:NUM_NAMED]) + more


def allow_restore(diverged: Diverged, config: ConfigDict, restores: int) -> None:
    """Returns if the run may go back to a checkpoint.

    Args:
        diverged: what happened.
        config: all settings.
        restores: of the run so far.

    Raises:
        UserError: if the config says to stop, or the run went back often enough.
    """
    train = config.train
    if train.on_divergence == STOP:
        raise UserError(
            f"{diverged} Lower train.learning_rate or train.updates_per_epoch under"
            " another --config.run.name, or continue with"
            " --config.train.on_divergence=restore, which goes on from the checkpoint"
            " with other random numbers, or with --config.train.max_kl=0."
        )
    if restores >= train.max_restores:
        raise UserError(
            f"{diverged} So it has after {restores} restores (train.max_restores="
            f"{train.max_restores}). Lower train.learning_rate or"
            " train.updates_per_epoch under another --config.run.name."
        )
