"""Models with the shapes of their weights instead of weights: nothing is read."""

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ddpo_fair.classifiers import classifier, resize
from ddpo_fair.diffusion import stable_diffusion
from ddpo_fair.errors import UserError
from ddpo_fair.models import options, sources, tensor_files, vit, weights
from ddpo_fair.training import assembly


def model(config: ConfigDict) -> stable_diffusion.Model:
    """The text-to-image model of a config; it has no tokenizer.

    Raises:
        UserError: if it is neither on this machine nor known by its name.
    """
    configs = _known(config.model)
    folder = Path()
    if configs is None:
        folder = _folder("model", config.model)
        configs = {
            part: weights.read_config(folder / part)
            for part in ("unet", "vae", "text_encoder")
        }
        path = folder / "scheduler" / "scheduler_config.json"
        configs["scheduler"] = tensor_files.read_json(path)
    dtype = jnp.dtype(config.dtype)
    with options.of(folder):
        networks = stable_diffusion.networks_of(
            configs, dtype, assembly.remat_of(config)
        )
    shapes = stable_diffusion.templates_of(*networks)
    return stable_diffusion.Model(folder, *networks, None, configs, shapes)


def judge(config: ConfigDict) -> classifier.Classifier:
    """The classifier of a config.

    Raises:
        UserError: as for `model`.
    """
    known = _known(config.classifier)
    if known is None:
        folder = _folder("classifier", config.classifier)
        said = weights.read_config(folder)
        with options.of(folder):
            settings = vit.Config.from_dict(said)
        preprocessing = classifier.read_preprocessing(folder, settings)
        classes = classifier.label_classes(settings.id2label, folder)
    else:
        settings = vit.Config.from_dict(known)
        size, half = (settings.image_size,) * 2, (0.5,) * 3
        preprocessing = classifier.Preprocessing(
            size, resize.BILINEAR, 1 / 255, half, half
        )
        classes = np.eye(2, dtype=np.float32)
    network = vit.ImageClassifier(settings, jnp.dtype(config.dtype))
    image = (1, settings.image_size, settings.image_size, settings.num_channels)
    shapes = weights.init_template(network, image)
    return classifier.Classifier(network, preprocessing, classes, shapes)


def _folder(field: str, reference: str) -> Path:
    folder = sources.local_folder(field, reference)
    if folder is None:
        raise UserError(
            f"--plan: {field}={reference!r} is not on this machine, and its size is"
            f" known for {', '.join(_read()['names'])} alone; nothing is downloaded"
            " for a plan. Give a local folder."
        )
    return folder


def _known(reference: str) -> dict[str, Any] | None:
    """Architecture of a published model, None for others."""
    known = _read()
    return known.get(known["names"].get(reference.partition("@")[0]))


def _read() -> dict[str, Any]:
    path = Path(__file__).with_name("architectures.json")
    return json.loads(path.read_text(encoding="utf-8"))
