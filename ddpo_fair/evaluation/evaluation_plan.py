"""Which images an evaluation draws, in which batches, and where their figures lie."""

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpo_fair import config as configuration
from ddpo_fair import parallel, prompts
from ddpo_fair.classifiers import audit_classifier
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import sources
from ddpo_fair.prompts import TRAINED, Prompt
from ddpo_fair.training import run_folder, saved_run

PLAN = "plan.json"
BEFORE, AFTER = "before", "after"
MOST_SWEPT = 4  # trained prompts that all samplers draw; one is enough to compare


class Sampler(NamedTuple):
    """How images are drawn: DDIM's noise share, guidance, denoising steps."""

    eta: float
    guidance_scale: float
    num_steps: int

    @property
    def name(self) -> str:
        """E.g. "eta1_guidance3_steps20"."""
        return f"eta{self.eta:g}_guidance{self.guidance_scale:g}_steps{self.num_steps}"


class Plan(NamedTuple):
    """All that decides which images an evaluation draws."""

    source: dict[str, Any]  # the run, its checkpoint, model and classifier; the audit
    samplers: tuple[Sampler, ...]  # the first is training's and draws all prompts
    prompts: tuple[Prompt, ...]  # of all sets
    images: int  # of each prompt
    seed: int  # image i of a prompt is the same noise before and after, in all samplers
    batch: int  # most images drawn together
    num_devices: int  # a batch is divided among them


class Job(NamedTuple):
    """One batch: `prompts[i]` and `images[i]` say what row i is; int [B] each.

    The last batch is filled up with repeats, from row `count` on.
    """

    sampler: Sampler
    model: str
    number: int
    prompts: np.ndarray
    images: np.ndarray
    count: int

    @property
    def name(self) -> str:
        """Of the job's file."""
        return f"{self.sampler.name}_{self.model}_{self.number:04d}"


def make(
    saved: saved_run.SavedRun,
    checkpoint: int,
    audit: str,
    *,
    sets: Sequence[str],
    further: Sequence[str],
    samplers: str,
    images: int,
    seed: int,
) -> tuple[Plan, list[Path], list[str]]:
    """What will be drawn, the classifiers' folders, a sentence for what cannot be.

    The first folder is of the run's own classifier, another may follow. Of a
    checkpoint's number, the audit of `audit_classifier.choose`, and flags. A
    UserError if there is nothing to draw, or what is asked for cannot be drawn.
    """
    config, sample = saved.config, saved.config.sample
    wrong = list(prompts.problems(further)) if further else []
    if config.model in configuration.SHIPPED and not wrong:
        wrong = prompts.unknown(further)
    if wrong:
        raise UserError(f"--prompt: {' '.join(wrong)}")
    asked, notes = prompts.build(config.prompts, sets, further)
    if not asked:
        raise UserError(f"There is nothing to draw. {' '.join(notes)}")
    training = Sampler(sample.eta, sample.guidance_scale, sample.num_steps)
    chosen = parse_samplers(samplers, training)
    if TRAINED not in sets:
        chosen = chosen[:1]  # the others draw trained prompts only
    place = saved.folder / run_folder.CHECKPOINTS
    own = config.attributes.gender.classifier
    folders, second = _classifiers(own, audit)
    source = {
        "run": saved.folder.name,
        "checkpoint": checkpoint,
        "model": config.model,
        "classifier": own,
        "audit": audit,
        "audit_fingerprint": second,
        "fingerprint": run_folder.fingerprint(place, checkpoint),
    }
    devices = parallel.num_devices()
    batch = sample.batch_per_device * devices
    plan = Plan(source, chosen, asked, images, seed, batch, devices)
    return plan, folders, notes


def parse_samplers(text: str, training: Sampler) -> tuple[Sampler, ...]:
    """Training's sampler, then those of --samplers.

    "training" means no other, "all" what users do: no noise, other guidance, other
    steps; anything else is "eta:guidance:steps,...". A UserError for what is none of
    these.
    """
    _, guidance, steps = training
    if text == "all":
        each = [(guidance, steps), (1.0, steps), (1.5 * guidance, steps)]
        each += [(guidance, max(steps // 2, 1)), (guidance, min(2 * steps, 1000))]
        others = [Sampler(0.0, *one) for one in each]
    elif text == "training":
        others = []
    else:
        others = [_sampler(item.strip()) for item in text.split(",")]
    if None in others:
        raise UserError(
            f"--samplers={shown(text)} must be all, training, or eta:guidance:steps"
            " with commas between, e.g. 0:7.5:50,1:5:50 (eta 0 to 1, guidance 0 to 100,"
            " steps 1 to 1000)."
        )
    return tuple(dict.fromkeys([training, *others]))


def _sampler(text: str) -> Sampler | None:
    number = r"(\d+\.?\d*|\.\d+)"
    match = re.fullmatch(rf"{number}:{number}:(\d{{1,4}})", text)
    if match is None:
        return None
    found = Sampler(float(match[1]), float(match[2]), int(match[3]))
    sound = found.eta <= 1 and found.guidance_scale <= 100
    return found if sound and 1 <= found.num_steps <= 1000 else None


def jobs(plan: Plan) -> Iterator[Job]:
    """All batches in order: trained prompts, which take turns, then all others.

    Those of a sampler and model have one size, are as few and as full as can be.
    """
    trained = [i for i, prompt in enumerate(plan.prompts) if prompt.set == TRAINED]
    others = [i for i, prompt in enumerate(plan.prompts) if prompt.set != TRAINED]
    for index, sampler in enumerate(plan.samplers):
        turns = [trained[:MOST_SWEPT]] if index else [trained, others]
        prompts = np.concatenate(
            [np.tile(np.array(turn, np.int64), plan.images) for turn in turns]
        )
        images = np.concatenate(
            [np.repeat(np.arange(plan.images), len(turn)) for turn in turns]
        )
        total = len(prompts)
        num_batches = -(-total // plan.batch)
        size = -(-total // (num_batches * plan.num_devices)) * plan.num_devices
        for model, number in itertools.product((BEFORE, AFTER), range(num_batches)):
            rows = np.arange(number * size, (number + 1) * size)
            count, rows = int(np.sum(rows < total)), rows % total
            yield Job(sampler, model, number, prompts[rows], images[rows], count)


def _classifiers(own: str, audit: str) -> tuple[list[Path], str | None]:
    """The folders of both classifiers, the second's fingerprint; None without one."""
    folders = [sources.classifier_folder(own)]
    if audit in (audit_classifier.DLIB, audit_classifier.NO_AUDIT):
        return folders, None
    try:
        second = sources.identity("classifier", audit)
        folders.append(Path(second["folder"]))
        if folders[0] == folders[1]:
            raise UserError("it is the run's own; give one that may disagree.")
    except UserError as error:
        raise UserError(f"--audit={shown(audit)}: {error}") from error
    return folders, second["fingerprint"]
