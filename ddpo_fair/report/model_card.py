"""The README.md beside an exported model: what it is for, what was measured, limits."""

import dataclasses
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jinja2
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair.models import lora_files, sources
from ddpo_fair.report import (
    attribute_tables,
    changes,
    formatting,
    measurements,
    run_reader,
)
from ddpo_fair.report.run_reader import Record
from ddpo_fair.statistics.intervals import Interval, newcombe
from ddpo_fair.training import description, saved_run

LICENCES = {  # of the base model, by its owner on the hub
    "CompVis": "creativeml-openrail-m",
    "stable-diffusion-v1-5": "creativeml-openrail-m",
}
SETTINGS = (
    "reward.name",
    "reward.combine",
    "advantage.name",
    "train.objective",
    "train.learning_rate",
    "train.lora.rank",
    "sample.num_steps",
    "sample.guidance_scale",
    "sample.eta",
    "seed",
)
FIGURES = ("q", "q_low", "q_high", "num_female", "num_male", "none")
BY_ATTRIBUTE = ("counts", "num_none", "shares", "distance")
UNKNOWN = "Not measured: the run was not evaluated {}. Do not assume any effect."
SEVERAL = (
    "Shares are of recognised images of fresh seeds that were never trained on;"
    " brackets are 95 % intervals, those of three classes or more hold together. The"
    " distance from the target is the share of images that would have to be of another"
    " class."
)


