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
    """How many updates in a row were skipped, up to the epoch's last; `before` it.

    Raises Diverged where the policy moved too far, and a UserError where training
    should not go on for another reason: both name the `newest` checkpoint.
    """
    train, epoch = config.train, line["epoch"]
    saved = "none was saved" if newest is None else f"checkpoint {newest} is intact"
    for one in skipped:
        before = before + 1 if one else 0
        if before > train.max_skipped_updates:
            earlier = f", after {before - 1} others in a row" if before > 1 else ""
            raise UserError(
                f"Epoch {epoch} skipped an update, for loss, gradient or weights were"
                f" not finite{earlier} (train.max_skipped_updates="
                f"{train.max_skipped_updates}). Lower train.learning_rate or use"
                " dtype=float32, under another --config.run.name."
                f" {line['num_not_finite']} of the images are broken; the prompts are"
                f" {_prompts(line, config)}; {saved}."
            )
    if 0 < train.max_kl < line["kl_last"]:
        raise Diverged(
            f"Epoch {epoch} moved the policy by {line['kl_last']:.3g} nats per step,"
            f" above train.max_kl={train.max_kl:g}: it has diverged; {saved}."
        )
    if line["ratio_deviation"] > train.ratio_tolerance:
        raise UserError(
            f"Before the first update of epoch {epoch}, sampler and learner should give"
            " every step the same probability, but |ratio - 1| is"
            f" {line['ratio_deviation']:.3g}, above train.ratio_tolerance="
            f"{train.ratio_tolerance:g}: PPO would clip rounding errors; {saved}. Use"
            " train.recompute_log_probs or dtype=float32, skip the last steps"
            " (train.skip_last_steps=2), train with guidance if you sample with it, or"
            " raise the tolerance."
        )
    return before


def _prompts(line: dict[str, Any], config: ConfigDict) -> str:
    """The epoch's prompts; only those with broken images, if there are any."""
    parts = line.get("prompts", {})
    broken = [text for text, part in parts.items() if part.get("num_not_finite")]
    found = broken or list(config.prompts)
    more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
    return ", ".join(shown(text) for text in found[:NUM_NAMED]) + more


def allow_restore(diverged: Diverged, config: ConfigDict, restores: int) -> None:
    """Raises a UserError if a run that went back so often may not do so again."""
    train = config.train
    lower = (
        "Lower train.learning_rate or train.updates_per_epoch under another"
        " --config.run.name"
    )
    if train.on_divergence == STOP:
        raise UserError(
            f"{diverged} {lower}, or continue with"
            " --config.train.on_divergence=restore, which goes on from the checkpoint"
            " with other random numbers, or with --config.train.max_kl=0."
        )
    if restores >= train.max_restores:
        raise UserError(
            f"{diverged} So it has after {restores} restores"
            f" (train.max_restores={train.max_restores}). {lower}."
        )
