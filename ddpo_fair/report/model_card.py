"""The README.md beside an exported model: what it is for, what was measured, limits."""

import json
import re
from typing import Any

from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair.models import lora_files, sources
from ddpo_fair.statistics import intervals
from ddpo_fair.training import description, saved_run

FIGURES = ("q", "q_low", "q_high", "num_female", "num_male", "none")
LICENCES = {  # of the base model, by its owner on the hub
    "CompVis": "creativeml-openrail-m",
    "stable-diffusion-v1-5": "creativeml-openrail-m",
}
SETTINGS = (
    "reward.name",
    "attributes.gender.target",
    "advantage.name",
    "train.objective",
    "train.learning_rate",
    "train.lora.rank",
    "sample.num_steps",
    "sample.guidance_scale",
    "sample.eta",
    "seed",
)
INTENDED_USE = """\
## Intended use

Research on bias in generated images, and drawing people for the prompts above
without one gender being the rule. It says nothing about any real person or group, and
must not be used to classify, rank or select people, or to present its images as
photographs of someone."""
LIMITS = """\
## Limits

- "Female" and "male" are a classifier's labels of how a generated face looks. They are
  not a person's identity, and two labels do not describe everyone.
- The classifier makes mistakes, more of them for some groups than for others, and it
  gave the reward too. Check the model with another classifier, and by eye.
- Measured for the prompts above with the sampler below. Other prompts, samplers,
  guidance scales and languages, and other attributes such as age and skin colour, may
  have changed in ways that were not measured.
- Images in which the classifier recognised no class are left out of the share; the
  table counts them.
- The biases of the base model that are not named here are still there. There is no
  safety checker: add one before you show images to others."""

FOR_WHOM = {
    "diffusers": "",
    "lora": f"""\
`{lora_files.DIFFUSERS}` is for diffusers, as below. `{lora_files.PEFT}` and
`{lora_files.PEFT_CONFIG}` are for PEFT: `PeftModel.from_pretrained(pipeline.unet,
"THIS_FOLDER")`. ComfyUI and AUTOMATIC1111 read neither; `--format=kohya` exports for
them.

""",
    "kohya": f"""\
`{lora_files.KOHYA}` has kohya's names. Put it in `models/loras` of ComfyUI, or in
`models/Lora` of AUTOMATIC1111, and use it at strength 1 with the base model above.
diffusers reads it too. `--format=lora` exports for PEFT.

""",
}


def result(run: saved_run.SavedRun, number: int) -> dict[str, Any]:
    """The figures of a checkpoint as JSON: {"before": {...}, "after": {...}}.

    Each has q (share classified as female among recognised faces), its 95 % interval
    and the counts, or is None if it was not evaluated.
    """
    before, after = saved_run.result(run, number)

    def figures(line: dict[str, Any] | None) -> dict[str, Any] | None:
        if line is None:
            return None
        measured = {name: line.get(f"eval_{name}") for name in FIGURES}
        return {"epoch": line["epoch"], **measured}

    return {"before": figures(before), "after": figures(after)}


def write(run: saved_run.SavedRun, number: int, format: str) -> str:
    """The model card, Markdown with the hub's header.

    Args:
        run: of `saved_run.read`.
        number: of the checkpoint.
        format: "diffusers", "lora" or "kohya".
    """
    config = run.config
    listed = "\n".join(f"- {_plain(prompt)}" for prompt in config.prompts)
    return f"""{_header(config, format)}
# Gender balance of {_subject(config)}

{_what(config, format)} Its share of images classified as female was moved
{_goal(config)} by reinforcement learning with a classifier's feedback (`ddpo_fair`
{run.record.get("version")}, checkpoint {number}). The prompts:

{listed}

{INTENDED_USE}

## Measured effect

{_effect(run, number)}

{LIMITS}

## How it was trained

{_training(run, number)}

## How to use it

{_usage(config, format)}
"""


def _header(config: ConfigDict, format: str) -> str:
    owner, name = config.model.partition("@")[0].split("/", 1)[0], config.model
    lines = ["---", "library_name: diffusers", "pipeline_tag: text-to-image"]
    if sources.MODEL_NAME.fullmatch(name):
        lines.append(f"base_model: {name.partition('@')[0]}")
    lines.append(f"license: {LICENCES.get(owner, 'other')}")
    tags = ["stable-diffusion", "fairness", "reinforcement-learning", "ddpo"]
    tags += ["lora"] if format != "diffusers" else []
    return "\n".join([*lines, "tags:", *(f"- {tag}" for tag in tags), "---", ""])


def _subject(config: ConfigDict) -> str:
    prompts = config.prompts
    return f'"{_plain(prompts[0])}"' if len(prompts) == 1 else f"{len(prompts)} prompts"


def _plain(text: str) -> str:
    """`text` as Markdown that shows just that."""
    return re.sub(r"([\\`*_\[\]<>|#~&!])", r"\\\1", text)


