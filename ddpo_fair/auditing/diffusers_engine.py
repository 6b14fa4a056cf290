"""Images that PyTorch's diffusers draws, of whatever pipeline it can load.

The second engine of an audit, extra `torch`: models that our own networks do not fit.
"""

import inspect
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from ddpo_fair import files
from ddpo_fair.auditing import drawn_images, image_list
from ddpo_fair.errors import UserError, first_line, shown
from ddpo_fair.evaluation import evaluation_parts
from ddpo_fair.models import lora_files, sources

INDEX = "model_index.json"


def folder(model: str) -> Path:
    """The local folder of --model, downloaded if need be: safetensors, no code.

    Raises:
        UserError: if it cannot be had, or brings code of its own.
    """
    _, diffusers = _packages()
    place = sources.local_folder("model", model)
    if place is None:
        name, _, revision = model.partition("@")
        how = {"revision": revision or None, "use_safetensors": True}
        try:
            place = Path(diffusers.DiffusionPipeline.download(name, **how))
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


def fingerprint(model: str) -> str:
    """Of all the files that a pipeline may read."""
    place = folder(model)
    found = (x for kind in ("json", "txt", "model") for x in place.rglob(f"*.{kind}"))
    read = sorted({*found, *place.rglob("*.safetensors")})
    return sources.fingerprint({x.relative_to(place).as_posix(): x for x in read})[0]


def plan(
    model: str,
    lora: str | None,
    dtype: str,
    number: int,
    prompts: Sequence[str],
    **settings: float | None,
) -> dict[str, Any]:
    """All that decides what an image is; reads no weights but for their fingerprint.

    Args:
        model: --model.
        lora: --lora, a *.safetensors or its folder.
        dtype: of drawing, "float32" or "bfloat16".
        number: --seed.
        prompts: [P].
        settings: of `draw`.

    Raises:
        UserError: if that cannot be drawn.
    """
    adapters = ""
    if lora is not None:
        file = _adapters(lora)
        adapters = sources.fingerprint({file.name: file})[0]
    return {
        "engine": "diffusers",
        "model": model,
        "fingerprint": fingerprint(model),
        "lora": adapters,
        "dtype": dtype,
        "seed": number,
        "settings": settings,
        "prompts": tuple(prompts),
    }


def draw_all(
    output: Path, planned: dict[str, Any], lora: str | None, num_images: int, batch: int
) -> image_list.ImageList:
    """Draws what a folder has not yet, as `drawn_images.draw`; returns its images."""
    names = drawn_images.begin(output, planned, num_images)
    folder, pipeline = output / drawn_images.IMAGES, None
    bar = tqdm.tqdm(total=len(names) * num_images, desc="drawing", disable=None)
    for text, own in zip(planned["prompts"], names, strict=True):
        missing = [k for k, name in enumerate(own) if not (folder / name).is_file()]
        bar.update(num_images - len(missing))
        for first in range(0, len(missing), batch):
            if pipeline is None:
                pipeline = load(planned["model"], lora, planned["dtype"])
            numbers = missing[first : first + batch]
            seeds = [seed(planned["seed"], text, number) for number in numbers]
            images = draw(pipeline, text, seeds, **planned["settings"])
            for number, image in zip(numbers, images, strict=True):
                evaluation_parts.save_image(folder / own[number], image)
            bar.update(len(numbers))
    bar.close()
    return image_list.of_folder(folder, None, str(output / drawn_images.TABLE))


def load(model: str, lora: str | None = None, dtype: str = "float32") -> Any:
    """The pipeline of --model with the adapters of --lora, on the GPU if there is one.

    Its safety checker, which would put black images in the place of some, is left out.

    Raises:
        UserError: if diffusers cannot load it, or it draws no images of a prompt.
    """
    torch, diffusers = _packages()
    diffusers.utils.logging.set_verbosity_error()
    place = folder(model)
    try:
        pipeline = diffusers.DiffusionPipeline.from_pretrained(
            place,
            use_safetensors=True,
            trust_remote_code=False,
            torch_dtype=getattr(torch, dtype),
        )
        if lora is not None:
            file = _adapters(lora)
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

    Args:
        pipeline: of `load`.
        prompt: the text.
        seeds: of `seed`.
        settings: num_inference_steps, guidance_scale and the like; None for its own.

    Raises:
        UserError: if it has no such setting, or cannot draw.
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
        with torch.inference_mode():
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


def _adapters(lora: str) -> Path:
    """The file of --lora, which may be its folder."""
    file = files.given("--lora", lora)
    file = file / lora_files.DIFFUSERS if file.is_dir() else file
    if file.suffix != ".safetensors" or not file.is_file():
        raise UserError(
            f"--lora={shown(lora)} is no *.safetensors and no folder with"
            f" {lora_files.DIFFUSERS}; give one."
        )
    return file


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
    except ImportError as error:
        raise UserError(
            f"--engine=diffusers needs the packages torch and diffusers ({error}):"
            ' pip install "ddpo_fair[torch]".'
        ) from error
    return torch, diffusers
