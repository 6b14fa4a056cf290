"""The epochs of a run, one after the other, each one's line written a step late.

While the devices sample epoch e + 1, the host writes epoch e's line, its grid and its
checkpoint. So neither waits for the other. Sampling starts only once the updates are
done, for on a CPU its dispatch takes as long as it does: their seconds would be mixed.
"""

import dataclasses
import time
from typing import Any

import jax

from ddpo_fair import parallel, rng
from ddpo_fair.learning import learner
from ddpo_fair.loggers import progress, run_log
from ddpo_fair.training import checkpoint, divergence, evaluation, restoring, stopping
from ddpo_fair.training import epoch as epochs
from ddpo_fair.training.assembly import Run


@dataclasses.dataclass(frozen=True)
class Unfinished:
    """An epoch that is updated, and whose evaluation may be on its way."""

    epoch: int
    line: dict[str, Any]  # of metrics.jsonl, as far as it is known
    measured: list[dict[str, jax.Array]]  # of each update; [] if `line` has them
    evaluation: evaluation.Pending | None


@dataclasses.dataclass
class Trainer:
    """A run under way: the state and what it remembers, and where it is written."""

    run: Run
    state: learner.TrainState
    checkpoints: checkpoint.Checkpoints
    journal: run_log.Journal | None  # None on all hosts but the main one
    progress: progress.Progress
    stop: stopping.Stop
    history: dict[str, list[float]] = dataclasses.field(default_factory=dict)
    target_classes: dict[str, int] = dataclasses.field(default_factory=dict)
    skipped: int = 0  # updates in a row, up to the last one
    roll_backs: int = 0  # so far
    before: dict[str, Any] = dataclasses.field(default_factory=dict)  # for epoch 0
    durations: list[float] = dataclasses.field(default_factory=list)  # of epochs, s
    clock: float = 0.0  # when the devices finished what was last waited for

    def train(self, first: int, interrupted_line: dict[str, Any] | None) -> None:
        """Runs the epochs from `first` to the last.

        Args:
            first: epochs done before.
            interrupted_line: of the epoch before, if only its evaluation is missing.

        Raises:
            Interrupted: when asked to stop; what is done is saved.
            UserError: when training fails, or the disk does.
        """
        self.clock = time.monotonic()
        pending = None
        if first == 0:
            self.before = self._before_training()
            restoring.prepare(self)
        if interrupted_line is not None:
            pending = Unfinished(
                first - 1, interrupted_line, [], self._evaluate(first - 1)
            )
        while True:
            try:
                return self._train(first, pending)
            except divergence.Collapsed as error:
                collapse = error.with_traceback(None)  # which holds trajectories
            first, pending = restoring.after(collapse, self), None
            self.progress.close()
            self.progress.start(units(self.run, first), 0)
            self._lap()

    def _train(self, first: int, pending: Unfinished | None) -> None:
        """The epochs from `first` to the last, after an unfinished one."""
        for epoch in range(first, self.run.config.epochs):
            finished = None if pending is None else self._finish(pending)
            samples = epochs.sample(
                self.run, self._unet_params(), rng.attempt(epoch, self.roll_backs)
            )
            if finished is not None:
                self._write(*finished)
            self.progress.wait(
                samples.probabilities, f"epoch {epoch}: sampling", self._stopped
            )
            self._leave_if_asked(epoch)
            line = {"epoch": epoch, **(self.before if epoch == 0 else {})}
            pending = self._update(epoch, samples, line)
            del samples  # frees the trajectories once the updates are done
        if pending is not None:
            self._write(*self._finish(pending))
        self.checkpoints.wait()

    def _before_training(self) -> dict[str, Any]:
        """The evaluation of the model as it came; its fields of the first line."""
        pending = evaluation.start(self.run, self._unet_params(), 0)
        self.progress.wait(pending.probabilities, "before training", self._stopped)
        self._leave_if_asked(0)
        result = evaluation.finish(self.run, pending)
        self.target_classes = evaluation.target_classes(self.run, result)
        self._write_grid(0, result)
        line = _with_result({}, result)
        if line:
            self.progress.say(f"before training: {run_log.evaluation_text(line)}")
        return line | {"eval_seconds": self._lap()}

    def _update(
        self, epoch: int, samples: epochs.Samples, line: dict[str, Any]
    ) -> Unfinished:
        """Scores the epoch's images and starts its updates and its evaluation."""
        config = self.run.config
        probabilities = epochs.gather(samples.probabilities)
        line["sample_seconds"] = self._lap()
        scores = epochs.score(
            config,
            probabilities,
            samples.names,
            samples.asked,
            self.target_classes,
            self.history,
        )
        self.history = scores.history
        measured = epochs.of_samples(self.run, samples, scores)
        prompts = _merge(line.pop("prompts", {}), measured.pop("prompts", {}))
        line |= measured | ({"prompts": prompts} if prompts else {})
        self.state, updates = epochs.update(
            self.run,
            self.state,
            samples,
            scores.advantages,
            rng.attempt(epoch, self.roll_backs),
        )
        losses = [one["loss"] for one in updates]
        self.progress.wait(losses, f"epoch {epoch}: updating")
        line["update_seconds"] = self._lap()
        return Unfinished(epoch, line, updates, self._evaluate(epoch))

    def _finish(
        self, pending: Unfinished
    ) -> tuple[int, dict[str, Any], evaluation.Result | None]:
        """Waits for what is on its way; the epoch, its line, and its evaluation."""
        config, epoch, line = self.run.config, pending.epoch, dict(pending.line)
        if pending.measured:
            line |= epochs.of_updates(pending.measured)
            self.skipped = divergence.check(
                line,
                [bool(one["skipped_updates"]) for one in pending.measured],
                self.skipped,
                config,
                self.checkpoints.newest(),
            )
        result = None
        if pending.evaluation is not None:
            self.progress.wait(
                pending.evaluation.probabilities,
                f"epoch {epoch}: evaluating",
                self._stopped,
            )
            self._leave_if_asked(epoch + 1, line)
            result = evaluation.finish(self.run, pending.evaluation)
            line = _with_result(line, result) | {"eval_seconds": self._lap()}
        return epoch, line, result

    def _write(
        self, epoch: int, line: dict[str, Any], result: evaluation.Result | None
    ) -> None:
        """Writes an epoch's grid and line; saves a checkpoint if it is due."""
        config = self.run.config
        if result is not None:
            self._write_grid(epoch, result)
        seconds = line["sample_seconds"] + line["update_seconds"]
        line["images"] = self.run.num_images
        line["images_per_second"] = self.run.num_images / seconds
        line["epoch_seconds"] = seconds + line.get("eval_seconds", 0.0)
        line["device_memory_gb"] = parallel.memory_gb()
        line["roll_backs"] = self.roll_backs
        if self.journal is not None:
            self.journal.write(line)
        left = self._seconds_left(line)
        self.progress.say(run_log.line_text(line, config.epochs, left))
        self.checkpoints.check()
        done = epoch + 1
        due = done % config.checkpoint.every_epochs == 0 or done == config.epochs
        if due and self.checkpoints.newest() != done:
            self.save(done, None)

    def _evaluate(self, epoch: int) -> evaluation.Pending | None:
        """Starts the evaluation after an epoch, if one is due."""
        if not evaluates(self.run, epoch):
            return None
        return evaluation.start(self.run, self._unet_params(), epoch)

    def _write_grid(self, epoch: int, result: evaluation.Result) -> None:
        if self.journal is not None:
            text = run_log.caption(epoch, self.run.config.prompts, result.line)
            self.journal.grid(epoch, result.grid, text)

    def _stopped(self) -> bool:
        return self.stop.requested

    def _leave_if_asked(self, epochs_done: int, line: dict | None = None) -> None:
        """Saves what is done and raises Interrupted if any host was asked to stop.

        Args:
            epochs_done: that the state has seen.
            line: of the last of them, if its evaluation is not finished.
        """
        if not parallel.any_host(self.stop.requested):
            return
        if epochs_done and (self.checkpoints.newest() != epochs_done):
            self.save(epochs_done, line)
        self.checkpoints.wait()
        raise stopping.Interrupted(epochs_done)

    def save(self, epochs_done: int, line: dict[str, Any] | None) -> None:
        """Starts a checkpoint; `line` is of an epoch whose evaluation is missing."""
        rest = {
            "history": self.history,
            "target_classes": self.target_classes,
            "skipped": self.skipped,
            "roll_backs": self.roll_backs,
            "line": line,
        }
        self.checkpoints.save(epochs_done, self.state, rest)

    def remember(self, rest: dict[str, Any]) -> None:
        """Takes what a checkpoint holds beside the state; empty at the beginning."""
        self.history = rest.get("history", {})
        self.target_classes = rest.get("target_classes", {})
        self.skipped = rest.get("skipped", 0)
        self.roll_backs = rest.get("roll_backs", 0)

    def _unet_params(self) -> Any:
        return self.run.unet_params(self.state.params)

    def _seconds_left(self, line: dict[str, Any]) -> float | None:
        """What the rest may take; None after the first epoch, which compiles.

        An average, for epochs that evaluate take longer.
        """
        self.durations.append(line["epoch_seconds"])
        known = self.durations[1:]
        rest = self.run.config.epochs - line["epoch"] - 1
        return rest * sum(known) / len(known) if known else None

    def _lap(self) -> float:
        """Seconds since the last lap."""
        before, self.clock = self.clock, time.monotonic()
        return self.clock - before


def evaluates(run: Run, epoch: int) -> bool:
    """Whether an evaluation follows this epoch; the first epoch's comes before it."""
    config = run.config
    last = epoch == config.epochs - 1
    return epoch > 0 and (last or epoch % config.eval.every_epochs == 0)


def units(run: Run, first: int) -> int:
    """Batches and updates from epoch `first` to the end, which the bar counts."""
    train = run.config.train
    per_epoch = run.config.sample.batches + train.inner_epochs * train.updates_per_epoch
    rest = range(first, run.config.epochs)
    evaluations = sum(evaluates(run, epoch) for epoch in rest) + (first == 0)
    return len(rest) * per_epoch + evaluations * evaluation.num_batches(run)


def _with_result(line: dict[str, Any], result: evaluation.Result) -> dict[str, Any]:
    """The line with an evaluation's fields."""
    line = line | result.line
    if result.by_prompt:
        line["prompts"] = _merge(line.get("prompts", {}), result.by_prompt)
    return line


def _merge(first: dict[str, dict], second: dict[str, dict]) -> dict[str, dict]:
    return {
        name: first.get(name, {}) | second.get(name, {}) for name in {**first, **second}
    }
