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
    attribute_tables,
    changes,
    formatting,
    measurements,
    run_reader,
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
UNKNOWN = "Not measured: the run was not evaluated {}. Do not assume any effect."
MEASURED = (
    "Shares are of the recognised ones among {} images before training and {} after"
    " epoch {}, of fresh seeds that were never trained on. Brackets are 95 % intervals;"
    " those of three classes or more hold together. The distance from the target is the"
    " share of images that would have to be of another class."
)


def write(
    run: saved_run.SavedRun,
    number: int,
    format: str,
    part: str = "unet",
    pipeline: str = "StableDiffusionPipeline",
    absent: Iterable[str] = (),
) -> str:
    """The model card, Markdown with the hub's header; see model_card.md.j2.

    Args:
        run: of `saved_run.read`.
        number: of the checkpoint.
        format: "diffusers", "lora" or "kohya".
        part: the folder of the network that was trained, "unet" or "transformer".
        pipeline: diffusers' class that opens the model.
        absent: its parts that the model lacks, which it must be told.
    """
    config, record, flat = run.config, run.record, configuration.flatten(run.config)
    embedded = sources.SHIPPED["model"].get(config.model, Path()).name
    name, base_lora = config.model.partition("@")[0], Path(config.base_lora).name
    own = f"the {config.model.replace('_', ' ')} model of `ddpo_fair`"
    base = own if embedded else f"`{config.model}`"
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


def _prompt(prompt: str, targets: dict[str, dict]) -> str:
    """A prompt with the targets that it has for itself."""
    own = {name: found[prompt] for name, found in targets.items() if prompt in found}
    wanted = [
        f"{formatting.title(name)} {' / '.join(f'{share:.0%}' for share in shares)}"
        for name, shares in own.items()
    ]
    return f"{_plain(prompt)}{': ' if wanted else ''}{'; '.join(wanted)}"


def _effect(run: saved_run.SavedRun, number: int) -> Iterator[str]:
    """Lines on what was measured before training and up to a checkpoint.

    A table of each attribute, and one of its prompts where there are several.
    """
    record, before, after = _evaluations(run, number)
    record = dataclasses.replace(record, lines=tuple(filter(None, (before, after))))
    *ends, fresh = changes.ends(record, None, measurements.names(record)[0])
    if None in ends or not fresh:
        yield UNKNOWN.format("before training" if after else "up to this checkpoint")
        yield from record.notes
        return
    for found in changes.of_runs([record]):
        by_prompt = attribute_tables.prompts(record, found.name)
        for table in filter(None, (attribute_tables.classes(found), by_prompt)):
            width = len(table.head) - (table is by_prompt)  # without its drawings
            yield _row(map(_plain, table.head[:width]))
            yield "|---" * width + "|"
            yield from (_row(map(_plain, row[:width])) for row in table.rows)
            yield ""
    first, last = (one.num_faces + one.num_none for one in ends)
    yield MEASURED.format(first, last, after["epoch"])
    if after["epoch"] != number - 1:
        yield (
            f"The checkpoint has {number - 1 - after['epoch']} more epochs of"
            " training than the evaluation saw."
        )


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
