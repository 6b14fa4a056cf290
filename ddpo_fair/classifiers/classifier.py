"""The image classifier: its preprocessing, and which of its labels mean what.

Whatever order its labels have, probabilities leave this module as (female, male).
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import parallel
from ddpo_fair.classifiers import classes, resize
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import options, tensor_files, vit, weights

PREPROCESSOR = "preprocessor_config.json"
METHODS = (resize.NEAREST, resize.BILINEAR, resize.BICUBIC)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pixels 0 to 255 become the network's input; preprocessor_config.json."""

    size: tuple[int, int]  # height, width
    method: int  # PIL's number of the filter
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Classifier:
    """A loaded classifier; `classes` float32 [labels, 2] sums labels into classes."""

    network: vit.ImageClassifier
    preprocessing: Preprocessing
    classes: np.ndarray
    params: Any


def load(folder: str | os.PathLike, dtype: Any = jnp.float32) -> Classifier:
    """The classifier of a folder in transformers' layout.

    Args:
        folder: with config.json, preprocessor_config.json and safetensors.
        dtype: of the computation.

    Raises:
        UserError: if no label means female or none means male, the preprocessing is
            not supported, or the weights do not fit.
    """
    folder = pathlib.Path(folder)
    config_dict = weights.read_config(folder)
    with options.of(folder):
        config = vit.Config.from_dict(config_dict)
    membership = label_classes(config.id2label, folder)
    preprocessing = read_preprocessing(folder, config)
    params = read_weights(folder, config)
    network = vit.ImageClassifier(config, dtype)
    return Classifier(network, preprocessing, membership, params)


def read_weights(folder: pathlib.Path, config: vit.Config) -> Any:
    """The weights in a folder; a UserError if they do not fit its config."""
    template = weights.init_template(vit.ImageClassifier(config), input_shape(config))
    return weights.load(folder, template)


def input_shape(config: vit.Config) -> tuple[int, int, int, int]:
    """Shape of one preprocessed image."""
    return (1, config.image_size, config.image_size, config.num_channels)


def label_classes(id2label: tuple[str, ...], folder: os.PathLike) -> np.ndarray:
    """Which labels mean female and which male: float32 [labels, 2] of 0 and 1.

    Args:
        id2label: names of the labels.
        folder: of the classifier, for messages.

    Raises:
        UserError: if there is none of either; lists the labels.
    """
    missing = classes.missing(id2label)
    if missing:
        raise UserError(
            f"classifier={str(folder)!r} has the labels {shown(', '.join(id2label))},"
            f" of which none means {' and none means '.join(missing)}. Images must be"
            " classified as female or male; if its labels are only named otherwise, say"
            " so in id2label of its config.json."
        )
    return classes.one_hot(classes.meanings(id2label), len(classes.CLASSES))


def read_preprocessing(folder: pathlib.Path, config: vit.Config) -> Preprocessing:
    """What preprocessor_config.json says.

    Raises:
        UserError: for a missing file or what is not supported.
    """
    path = folder / PREPROCESSOR
    content = tensor_files.read_json(path)
    if content.get("do_center_crop"):
        raise UserError(f"{path}: do_center_crop=true is not supported; use a ViT.")
    size = content.get("size", config.image_size)
    if isinstance(size, dict):
        size = (size.get("height"), size.get("width"))
    size = size if isinstance(size, tuple) else (size, size)
    if size != (config.image_size, config.image_size):
        raise UserError(
            f"{path}: size={content['size']!r} does not fit image_size="
            f"{config.image_size} of config.json; make them equal."
        )
    method = content.get("resample", resize.BILINEAR)
    if method not in METHODS:
        raise UserError(
            f"{path}: resample={method!r} is not supported; it must be 0"
            " (nearest), 2 (bilinear) or 3 (bicubic)."
        )
    normalises = content.get("do_normalize", True)
    scale = content.get("rescale_factor", 1 / 255)
    scale = scale if content.get("do_rescale", True) else 1.0
    # transformers' IMAGENET_STANDARD_MEAN and _STD, the default of ViTImageProcessor
    mean = content.get("image_mean", [0.5] * 3) if normalises else [0.0] * 3
    std = content.get("image_std", [0.5] * 3) if normalises else [1.0] * 3
    _check_numbers(path, "rescale_factor", [scale], 1)
    _check_numbers(path, "image_mean", mean, 3)
    _check_numbers(path, "image_std", std, 3)
    return Preprocessing(size, method, float(scale), tuple(mean), tuple(std))


def _check_numbers(path: pathlib.Path, name: str, values: Any, count: int) -> None:
    """Raises a UserError unless they are `count` finite numbers; 0 is a mean only."""
    numbers = values if isinstance(values, list) else []
    sound = [type(x) in (int, float) and abs(x) < math.inf for x in numbers]
    zero = name != "image_mean" and 0 in numbers
    if len(sound) != count or not all(sound) or zero:
        raise UserError(
            f"{path}: {name}={shown(values[0] if count == 1 else values)} must be"
            f" {'one number' if count == 1 else 'a list of three numbers'}"
            f"{'' if name == 'image_mean' else ', not 0'}; take the file from the"
            " model's own repository."
        )


def preprocess(settings: Preprocessing, images: jax.Array) -> jax.Array:
    """Pixel values [N, h, w, 3] of images [N, H, W, 3] in [0, 1].

    As the classifier would get the saved images: in 256 levels, resized as Pillow
    does it.
    """
    pixels = resize.resize(jnp.round(images * 255.0), *settings.size, settings.method)
    mean = jnp.asarray(settings.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(settings.std, jnp.float32)[None, None, None]
    return (pixels * settings.scale - mean) / std


def probabilities(classifier: Classifier, params: Any, images: jax.Array) -> jax.Array:
    """Float32 [N, 2], of (female, male), for images [N, H, W, 3] in [0, 1].

    They sum to 1 unless the classifier has further labels.
    """
    pixel_values = preprocess(classifier.preprocessing, images)
    logits = classifier.network.apply({"params": params}, pixel_values)
    return jnp.matmul(
        jax.nn.softmax(logits), jnp.asarray(classifier.classes), precision="highest"
    )


def classify(classifier: Classifier, params: Any, images: jax.Array) -> jax.Array:
    """Probabilities float32 [D, n, 2] of images [D, n, H, W, 3]; does not wait.

    Args:
        classifier: compiled at its first use; its own params are not used.
        params: of the network, the same on every device.
        images: in [0, 1].
    """
    return program(classifier)(params, images)


@functools.lru_cache(maxsize=4)
def program(classifier: Classifier) -> Callable[..., jax.Array]:
    """The pmapped `classify` of a classifier, of its other arguments."""
    return parallel.pmap(
        functools.partial(probabilities, classifier), in_axes=(None, 0)
    )
