"""The README.md beside an exported model: what it is for, what was measured, limits."""

import dataclasses
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jinja2
from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair.models import lora_files, sources
from ddpo_fair.report import (
    changes,
    formatting,
    measurements,
    run_reader,
    tables,
)
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


def write(
    run: saved_run.SavedRun,
    number: int,
    format: str,
    part: str = "unet",
    pipeline: str = "StableDiffusionPipeline",
    absent: Iterable[str] = (),
) -> str:
    """The model card, Markdown with the hub's header; see model_card.md.j2.

    The number is the checkpoint's, the format "diffusers", "lora" or "kohya", `part`
    the folder of the trained network. The pipeline is diffusers' class that opens the
    model, and must be told the parts that are absent.
    """
    config, record, flat = run.config, run.record, configuration.flatten(run.config)
    embedded = sources.SHIPPED["model"].get(config.model, Path()).name
    name = config.model.partition("@")[0]
    base_lora = lora_files.called(config.base_lora)
    own = f"the {config.model.replace('_', ' ')} model of `ddpo_fair`"
    base = own if embedded else f"`{config.model}`"
    rewarded = {name: one for name, one in config.attributes.items() if one.weight}
    titles = formatting.listed([formatting.title(name) for name in rewarded])
    prompts, devices = config.prompts, record.get("devices")
    measured, before, after = _evaluations(run, number)
    lines = tuple(filter(None, (before, after)))
    measured = dataclasses.replace(measured, lines=lines)
    *ends, fresh = changes.ends(measured, None, measurements.names(measured)[0])
    known = {x: description.known(record, x) for x in description.fields(flat)}
    shown = [x for x in flat if x.startswith("attributes.")] + list(SETTINGS)
    template = jinja2.Template(
        Path(__file__).with_name("model_card.md.j2").read_text("utf-8"),
        keep_trailing_newline=True,
        lstrip_blocks=True,
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return template.render(
        plain=_plain,
        title=formatting.title,
        format=format,
        part=part,
        network="UNet" if part == "unet" else part,
        pipeline=pipeline,
        config=config,
        record={"version": None, "images_per_epoch": None, "commit": None} | record,
        number=number,
        embedded=embedded,
        absent="".join(f", {part}=None" for part in absent),
        base=base + (f" plus the LoRA `{base_lora}`" if base_lora else ""),
        base_lora=base_lora,
        base_model=name if sources.MODEL_NAME.fullmatch(config.model) else "",
        licence=LICENCES.get(name.split("/", 1)[0], "other"),
        names=formatting.sentence(titles),
        goals=list(_goals(config, rewarded)),
        targets=record.get("targets") or {},
        first_prompt=json.dumps(prompts[0]),
        measured=measured,
        tables=list(_tables(measured)) if fresh and None not in ends else [],
        images=[one and one.num_faces + one.num_none for one in ends],
        after=after,
        fingerprints=[(x, y["fingerprint"]) for x, y in known.items() if y],
        settings=[(x, json.dumps(flat[x])) for x in shown],
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

    _, before, after = _evaluations(run, number)
    return {"before": figures(before), "after": figures(after)}


def _evaluations(
    run: saved_run.SavedRun, number: int
) -> tuple[run_reader.Record, dict[str, Any] | None, dict[str, Any] | None]:
    """The run's records, and its lines with what a checkpoint was before and after.

    None where there is none. Where the checkpoint's own epoch was not evaluated, the
    latest evaluation before it counts: its line's `epoch` says which.
    """
    record = run_reader.read(run.folder)
    names = measurements.names(record)

    def is_evaluated(line: dict[str, Any]) -> bool:
        found = [measurements.of_line(line, line["epoch"], True, x) for x in names]
        return None not in found and any(one.num_faces for one in found)

    found = [x for x in record.lines if x["epoch"] < number and is_evaluated(x)]
    before = next((line for line in found if line["epoch"] == 0), None)
    return record, before, found[-1] if found and found[-1]["epoch"] else None


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


def _tables(record: run_reader.Record) -> Iterator[list[list[str]]]:
    """Head and rows of each attribute's table, and of that of its several prompts."""
    for found in changes.of_runs([record]):
        one = tables.of_classes(found)
        yield [[*map(_plain, row)] for row in (one.head, *one.rows)]
        if by_prompt := tables.of_prompts(record, found.name):  # and its figure
            rows = by_prompt.head, *by_prompt.rows
            yield [[*map(_plain, row[:-1])] for row in rows]
