"""The image classifier: its preprocessing, and which of its labels mean what.

Whatever order its labels have, probabilities leave this module as the attribute's
classes: (female, male).
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import parallel
from ddpo_fair.classifiers import augmentation, classes, resize, typology
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import options, tensor_files, vit, weights

PREPROCESSOR = "preprocessor_config.json"
METHODS = (resize.NEAREST, resize.BILINEAR, resize.BICUBIC)
# transformers' of ViTImageProcessor, where the file is silent or says null
DEFAULTS = {
    "do_resize": True,
    "resample": resize.BILINEAR,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}
PROCESSORS = ("ViTFeatureExtractor", "ViTImageProcessor")  # whose defaults those are
PROCESSORS += tuple(f"ViTImageProcessor{backend}" for backend in ("Fast", "Pil"))
# What says nothing about an image's pixels, unless an option above asks for it.
UNREAD = ("crop_size", "data_format", "default_to_square", "device", "do_convert_rgb")
UNREAD += ("disable_grouping", "input_data_format", "processor_class", "return_tensors")
TYPES = ("image_processor_type", "feature_extractor_type")


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How pixels 0 to 255 become the network's input; preprocessor_config.json."""

    size: tuple[int, int]  # height, width
    method: int  # PIL's number of the filter
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A loaded classifier of one attribute or several, with K classes in all."""

    network: vit.ImageClassifier  # gives a logit of each label
    preprocessing: Preprocessing
    classes: tuple[tuple[float, ...], ...]  # [labels, K], sums labels into classes
    params: Any = dataclasses.field(compare=False)  # equal ones share a program
    # Whose classes these are, one attribute after the other.
    attributes: tuple[classes.Attribute, ...] = (classes.GENDER,)


AnyClassifier = Classifier | typology.Typology


def load(
    folder: str | os.PathLike,
    dtype: Any = jnp.float32,
    attributes: Sequence[classes.Attribute] = (classes.GENDER,),
    with_weights: bool = True,
) -> Classifier:
    """The classifier of a folder in transformers' layout, or with shapes for weights.

    A UserError if its labels do not fit an attribute's classes, its preprocessing is
    not supported, or its weights do not fit; `dtype` is of the computation.
    """
    folder = pathlib.Path(folder)
    configs = weights.read_config(folder), tensor_files.read_json(folder / PREPROCESSOR)
    found = of_configs(folder, *configs, dtype, attributes)
    if not with_weights:
        return found
    return dataclasses.replace(found, params=weights.load(folder, found.params))


def of_configs(
    folder: str | os.PathLike,
    config_dict: dict[str, Any],
    preprocessor: dict[str, Any],
    dtype: Any = jnp.float32,
    attributes: Sequence[classes.Attribute] = (classes.GENDER,),
) -> Classifier:
    """The classifier of two parsed files, with shapes for its weights; see `load`."""
    folder = pathlib.Path(folder)
    with options.of(folder):
        config = vit.Config.from_dict(config_dict)
    labels, found = config.id2label, []  # of each attribute, which labels mean what
    for one in attributes:
        if misfit := one.misfit(labels):
            raise UserError(
                f"classifier={str(folder)!r} has the labels {shown(', '.join(labels))},"
                f" of which {misfit}. Images must be classified as"
                f" {' or '.join(one.classes)}, or else none; if its labels are only"
                " named otherwise, say so in id2label of its config.json."
            )
        found.append(classes.one_hot(one.meanings(labels), len(one.classes)))
    preprocessing = read_preprocessing(folder / PREPROCESSOR, preprocessor, config)
    network = vit.ImageClassifier(config, dtype)
    shapes = weights.init_template(network, input_shape(config))
    membership = tuple(map(tuple, np.concatenate(found, axis=1).tolist()))
    return Classifier(network, preprocessing, membership, shapes, tuple(attributes))


def input_shape(config: vit.Config) -> tuple[int, int, int, int]:
    """Shape of one preprocessed image."""
    return (1, config.image_size, config.image_size, config.num_channels)


def read_preprocessing(
    path: pathlib.Path, content: dict[str, Any], config: vit.Config
) -> Preprocessing:
    """What preprocessor_config.json says; a UserError for what is not supported."""
    given = {name: value for name, value in content.items() if value is not None}
    side = config.image_size
    content = DEFAULTS | {"size": side} | given
    size, method = content["size"], content["resample"]
    if isinstance(size, dict):
        size = [size.get("height"), size.get("width")]
    scale = content["rescale_factor"] if content["do_rescale"] else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if content["do_normalize"]:
        mean, std = content["image_mean"], content["image_std"]
    kind = next((content[name] for name in TYPES if name in content), PROCESSORS[0])
    known = kind in PROCESSORS or given.keys() >= {*DEFAULTS, "size"}
    flags = ("do_rescale", "do_normalize")
    others = given.keys() - {*DEFAULTS, "size", *UNREAD, *TYPES}
    least = 1e-5  # 1/65535 for 16 bits
    most = max(255 * scale, 1) if _numbers([scale], 1, least, 1) else 255  # of a pixel
    filters = "0 (nearest), 2 (bilinear) or 3 (bicubic)"
    means, deviations = f"numbers, {-most:g} to {most:g}", f"0.01 to {most:g}"
    rules = (
        (TYPES[0], known, f"{PROCESSORS[1]}, or size and all of {', '.join(DEFAULTS)}"),
        ("do_resize", content["do_resize"] is True, "true"),
        *((name, type(content[name]) is bool, "true or false") for name in flags),
        ("size", size in (side, [side, side]), f"image_size={side} of config.json"),
        ("resample", type(method) is int and method in METHODS, filters),
        ("rescale_factor", _numbers([scale], 1, least, 1), f"from {least:g} to 1"),
        ("image_mean", _numbers(mean, 3, -most, most), f"a list of three {means}"),
        ("image_std", _numbers(std, 3, 0.01, most), f"a list of three, {deviations}"),
        *((n, n[:1] == "_" or given[n] is False, "false") for n in sorted(others)),
    )
    fix = "write there how the classifier was trained; nothing else is supported"
    options.check(str(path), content, rules, fix)
    return Preprocessing((side, side), method, float(scale), tuple(mean), tuple(std))


def _numbers(values: Any, count: int, least: float, most: float) -> bool:
    """Whether they are a list of `count` numbers within bounds."""
    return (
        isinstance(values, list)
        and len(values) == count
        and all(type(x) in (int, float) and least <= x <= most for x in values)
    )


def preprocess(settings: Preprocessing, images: jax.Array) -> jax.Array:
    """Pixel values [N, h, w, 3] of images [N, H, W, 3] in [0, 1], in 256 levels."""
    pixels = resize.resize(jnp.round(images * 255.0), *settings.size, settings.method)
    return normalise(settings, pixels * settings.scale)


def normalise(settings: Preprocessing, scaled: jax.Array) -> jax.Array:
    """Images [N, h, w, 3], already scaled, by the mean and std of each channel."""
    mean = jnp.asarray(settings.mean, jnp.float32)[None, None, None]
    std = jnp.asarray(settings.std, jnp.float32)[None, None, None]
    return (scaled - mean) / std


def probabilities(
    classifier: AnyClassifier, params: Any, images: jax.Array, views: int = 1
) -> jax.Array:
    """Float32 [N, K], of the attributes' classes, for images [N, H, W, 3] in [0, 1].

    Those of an attribute sum to 1 unless some labels mean none of its classes. With
    several views they are the mean over the images and augmentations of them, the same
    for all images: where these change an answer, it becomes less confident.
    """
    if isinstance(classifier, typology.Typology):
        return typology.probabilities(images)
    if views > 1:
        keys = jax.random.split(jax.random.key(views), views - 1)
        others = jax.lax.map(
            lambda key: probabilities(classifier, params, _view(key, images)), keys
        )
        itself = probabilities(classifier, params, images)
        return (itself + others.sum(axis=0)) / views
    pixel_values = preprocess(classifier.preprocessing, images)
    logits = classifier.network.apply({"params": params}, pixel_values)
    membership = jnp.asarray(classifier.classes, jnp.float32)
    return jnp.matmul(jax.nn.softmax(logits), membership, precision="highest")


def _view(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] in [0, 1], all augmented alike."""
    augmented = jax.vmap(augmentation.augment, (None, 0))(key, 2 * images[:, None] - 1)
    return (augmented[:, 0] + 1) / 2


