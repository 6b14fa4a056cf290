"""The epochs of a run, one after the other, each one's line written a step late.

While the devices sample epoch e + 1, the host writes epoch e's line, grid and
checkpoint: neither waits for the other. Sampling starts only after the updates, for on
a CPU its dispatch takes as long as it does, and their seconds would be mixed.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax

from ddpo_fair import parallel, rng
from ddpo_fair.learning import learner, scoring
from ddpo_fair.loggers import progress, run_log
from ddpo_fair.training import checkpoint, divergence, evaluation, metrics, stopping
from ddpo_fair.training import epoch as epochs
from ddpo_fair.training.assembly import Run
from ddpo_fair.training.run_folder import RUN

# An epoch's line of metrics.jsonl, and its evaluation; they are still to be written.
Finished = tuple[dict[str, Any], evaluation.Result | None]


@dataclasses.dataclass
class Trainer:
    """A run under way: the state and what it remembers, and where it is written."""

    run: Run
    description: dict[str, Any]  # of `description.of`, for the checkpoints
    state: learner.TrainState
    checkpoints: checkpoint.Checkpoints
    progress: progress.Progress
    stop: stopping.Stop
    log: run_log.RunLog | None = None  # of the main process only
    epochs_done: int = 0
    # What a checkpoint holds beside the state.
    history: scoring.History = dataclasses.field(default_factory=dict)
    target_classes: evaluation.TargetClasses = dataclasses.field(default_factory=dict)
    skipped: int = 0  # updates in a row, up to the last one
    restores: int = 0  # so far
    clock: progress.Clock = dataclasses.field(default_factory=progress.Clock)

    def restore(self) -> dict[str, Any] | None:
        """Takes the newest checkpoint; a line that only lacks its evaluation."""
        restored = self.checkpoints.restore(self.state)
        return None if restored is None else self._take(restored)

    def train(self, line: dict[str, Any] | None) -> None:
        """Runs the epochs that are left; `line`: of one that lacks its evaluation."""
        self._start_clock()
        first_line, finished = {}, None
        if self.epochs_done == 0:
            first_line = self._evaluate_before_training()
            if self.run.config.train.on_divergence == divergence.RESTORE:
                self._save_once(0)
        elif line is not None:
            finished = self._finish(line)
        while True:
            try:
                return self._run_epochs(first_line, finished)
            except divergence.Diverged as error:
                diverged = error.with_traceback(None)  # which holds trajectories
            self._go_back(diverged)
            self._start_clock()
            finished = None

    def _run_epochs(self, first_line: dict, finished: Finished | None) -> None:
        """The epochs that are left, after one that is to be written."""
        for epoch in range(self.epochs_done, self.run.config.epochs):
            # On the devices: sample, decode, classify. Meanwhile: the epoch before.
            number = rng.attempt(epoch, self.restores)
            samples = epochs.sample(
                self.run, self._unet_params(), number, lambda: self.stop.requested
            )
            if finished is not None:
                self._write(*finished)
            self._wait_or_leave(samples.probabilities, f"epoch {epoch}: sampling")

            # On the host: labels, rewards, advantages of all images together.
            line = {"epoch": epoch, **(first_line if epoch == 0 else {})}
            line["sample_seconds"] = self.clock.lap()
            scores = scoring.score(
                self.run.config,
                self.run.goals,
                epochs.gather(self.run, samples.probabilities),
                samples.names,
                samples.asked,
                self.target_classes,
                self.history,
            )
            self.history = scores.history
            line = metrics.join(line, epochs.line_of(self.run, samples, scores))

            # On the devices: the updates, then an evaluation if one is due.
            self.stop.idle = False
            self.state, updates = epochs.update(
                self.run, self.state, samples, scores.advantages, number
            )
            del samples  # frees the trajectories once the updates are done
            self.epochs_done = epoch + 1
            self.progress.wait([x["loss"] for x in updates], f"epoch {epoch}: updating")
            line["update_seconds"] = self.clock.lap()
            finished = self._finish(line, updates)
        if finished is not None:
            self._write(*finished)
        self.checkpoints.wait()

    def _evaluate_before_training(self) -> dict[str, Any]:
        """Evaluates the model as it came; returns its fields of the first line."""
        result = self._evaluate(0, "before training")
        self.target_classes = evaluation.target_classes(self.run, result)
        self._write_grid(0, result)
        if text := progress.evaluation_text(result.line):
            self.progress.say(f"before training: {text}")
        return result.line | {"eval_seconds": self.clock.lap()}

    def _finish(self, line: dict[str, Any], updates: Sequence[dict] = ()) -> Finished:
        """An epoch's line with what its updates measured, and its evaluation if due."""
        epoch = line["epoch"]
        if updates:
            line |= metrics.of_updates(updates)
            skipped = [bool(one["skipped_updates"]) for one in updates]
            own = self.skipped, self.run.config, self.checkpoints.newest()
            self.skipped = divergence.check(line, skipped, *own)
        if not evaluation.due(self.run.config, epoch):
            return line, None
        result = self._evaluate(epoch, f"epoch {epoch}: evaluating", line)
        seconds = {"eval_seconds": self.clock.lap()}
        return metrics.join(line, result.line) | seconds, result

    def _evaluate(
        self, epoch: int, doing: str, line: dict[str, Any] | None = None
    ) -> evaluation.Result:
        wait = functools.partial(self._wait_or_leave, doing=doing, line=line)
        return evaluation.evaluate(self.run, self._unet_params(), epoch, wait)

    def _write(self, line: dict[str, Any], result: evaluation.Result | None) -> None:
        """Writes an epoch's grid and line; saves a checkpoint if it is due."""
        epoch = line["epoch"]
        if result is not None:
            self._write_grid(epoch, result)
        seconds = line["sample_seconds"] + line["update_seconds"]
        line["images"] = self.run.num_images
        line["images_per_second"] = self.run.num_images / seconds
        line["epoch_seconds"] = seconds + line.get("eval_seconds", 0.0)
        line["device_memory_gb"] = parallel.memory_gb()
        line["roll_backs"] = self.restores
        if self.log is not None:
            self.log.write(line)
        total, done = self.run.config.epochs, epoch + 1
        left = self.clock.seconds_left(line["epoch_seconds"], total - done)
        self.progress.say(progress.line_text(line, total, left))
        self.checkpoints.check()
        if done % self.run.config.checkpoint.every_epochs == 0 or done == total:
            self._save_once(done)

    def _write_grid(self, epoch: int, result: evaluation.Result) -> None:
        if self.log is not None:
            text = progress.caption(epoch, self.run.config.prompts, result.line)
            self.log.grid(epoch, result.grid, text)

    def _wait_or_leave(
        self, arrays: list[jax.Array], doing: str, line: dict[str, Any] | None = None
    ) -> None:
        """Waits; saves what is done and raises Interrupted if any host shall stop."""
        self.progress.wait(arrays, doing, lambda: self.stop.requested)
        if not parallel.any_host(self.stop.requested):
            return
        if self.epochs_done:
            self._save_once(self.epochs_done, line)
        self.checkpoints.wait()
        raise stopping.Interrupted(self.epochs_done)

    def _save_once(self, done: int, line: dict[str, Any] | None = None) -> None:
        """Starts a checkpoint, unless there is one after so many epochs."""
        if self.checkpoints.newest() != done:
            metadata = {
                RUN: self.description,
                "history": self.history,
                "target_classes": self.target_classes,
                "skipped": self.skipped,
                "roll_backs": self.restores,
                "line": line,
            }
            self.checkpoints.save(done, self.state, metadata)

    def _take(self, restored: checkpoint.Restored) -> dict[str, Any] | None:
        """Goes on from a checkpoint; a line in it that only lacks its evaluation."""
        for complaint in restored.complaints:
            self.progress.say(complaint)
        self.epochs_done, self.state = restored.epochs_done, restored.state
        self.history = restored.metadata.get("history", {})
        self.target_classes = restored.metadata.get("target_classes", {})
        self.skipped = restored.metadata.get("skipped", 0)
        self.restores = restored.metadata.get("roll_backs", 0)
        return restored.metadata.get("line")

    def _go_back(self, diverged: divergence.Diverged) -> None:
        """Goes back to the newest checkpoint, and on with other random numbers.

        A run that is killed afterwards continues from the same checkpoint, diverges
        again and comes back here: it ends with the same numbers. Or a UserError.
        """
        config, count = self.run.config, self.restores + 1
        divergence.allow_restore(diverged, config, self.restores)
        shapes, self.state = checkpoint.shapes(self.state), None  # makes room
        every_epochs = config.checkpoint.every_epochs
        self._take(self.checkpoints.go_back(shapes, every_epochs))
        self.restores = count  # the checkpoint knows of earlier ones only
        if self.log is not None:
            self.log.forget(self.epochs_done)
        self.progress.say(
            f"{diverged} Restore {count} of at most {config.train.max_restores}: goes"
            f" on from checkpoint {self.epochs_done} with other random numbers."
        )

    def _unet_params(self) -> Any:
        return learner.unet_params(self.run.learner, self.run.base, self.state.params)

    def _start_clock(self) -> None:
        """Shows the bar, of all batches and updates to the end, and begins a lap."""
        config = self.run.config
        per_epoch = config.sample.batches
        per_epoch += config.train.inner_epochs * config.train.updates_per_epoch
        left = range(self.epochs_done, config.epochs)
        evaluations = sum(e == 0 or evaluation.due(config, e) for e in left)
        batches = evaluations * evaluation.num_batches(self.run)
        self.progress.start(len(left) * per_epoch + batches)
        self.clock.lap()