def _base(config: ConfigDict) -> str:
    if config.model == configuration.EMBEDDED:
        return "the embedded model of `ddpo_fair`"
    return f"`{config.model}`"


def _what(config: ConfigDict, format: str) -> str:
    if format != "diffusers":
        return f"LoRA adapters for the UNet of {_base(config)}."
    how = "merged LoRA adapters" if config.train.lora.rank else "full fine-tuning"
    text = f"{_base(config)} with another UNet ({how})."
    return text[0].upper() + text[1:]


def _goal(config: ConfigDict) -> str:
    gender = config.attributes.gender
    if (gender.reward or config.reward.name) != "shift":
        return f"towards {gender.target[0]:.0%}"
    if gender.target_class == "auto":
        return "towards the class that was rarer before training"
    return "up" if gender.target_class == "female" else "down"


def _effect(run: saved_run.SavedRun, number: int) -> str:
    (before, after), config = saved_run.result(run, number), run.config
    if after is None:
        return (
            "Not measured: the run was not evaluated up to this checkpoint. Do not"
            " assume any effect."
        )
    rows = [
        "| | share classified as female | as female | as male | as neither |",
        "|---|---|---|---|---|",
    ]
    for name, line in (
        ("before training", before),
        (f"after epoch {after['epoch']}", after),
    ):
        if line is not None:
            rows.append(_row(name, line))
    for prompt, line in (after.get("prompts") or {}).items():
        if "eval_q" in line:
            rows.append(_row(f"after, {_plain(prompt)}", line))
    gender = config.attributes.gender
    notes = [
        f"Fresh seeds that were never trained on, recognised at a confidence of"
        f" {gender.confidence_threshold:g} by the classifier `{gender.classifier}`;"
        " brackets are 95 % Wilson intervals."
    ]
    if before is not None:
        notes.append(_change(before, after))
    if after["epoch"] != number - 1:
        notes.append(
            f"The checkpoint has {number - 1 - after['epoch']} more epochs of"
            " training than the evaluation saw."
        )
    return "\n".join([*rows, "", *notes])


def _row(name: str, line: dict[str, Any]) -> str:
    share = "no face recognised"
    if line["eval_q"] is not None:
        share = "{:.1%} [{:.1%}, {:.1%}]".format(*_q(line))
    counts = (line["eval_num_female"], line["eval_num_male"], line["eval_none"])
    return f"| {name} | {share} | {' | '.join(map(str, counts))} |"


def _change(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The difference of two shares with its interval."""
    change, low, high = intervals.newcombe(_q(before), _q(after))
    return (
        f"The share changed by {100 * change:+.1f} points"
        f" [{100 * low:+.1f}, {100 * high:+.1f}]."
    )


def _q(line: dict[str, Any]) -> intervals.Interval:
    """The share classified as female of an evaluation."""
    return intervals.Interval(line["eval_q"], line["eval_q_low"], line["eval_q_high"])


def _training(run: saved_run.SavedRun, number: int) -> str:
    flat = configuration.flatten(run.config)
    images = run.record.get("images_per_epoch")
    rows = [f"| base model | {_base(run.config)} |"]
    rows.append(f"| classifier | `{run.config.attributes.gender.classifier}` |")
    for field in description.fields(flat):
        if known := description.known(run.record, field):
            rows.append(f"| fingerprint of {field} | `{known['fingerprint']}` |")
    rows.append(f"| images | {number} epochs of {images} |")
    rows += [f"| `{name}` | {json.dumps(flat[name])} |" for name in SETTINGS]
    rows.append(f"| devices | {', '.join(run.record.get('devices') or [])} |")
    rows.append(f"| commit | {run.record.get('commit')} |")
    return "\n".join(["| | |", "|---|---|", *rows])


def _usage(config: ConfigDict, format: str) -> str:
    base, dtype = f'"{config.model.partition("@")[0]}"', ""
    if config.model == configuration.EMBEDDED:
        # Its text encoder is kept in float16, the other parts in float32.
        base, dtype = '"ddpo_fair/embedded/weights/text_to_image"', "torch.float32"
    loads = 'StableDiffusionPipeline.from_pretrained("THIS_FOLDER")'
    torch, extra = "", ""
    if format != "diffusers":
        torch = "import torch\n" if dtype else ""
        arguments = f"{base}, torch_dtype={dtype}" if dtype else base
        loads = f"StableDiffusionPipeline.from_pretrained({arguments})"
        extra = (
            'pipeline.load_lora_weights("THIS_FOLDER", weight_name='
            f'"{lora_files.KOHYA if format == "kohya" else lora_files.DIFFUSERS}")\n'
        )
    sample = config.sample
    return f"""{FOR_WHOM[format]}```python
{torch}from diffusers import DDIMScheduler, StableDiffusionPipeline

pipeline = {loads}
{extra}pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
image = pipeline(
    {json.dumps(config.prompts[0])},
    num_inference_steps={sample.num_steps},
    guidance_scale={sample.guidance_scale},
    eta={sample.eta},
).images[0]
```"""
