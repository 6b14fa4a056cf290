"""One sitting of an evaluation: batch after batch, each one's figures kept on disk."""

from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from ddpo_fair import parallel, prompts
from ddpo_fair.classifiers import audit_classifier, classes
from ddpo_fair.errors import UserError
from ddpo_fair.evaluation import (
    evaluation_grids,
    evaluation_models,
    evaluation_plan,
    evaluation_summary,
)
from ddpo_fair.evaluation.evaluation_plan import AFTER, Job, Plan
from ddpo_fair.loggers import progress
from ddpo_fair.report import figures, plots
from ddpo_fair.statistics import accuracy, appearance
from ddpo_fair.statistics.prompt_metrics import Judging

NUM_TESTS, NUM_BALANCED = 240, 128  # renders
CHAIN_KL = "parts/chain_kl.npz"
EMBEDDED = "embedded"


class Session:
    """Draws what a plan wants and a folder lacks, then sums up."""

    def __init__(
        self,
        config: ConfigDict,
        plan: Plan,
        folder: Path,
        studio: evaluation_models.Studio,
        audit: str,
    ) -> None:
        self.config, self.plan, self.folder = config, plan, folder
        self.studio, self.audit = studio, audit
        self.progress = progress.Progress()

    def draw(self) -> None:
        """Draws all batches that are not there yet.

        While the host looks at one batch the devices draw the next.

        Raises:
            UserError: if nothing can be written.
        """
        every = list(evaluation_plan.jobs(self.plan))
        missing = [
            job for job in every if evaluation_plan.load_part(self.folder, job) is None
        ]
        self.progress.say(self._opening(len(every), len(missing)))
        self.progress.start(len(every), len(every) - len(missing))
        pending = None
        try:
            for job, drawn in self._start(missing):
                if pending is not None:
                    self._finish(*pending)
                pending = job, drawn
            if pending is not None:
                self._finish(*pending)
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error}); free"
                " some space, then the same command continues."
            ) from error
        finally:
            self.progress.close()

    def summary(self, notes: list[str]) -> dict[str, Any]:
        """The content of evaluation.json; writes grids and the confusion matrix."""
        arrays = evaluation_summary.gather(self.folder, self.plan)
        evaluation_grids.write(self.folder, self.plan)
        renders, confusion, audit_confusion = self._renders(notes)
        if self.audit == "none":
            notes.append(
                "No independent judge looked: --audit=dlib asks one (extra audit), the"
                " name of a second classifier another."
            )
        judging = Judging(self.config.reward.target[0], confusion, audit_confusion)
        chain_kl = evaluation_plan.load(self.folder / CHAIN_KL)
        content = evaluation_summary.summarise(
            arrays,
            self.plan,
            judging,
            self.config.confidence_threshold,
            renders,
            chain_kl,
            notes,
        )
        if renders is not None:
            matrix = figures.confusion(renders["truth"], renders["labels"])
            content["classifier_test"] = accuracy.accuracies(matrix)
        return evaluation_summary.plain(content)

    def _opening(self, total: int, missing: int) -> str:
        prompts, samplers = len(self.plan.prompts), len(self.plan.samplers)
        left = "" if missing == total else f" {total - missing} batches are there."
        return (
            f"Evaluation: {self.folder}; {evaluation_plan.num_images(self.plan):,}"
            f" images in {total} batches: {self.plan.images} of each of {prompts}"
            f" prompts before and after, the trained ones with {samplers} samplers, on"
            f" {', '.join(parallel.describe())}; independent judge: {self.audit}.{left}"
        )

    def _start(self, missing: list[Job]):
        """Each job with its batch under way."""
        sample, how = None, None
        for job in missing:
            if job.sampler != how:
                how = job.sampler
                sample = evaluation_models.make_sampler(self.studio, how)
            yield job, evaluation_models.draw(self.studio, sample, job)

    def _finish(self, job: Job, drawn: evaluation_models.Drawn) -> None:
        """Waits for a batch, shows it to the audit, and writes it down."""
        self.progress.wait([drawn.seen[-1][0]], f"{job.sampler.name}, {job.model}")
        rows = slice(job.count)
        pixels = np.nan_to_num(parallel.gather(drawn.images)[rows])
        pixels = np.uint8(np.round(pixels * 255))
        seen = [tuple(parallel.gather(x)[rows] for x in one) for one in drawn.seen]
        arrays = {
            "prompts": job.prompts[rows],
            "images": job.images[rows],
            "probabilities": seen[0][0],
            "features": seen[0][1],
            **self._audited(pixels, seen),
        }
        for row, picture in enumerate(pixels):
            path = evaluation_plan.image_path(self.folder, job, self.plan, row)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        self._chain_kl(job, drawn)
        evaluation_plan.save_part(self.folder, job, arrays)

    def _audited(self, pixels: np.ndarray, seen: list) -> dict[str, np.ndarray]:
        if self.audit == audit_classifier.DLIB:
            faces = audit_classifier.find_faces(pixels)
        else:
            unknown = np.full(len(pixels), np.nan)
            boxes = appearance.central_boxes(len(pixels))
            faces = audit_classifier.Faces(unknown, unknown, boxes)
        return {
            "audit": seen[1][0] if len(seen) > 1 else faces.p_female,
            "ages": faces.ages,
            "angles": appearance.typology_angles(pixels, faces.boxes),
        }

    def _chain_kl(self, job: Job, drawn: evaluation_models.Drawn) -> None:
        """Measures the KL to the base model along the first batch's chain."""
        first = self.plan.prompts[job.prompts[0]]
        wanted = (self.plan.samplers[0], AFTER, 0)
        if (job.sampler, job.model, job.number) != wanted:
            return
        if first.set != prompts.TRAINED or not job.sampler.eta:
            return
        compare = evaluation_models.make_chain_kl(self.studio, job.sampler)
        steps = parallel.gather(compare(drawn))
        trained = [
            row
            for row, prompt in enumerate(job.prompts[: job.count])
            if self.plan.prompts[prompt].set == prompts.TRAINED
        ]
        found = {"nats": steps[trained], "prompts": job.prompts[trained]}
        evaluation_plan.save(self.folder / CHAIN_KL, found)

    def _renders(self, notes: list[str]):
        """What known faces say of the judges, where the model draws such faces."""
        if self.config.model != EMBEDDED:
            return None, None, None
        path = self.folder / "parts" / "renders.npz"
        found = evaluation_plan.load(path)
        if found is None:
            try:
                from ddpo_fair.embedded import renders
            except UserError as error:
                notes.append(f"Not compared with renders: {error}")
                return None, None, None
            self.progress.say("Drawing faces whose truth is known ...")
            known = renders.held_out(NUM_TESTS)
            balanced = renders.balanced(self.config.prompts, NUM_BALANCED)
            seen = evaluation_models.look_at(self.studio, known.images)
            features = evaluation_models.look_at(self.studio, balanced.images)[0][1]
            labels = classes.labels(seen[0][0], self.config.confidence_threshold)
            found = {"features": features, "truth": known.truth, "labels": labels}
            evaluation_plan.save(path, found)
        matrix = figures.confusion(found["truth"], found["labels"])
        self._draw_matrix(matrix)
        audited = None
        if self.audit == audit_classifier.DLIB:
            audited = audit_classifier.confusion_on_renders()
        return found, matrix[:2, :2], audited

    def _draw_matrix(self, matrix: np.ndarray) -> None:
        chart = figures.confusion_matrix(matrix)
        with plots.style():
            sheet = chart.draw(plots.NARROW)
            document, picture = plots.svg(sheet, chart.name), plots.png(sheet)
        evaluation_plan.replace(self.folder / f"{chart.name}.svg", document.encode())
        evaluation_plan.replace(self.folder / f"{chart.name}.png", picture)