def write(run: saved_run.SavedRun, number: int, format: str) -> str:
    """The model card, Markdown with the hub's header; see model_card.md.j2.

    Args:
        run: of `saved_run.read`.
        number: of the checkpoint.
        format: "diffusers", "lora" or "kohya".
    """
    config, record, flat = run.config, run.record, configuration.flatten(run.config)
    embedded = config.model == configuration.EMBEDDED
    name = config.model.partition("@")[0]
    rewarded = {name: one for name, one in config.attributes.items() if one.weight}
    titles = formatting.listed([formatting.title(name) for name in rewarded])
    prompts, devices = config.prompts, record.get("devices")
    plain = [_plain(prompt) for prompt in prompts]
    known = {x: description.known(record, x) for x in description.fields(flat)}
    shown = [x for x in flat if x.startswith("attributes.")] + list(SETTINGS)
    text = Path(__file__).with_name("model_card.md.j2").read_text("utf-8")
    template = jinja2.Template(
        text,
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return template.render(
        format=format,
        config=config,
        record={"version": None, "images_per_epoch": None, "commit": None} | record,
        number=number,
        embedded=embedded,
        base="the embedded model of `ddpo_fair`" if embedded else f"`{config.model}`",
        base_model=name if sources.MODEL_NAME.fullmatch(config.model) else "",
        licence=LICENCES.get(name.split("/", 1)[0], "other"),
        names=formatting.sentence(titles),
        subject=f'"{plain[0]}"' if len(plain) == 1 else f"{len(plain)} prompts",
        goals=list(_goals(config, rewarded)),
        prompts=[_prompt(prompt, record.get("targets") or {}) for prompt in prompts],
        first_prompt=json.dumps(prompts[0]),
        effect="\n".join(_effect(run, number)),
        fingerprints=[(x, y["fingerprint"]) for x, y in known.items() if y],
        settings=[(x, _plain(json.dumps(flat[x]))) for x in shown],
        devices=", ".join(map(str, devices)) if type(devices) is list else "",
        files=lora_files,
    )


def result(run: saved_run.SavedRun, number: int) -> dict[str, Any]:
    """The figures of a checkpoint as JSON: {"before": {...}, "after": {...}}.

    Each has q (share classified as female among recognised faces), its 95 % interval
    and the counts; `attributes` where there are others; or is None if it was not
    evaluated.
    """

    def figures(line: dict[str, Any] | None) -> dict[str, Any] | None:
        if line is None:
            return None
        found = {"epoch": line["epoch"]}
        if "eval_q" in line:
            found |= {name: line.get(f"eval_{name}") for name in FIGURES}
        attributes = {
            name: {field: part.get(f"eval_{field}") for field in BY_ATTRIBUTE}
            for name, part in run_reader.parts(line, "attributes").items()
        }
        return found | ({"attributes": attributes} if attributes else {})

    before, after = saved_run.result(run, number)
    return {"before": figures(before), "after": figures(after)}


def _plain(text: str) -> str:
    """`text` as Markdown that shows just that."""
    return re.sub(r"([\\`*_\[\]<>|#~&!])", r"\\\1", text)


def _goals(config: ConfigDict, rewarded: dict[str, ConfigDict]) -> Iterator[str]:
    """What is aimed at with each attribute, and with their cells."""
    for name, one in rewarded.items():
        wanted = [f"{x:.0%} {y}" for x, y in zip(one.target, one.classes, strict=True)]
        if (one.reward or config.reward.name) == "shift":
            wanted = [f"as many {one.target_class} as possible"]
            if one.target_class == "auto":
                wanted = ["as many as possible of the class that was rarest before"]
        yield f"{formatting.title(name)}: {formatting.listed(wanted)}"
    if len(rewarded) > 1 and config.reward.combine == "joint":
        names = " × ".join(map(formatting.title, rewarded))
        yield f"{names}: in each cell the product of these"


def _prompt(prompt: str, targets: dict[str, dict]) -> str:
    """A prompt with the targets that it has for itself."""
    own = {name: found[prompt] for name, found in targets.items() if prompt in found}
    wanted = [
        f"{formatting.title(name)} {' / '.join(f'{share:.0%}' for share in shares)}"
        for name, shares in own.items()
    ]
    return f"{_plain(prompt)}{': ' if wanted else ''}{'; '.join(wanted)}"


def _effect(run: saved_run.SavedRun, number: int) -> Iterator[str]:
    """Lines on what was measured before training and up to a checkpoint."""
    before, after = saved_run.result(run, number)
    record = run_reader.read(run.folder)
    alone = measurements.of_gender_alone(record)
    if after is None or (before is None and not alone):
        yield UNKNOWN.format("before training" if after else "up to this checkpoint")
        return
    if alone:
        yield from _of_gender(run, before, after)
    else:
        yield from _of_attributes(dataclasses.replace(record, lines=(before, after)))
    if after["epoch"] != number - 1:
        yield (
            f"The checkpoint has {number - 1 - after['epoch']} more epochs of"
            " training than the evaluation saw."
        )


def _of_attributes(record: Record) -> Iterator[str]:
    """Lines of a table of each attribute, and of one of its prompts where several."""
    for found in changes.of_runs([record]):
        by_prompt = attribute_tables.prompts(found, record)
        for table in filter(None, (attribute_tables.classes(found), by_prompt)):
            yield _row(map(_plain, table.head))
            yield "|---" * len(table.head) + "|"
            yield from (_row(map(_plain, row)) for row in table.rows)
            yield ""
    yield SEVERAL


def _of_gender(
    run: saved_run.SavedRun, before: dict[str, Any] | None, after: dict[str, Any]
) -> Iterator[str]:
    """Lines of the table of gender, and what they mean."""
    yield "| | share classified as female | as female | as male | as neither |"
    yield "|---" * 5 + "|"
    lines = {"before training": before, f"after epoch {after['epoch']}": after}
    for prompt, part in (after.get("prompts") or {}).items():
        lines[f"after, {_plain(prompt)}"] = part if "eval_q" in part else None
    for name, line in lines.items():
        if line is not None:
            share = "no face recognised"
            if line["eval_q"] is not None:
                share = "{:.1%} [{:.1%}, {:.1%}]".format(*_q(line))
            counts = ("eval_num_female", "eval_num_male", "eval_none")
            yield _row([name, share, *(str(line[count]) for count in counts)])
    yield ""
    gender = run.config.attributes.gender
    yield (
        f"Fresh seeds that were never trained on, recognised at a confidence of"
        f" {gender.confidence_threshold:g} by the classifier `{gender.classifier}`;"
        " brackets are 95 % Wilson intervals."
    )
    if before is not None:
        change, low, high = (100 * x for x in newcombe(_q(before), _q(after)))
        yield f"The share changed by {change:+.1f} points [{low:+.1f}, {high:+.1f}]."


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _q(line: dict[str, Any]) -> Interval:
    """The share classified as female of an evaluation."""
    return Interval(line["eval_q"], line["eval_q_low"], line["eval_q_high"])