def classify(
    classifiers: tuple[AnyClassifier, ...],
    params: tuple[Any, ...],
    images: jax.Array,
    views: int = 1,
) -> jax.Array:
    """Probabilities float32 [D, n, K] of images [D, n, H, W, 3], not waited for.

    Images are in [0, 1]; K counts the classes of all classifiers, see `by_attribute`.
    The classifiers are compiled at their first use; their own params are not used.
    """
    return program(classifiers, parallel.made_for.value, views)(params, images)


@functools.lru_cache(maxsize=4)
def program(
    classifiers: tuple[AnyClassifier, ...], target: parallel.Target | None, views: int
) -> Callable[..., jax.Array]:
    """The pmapped `classify` of classifiers, for `parallel.made_for`'s target."""

    def answers(params: tuple[Any, ...], images: jax.Array) -> jax.Array:
        each = zip(classifiers, params, strict=True)
        found = [probabilities(*one, images, views) for one in each]
        return jnp.concatenate(found, axis=1)

    return parallel.pmap(answers, in_axes=(None, 0))


def by_attribute(
    classifiers: Sequence[AnyClassifier], probabilities: np.ndarray
) -> dict[str, np.ndarray]:
    """What `classify` returns, [N, K], as the probabilities of each attribute."""
    attributes = [one for each in classifiers for one in each.attributes]
    ends = np.cumsum([len(one.classes) for one in attributes])[:-1]
    parts = np.split(probabilities, ends, axis=1)
    return {one.name: part for one, part in zip(attributes, parts, strict=True)}
