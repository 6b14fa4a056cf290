"""A trained model, or its adapters, as a folder in a format that others read."""

import contextlib
import json
import os
import shutil
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors

import ddpo_fair
from ddpo_fair import files
from ddpo_fair.diffusion import flow, networks, scheduler_settings, stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import lora, lora_files, sources, weights
from ddpo_fair.report import model_card
from ddpo_fair.training import saved_run

TEXT_WEIGHTS = "model.safetensors"
NO_PART = [None, None]
TOKENIZER = ["transformers", "CLIPTokenizer"]
PROJECTING = ["transformers", "CLIPTextModelWithProjection"]
CLASSES = {  # of the parts, in model_index.json
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": PROJECTING,
    "text_encoder_3": ["transformers", "T5EncoderModel"],
    "tokenizer": TOKENIZER,
    "tokenizer_2": TOKENIZER,
    "tokenizer_3": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "SD3Transformer2DModel"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(
    run: str | Path, output: str | Path, format: str, number: int | None = None
) -> Path:
    """Writes a checkpoint's model to a folder, new or empty, whole or not at all.

    Formats: "diffusers", a folder that DiffusionPipeline.from_pretrained opens;
    "lora", adapters for diffusers' load_lora_weights and for PEFT; "kohya", adapters
    for ComfyUI and AUTOMATIC1111. `number` is the checkpoint's, None for the newest. A
    UserError if there is nothing to export, or it cannot be written.
    """
    target = files.output("--output", output)
    saved = saved_run.read(run)
    number = saved_run.choose(saved, number)
    settings = saved.config.train.lora
    if format != "diffusers" and not settings.rank:
        raise UserError(
            f"--format={format}: {saved.folder} trained all weights of the model"
            " (train.lora.rank=0), so there are no adapters; use --format=diffusers."
        )
    merged = saved.config.base_lora
    saved = saved_run.with_weights(saved, "model", *["base_lora"] * bool(merged))
    source = sources.model_folder(saved.config.model, saved.config.variant)
    parts = networks.parts_of(source)
    part, pipeline = networks.denoising_part(parts), _pipeline(parts)["_class_name"]
    if format == "kohya" and part == networks.TRANSFORMER:
        raise UserError(
            "--format=kohya has names for a UNet's layers alone, and this model has a"
            " transformer; use --format=lora, which ComfyUI reads too."
        )
    with _new_folder(target) as folder:
        if format == "diffusers":
            _write_pipeline(folder, saved, number, source)
        else:
            template = saved_run.unet_template(source)
            adapters = saved_run.trained_params(saved, number, template)
            metadata = {
                "base_model": saved.config.model,
                "base_lora": lora_files.called(merged),
                "prompts": json.dumps(list(saved.config.prompts)),
                "result": json.dumps(model_card.result(saved, number)),
                "rank": str(settings.rank),
                "ddpo_fair": ddpo_fair.__version__,
            }
            of_both = (lora_files.DIFFUSERS, lora_files.PEFT)
            for name in of_both if format == "lora" else (lora_files.KOHYA,):
                lora_files.save(folder, adapters, settings.scale, metadata, name, part)
        third = (networks.TEXT_3, stable_diffusion.tokenizer_folder(networks.TEXT_3))
        absent = third if part == networks.TRANSFORMER and third[0] not in parts else ()
        text = model_card.write(saved, number, format, part, pipeline, absent)
        (folder / "README.md").write_text(text, encoding="utf-8")
    if merged and format != "diffusers":
        print(
            "These are the trained adapters alone: use them with"
            f" {saved.config.model} and {merged}, both merged, as they were trained."
        )
    return target


def _write_pipeline(
    folder: Path, saved: saved_run.SavedRun, number: int, source: Path
) -> None:
    how = {"variant": saved.config.variant or None, "base_lora": saved.config.base_lora}
    model = stable_diffusion.load(source, **how)
    params = saved_run.trained_params(saved, number, model.params[model.part])
    settings = saved.config.train.lora
    if settings.rank:
        # NumPy arrays, hence nothing is compiled or placed on a device
        params = jax.tree.map(np.asarray, params)
        params = lora.merge(model.params[model.part], params, settings.scale)
    for part, content in {**model.params, model.part: params}.items():
        of_transformers = part in model.tokenizers
        name = TEXT_WEIGHTS if of_transformers else stable_diffusion.WEIGHTS
        weights.save(folder / part, content, model.configs[part], name)
    tokenizers = [stable_diffusion.tokenizer_folder(part) for part in model.tokenizers]
    for part in ("scheduler", *tokenizers):
        (folder / part).mkdir()
    for name in (f"{part}/{name}" for part in tokenizers for name in sources.TOKENIZER):
        if (source / name).is_file():
            (folder / name).write_bytes(_read_own(source, name))
    scheduler, name = model.scheduler, f"scheduler/{scheduler_settings.FILE}"
    known = {*scheduler_settings.CLASSES, flow.CLASS}
    if str(scheduler.get("_class_name")) in known:
        content = _read_own(source, name)
        text = content.decode(json.detect_encoding(content))  # diffusers wants UTF-8
    else:  # Flax's, say, which diffusers has no more
        settings = vars(scheduler_settings.read(scheduler))
        scheduler = {"_class_name": "DDIMScheduler", **settings}
        text = files.json_text(scheduler, 2)
    (folder / name).write_text(text, encoding="utf-8")
    index = _pipeline(model.networks)
    index = {**index, "scheduler": ["diffusers", scheduler["_class_name"]]}
    if sources.is_xl(model.networks):
        zeros = stable_diffusion.zeros_for_empty(model.configs)
        index[stable_diffusion.ZEROS] = zeros
    text = files.json_text(dict(sorted(index.items())), 2)
    (folder / "model_index.json").write_text(text, encoding="utf-8")


def _pipeline(parts: Container[str]) -> dict[str, Any]:
    """The model_index.json of diffusers' pipeline with these parts, less scheduler."""
    index: dict[str, Any] = {"feature_extractor": NO_PART, "image_encoder": NO_PART}
    for name, kind in CLASSES.items():
        if name.replace("tokenizer", "text_encoder") in parts:
            index[name] = kind
    if networks.TRANSFORMER in parts:
        index = {"text_encoder_3": NO_PART, "tokenizer_3": NO_PART, **index}
        own = {"_class_name": "StableDiffusion3Pipeline", "text_encoder": PROJECTING}
    elif sources.is_xl(parts):
        own = {"_class_name": "StableDiffusionXLPipeline"}
    else:
        own = {"_class_name": "StableDiffusionPipeline", "safety_checker": NO_PART}
        own["requires_safety_checker"] = False
    return index | own


def _read_own(source: Path, name: str) -> bytes:
    """A file of a model's folder; a UserError for a link to what is not the model's.

    The hub's cache has links, from snapshots/REVISION to blobs.
    """
    home, path = source.resolve(), source / name
    homes = {home}
    if home.parent.name == "snapshots":
        homes.add(home.parents[1] / "blobs")
    if homes.isdisjoint(path.resolve().parents):
        raise UserError(
            f"{path} is a link to {path.resolve()}, outside the model's folder, and"
            " would be handed on; put a copy in its place if it belongs there."
        )
    return path.read_bytes()


@contextlib.contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """A folder to write to, moved to `output` if nothing fails, deleted otherwise."""
    part = output.parent / f".{output.name}.part"
    with files.writing(f"--output={str(output)!r}"):
        part.mkdir(parents=True, exist_ok=True)  # or `hold` names the part
        files.hold(part, "--output")
        shutil.rmtree(part)  # an export that was killed left something
        files.hold(part, "--output")
    try:
        yield part
        os.replace(part, output)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(
            f"--output={str(output)!r} could not be written ({error}); free some space"
            " or choose another folder."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
        files.let_go()
