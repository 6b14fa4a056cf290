"""The README.md beside an exported model: what it is for, what was measured, limits."""

import json

from ml_collections import ConfigDict

from ddpo_fair import config as configuration
from ddpo_fair.models import lora, sources
from ddpo_fair.report import card_effect, formatting
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
INTENDED_USE = """\
## Intended use

Research on bias in generated images, and drawing people for the prompts above
without one group being the rule. It says nothing about any real person or group, and
must not be used to classify, rank or select people, or to present its images as
photographs of someone."""
LIMITS = """\
## Limits

- The classes are a classifier's labels of how a generated face looks. They are not a
  person's identity, and so few labels do not describe everyone.
- The classifier makes mistakes, more of them for some groups than for others, and it
  gave the reward too. Check the model with another classifier, and by eye.
- Measured for the prompts above with the sampler below. Other prompts, samplers,
  guidance scales and languages, and attributes that are not named here, may have
  changed in ways that were not measured.
- Images in which the classifier recognised no class are left out of the share; the
  table counts them.
- The biases of the base model that are not named here are still there. There is no
  safety checker: add one before you show images to others."""

FOR_WHOM = {
    "diffusers": "",
    "lora": f"""\
`{lora.DIFFUSERS}` is for diffusers, as below. `{lora.PEFT}` and
`{lora.PEFT_CONFIG}` are for PEFT: `PeftModel.from_pretrained(pipeline.unet,
"THIS_FOLDER")`. ComfyUI and AUTOMATIC1111 read neither; `--format=kohya` exports for
them.

""",
    "kohya": f"""\
`{lora.KOHYA}` has kohya's names. Put it in `models/loras` of ComfyUI, or in
`models/Lora` of AUTOMATIC1111, and use it at strength 1 with the base model above.
diffusers reads it too. `--format=lora` exports for PEFT.

""",
}


def write(run: saved_run.SavedRun, number: int, format: str) -> str:
    """The model card, Markdown with the hub's header.

    Args:
        run: of `saved_run.read`.
        number: of the checkpoint.
        format: "diffusers", "lora" or "kohya".
    """
    config = run.config
    targets = run.record.get("targets") or {}
    listed = "\n".join(f"- {_prompt(prompt, targets)}" for prompt in config.prompts)
    names = formatting.listed([formatting.title(x) for x in _rewarded(config)])
    return f"""{_header(config, format)}
# {formatting.sentence(names)} balance of {_subject(config)}

{_what(config, format)} Fine-tuned by reinforcement learning with a classifier's
feedback (`ddpo_fair` {run.record.get("version")}, checkpoint {number}) towards these
shares of its images, as classified:

{_goals(config)}

The prompts:

{listed}

{INTENDED_USE}

## Measured effect

{card_effect.text(run, number)}

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
    return (
        f'"{card_effect.plain(prompts[0])}"'
        if len(prompts) == 1
        else f"{len(prompts)} prompts"
    )


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


def _rewarded(config: ConfigDict) -> dict[str, ConfigDict]:
    return {name: one for name, one in config.attributes.items() if one.weight}


def _goals(config: ConfigDict) -> str:
    """A line for each attribute that is rewarded, and one for their cells."""
    rewarded, lines = _rewarded(config), []
    for name, one in rewarded.items():
        wanted = [f"{x:.0%} {y}" for x, y in zip(one.target, one.classes, strict=True)]
        if (one.reward or config.reward.name) == "shift":
            wanted = [f"as many {one.target_class} as possible"]
            if one.target_class == "auto":
                wanted = ["as many as possible of the class that was rarest before"]
        lines.append(f"- {formatting.title(name)}: {formatting.listed(wanted)}")
    if len(rewarded) > 1 and config.reward.combine == "joint":
        names = " × ".join(map(formatting.title, rewarded))
        lines.append(f"- {names}: in each cell the product of these")
    return "\n".join(lines)


def _prompt(prompt: str, targets: dict[str, dict]) -> str:
    """A prompt of the list, with the targets that it has for itself."""
    own = {name: found[prompt] for name, found in targets.items() if prompt in found}
    wanted = [
        f"{formatting.title(name)} {' / '.join(f'{share:.0%}' for share in shares)}"
        for name, shares in own.items()
    ]
    return f"{card_effect.plain(prompt)}{': ' if wanted else ''}{'; '.join(wanted)}"


def _training(run: saved_run.SavedRun, number: int) -> str:
    flat = configuration.flatten(run.config)
    images = run.record.get("images_per_epoch")
    rows = [f"| base model | {_base(run.config)} |"]
    for field in description.fields(flat):
        if known := description.known(run.record, field):
            rows.append(f"| fingerprint of {field} | `{known['fingerprint']}` |")
    rows.append(f"| images | {number} epochs of {images} |")
    names = [name for name in flat if name.startswith("attributes.")]
    names += SETTINGS
    rows += [
        f"| `{name}` | {card_effect.plain(json.dumps(flat[name]))} |" for name in names
    ]
    devices = run.record.get("devices")
    rows.append(
        f"| devices | {', '.join(map(str, devices)) if type(devices) is list else ''} |"
    )
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
            f'"{lora.KOHYA if format == "kohya" else lora.DIFFUSERS}")\n'
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
