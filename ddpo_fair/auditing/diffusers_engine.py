"""Images that PyTorch's diffusers draws, of whatever pipeline it can load.

The second engine of an audit, extra `torch`: models that our own networks do not fit.
"""

import inspect
import json
import warnings
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ddpo_fair import files
from ddpo_fair.auditing import drawn_images, image_list
from ddpo_fair.auditing.drawn_images import Plan
from ddpo_fair.errors import UserError, first_line, shown
from ddpo_fair.evaluation import evaluation_parts
from ddpo_fair.models import lora_files, sources, tensor_files

INDEX = "model_index.json"


def folder(model: str, variant: str = "") -> Path:
    """The local folder of --model, downloaded if need be: safetensors, no code.

    A UserError if it cannot be had, or brings code of its own.
    """
    _, diffusers = _packages()
    place = sources.local_folder("model", model)
    if place is None:
        name, _, revision = model.partition("@")
        how = {"revision": revision or None, "variant": variant or None}
        try:
            place = Path(
                diffusers.DiffusionPipeline.download(name, use_safetensors=True, **how)
            )
        except Exception as error:  # the hub's, the network's and diffusers' own
            raise _refusal(model, error) from error
    try:
        index = json.loads(files.content(place / INDEX))
        own = [str(x.relative_to(place)) for x in place.glob("*/*.py")]
        if own or not isinstance(index["_class_name"], str):
            raise ValueError(f"it brings code of its own ({(own or [INDEX])[0]})")
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise _refusal(model, error) from error
    return place


def prepare(
    planned: Plan, lora: str | None, batch: int | None
) -> drawn_images.Prepared:
    """A plan with the fingerprint of all that a pipeline may read, and what draws it.

    `batch` images are drawn together, None for one. A UserError if there is no model.
    """
    place = folder(planned.model, planned.variant)
    kinds = "json", "txt", "model", "safetensors"
    read = sorted({x for kind in kinds for x in place.rglob(f"*.{kind}")})
    paths = {x.relative_to(place).as_posix(): x for x in read}
    planned = planned._replace(fingerprint=sources.fingerprint(paths)["fingerprint"])
    return planned, partial(_draw_all, planned, lora, batch or 1)


def _draw_all(
    planned: Plan, lora: str | None, batch: int, output: Path, num_images: int
) -> image_list.ImageList:
    """Draws what a folder has not yet, as `drawn_images`; returns its images."""
    places = drawn_images.begin(output, planned, num_images)
    drawn = evaluation_parts.is_image
    missing = [[k for k, x in enumerate(own) if not drawn(x)] for own in places]
    if left := sum(map(len, missing)):
        pipeline = load(planned.model, lora, planned.dtype, planned.variant)
        print(drawn_images.opening(planned, places, str(pipeline.device)), flush=True)
        total = len(places) * num_images
        bar = tqdm.tqdm(total=total, initial=total - left, desc="drawing", disable=None)
        for text, own, rows in zip(planned.prompts, places, missing, strict=True):
            for first in range(0, len(rows), batch):
                numbers = rows[first : first + batch]
                seeds = [seed(planned.seed, text, number) for number in numbers]
                images = draw(
                    pipeline,
                    text,
                    seeds,
                    num_inference_steps=planned.steps,
                    guidance_scale=planned.guidance_scale,
                    eta=planned.eta,
                )
                for number, image in zip(numbers, images, strict=True):
                    evaluation_parts.save_image(own[number], image)
                bar.update(len(numbers))
        bar.close()
    return drawn_images.listed(output)


def load(
    model: str, lora: str | None = None, dtype: str = "float32", variant: str = ""
) -> Any:
    """The pipeline of --model with the adapters of --lora, on the GPU if there is one.

    Its safety checker, which would put black images in the place of some, is left out.
    A UserError if diffusers cannot load it, or it draws no images of a prompt.
    """
    torch, diffusers = _packages()
    place = folder(model, variant)
    index = tensor_files.read_json(place / INDEX)
    absent = {x: None for x, value in index.items() if value == [None, None]}
    try:
        with warnings.catch_warnings(action="ignore"):  # of its many models
            pipeline = diffusers.DiffusionPipeline.from_pretrained(
                place,
                use_safetensors=True,
                trust_remote_code=False,
                torch_dtype=getattr(torch, dtype),
                variant=variant or None,
                **absent,
            )
        if lora is not None:
            file = lora_files.find(lora)
            own = {"weight_name": file.name, "use_safetensors": True}
            pipeline.load_lora_weights(str(file.parent), **own)
        pipeline.to("cuda" if torch.cuda.is_available() else "cpu")
    except Exception as error:  # whatever its many models raise
        raise _refusal(model, error) from error
    parameters = inspect.signature(pipeline.__call__).parameters
    if not {"prompt", "generator"} <= parameters.keys() or "image" in parameters:
        kind = type(pipeline).__name__
        raise _refusal(model, TypeError(f"{kind} draws no images of a prompt alone"))
    if getattr(pipeline, "safety_checker", None) is not None:
        pipeline.safety_checker = None
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(
    pipeline: Any, prompt: str, seeds: Sequence[int], **settings: float | None
) -> list[np.ndarray]:
    """Images uint8 [H, W, 3] of a prompt, one of each seed, whatever stands beside it.

    The settings are num_inference_steps, guidance_scale and the like, None for the
    pipeline's own. A UserError if it has no such setting, or cannot draw.
    """
    torch, _ = _packages()
    given = {name: value for name, value in settings.items() if value is not None}
    known = inspect.signature(pipeline.__call__).parameters
    kind = type(pipeline).__name__
    if strange := given.keys() - known.keys():
        raise UserError(f"{kind} has no {', '.join(sorted(strange))}; leave it out.")
    # On the CPU, so that a seed's noise is the same on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    try:
        with warnings.catch_warnings(action="ignore"), torch.inference_mode():
            found = pipeline([prompt] * len(seeds), generator=generators, **given)
        return [np.asarray(image.convert("RGB")) for image in found.images]
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"{kind} needs more memory for {len(seeds)} images at once than there is"
            f" ({first_line(error)}); draw fewer together."
        ) from error
    except Exception as error:  # whatever its many models raise
        raise UserError(
            f"{kind} cannot draw {shown(prompt)} ({type(error).__name__}:"
            f" {first_line(error)}); give other settings, or another model."
        ) from error


def seed(seed: int, prompt: str, image: int) -> int:
    """The seed of an image of a prompt: none of another prompt has the same noise."""
    sequence = np.random.SeedSequence([seed, zlib.crc32(prompt.encode()), image])
    return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))


def _refusal(model: str, error: Exception) -> UserError:
    return UserError(
        f"--model={shown(model)} cannot be loaded by diffusers"
        f" ({type(error).__name__}: {first_line(error)}). Give a text-to-image pipeline"
        f" whose weights are safetensors: a folder with {INDEX}, or owner/name on the"
        " Hugging Face hub."
    )


def _packages() -> tuple[Any, Any]:
    try:
        import diffusers  # the extra `torch` may be missing
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"--engine=diffusers needs the packages torch and diffusers ({error}):"
            ' pip install "ddpo_fair[torch]".'
        ) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    return torch, diffusers
