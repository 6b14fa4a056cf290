"""Training of an image classifier on labelled images, from scratch or further."""

import dataclasses
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpo_fair import files, rng
from ddpo_fair.classifiers import augmentation, classes, classifier, supervised
from ddpo_fair.classifiers.labelled_images import Split
from ddpo_fair.errors import UserError, shown
from ddpo_fair.models import tensor_files, vit, weights

SETTINGS, WORK = "training.json", "training"
WEIGHTS = "model.safetensors"
WEIGHT_DECAY = 0.05
TEMPERATURES = np.exp(np.linspace(-1.5, 1.5, 301))  # tried, each 1 % above the last


@dataclasses.dataclass(frozen=True)
class Start:
    """A classifier to begin with: its parsed files, its network and weights."""

    config: dict[str, Any]  # config.json, with the final labels
    preprocessor: dict[str, Any]  # preprocessor_config.json
    classifier: classifier.Classifier
    columns: np.ndarray  # int [K], the label of each class of the data
    note: str  # a sentence on what it is


def begin(
    folder: Path,
    names: tuple[str, ...],
    seed: int,
    image_size: int | None = None,
    attribute: classes.Attribute = classes.GENDER,
) -> Start:
    """A classifier of any labels, whose head is kept if it has the same classes.

    A new head's labels will be the `names` of the attribute's classes in the data, its
    weights the `seed`'s. With an image size, in pixels, a multiple of 8, all weights
    are random, of the folder's architecture; else they are the folder's.
    """
    config = weights.read_config(folder)
    given = vit.Config.from_dict(config)
    preprocessor = tensor_files.read_json(folder / classifier.PREPROCESSOR)
    columns = None
    if image_size is None:
        columns = _columns(attribute, given.id2label, names)
    note = f"From {folder}, with its head for {', '.join(given.id2label)}"
    if columns is None:
        note = f"From {folder}, with a new head for {', '.join(names)}"
        config |= {
            "id2label": {str(i): name for i, name in enumerate(names)},
            "label2id": {name: i for i, name in enumerate(names)},
        }
    if image_size is not None:
        note = "From scratch"
        config["image_size"] = image_size
        preprocessor["size"] = {"height": image_size, "width": image_size}
    side = image_size or given.image_size
    if side % 8:
        flag = f"--image_size={side}", f"give {8 * round(side / 8)}"
        start = f"--start={shown(str(folder))}: image_size={side}", "choose another"
        setting, fix = flag if image_size else start
        raise UserError(f"{setting} must be a multiple of 8; {fix}.")
    found = classifier.of_configs(folder, config, preprocessor, attributes=(attribute,))
    params = {}
    if image_size is None:
        shape = classifier.input_shape(given)
        template = weights.init_template(vit.ImageClassifier(given), shape)
        params = weights.load(folder, template)
    if columns is None:
        key = rng.key(seed, "classifier", "init")
        images = jnp.zeros(classifier.input_shape(found.network.config))
        fresh = jax.jit(found.network.init)(key, images)["params"]
        columns = np.arange(len(names))
        params = {**fresh, **params, "classifier": fresh["classifier"]}
    found = dataclasses.replace(found, params=params)
    return Start(config, preprocessor, found, columns, note)


def _columns(
    attribute: classes.Attribute, labels: tuple[str, ...], names: tuple[str, ...]
) -> np.ndarray | None:
    """The label of each class of the data, if both are the attribute's; else None."""
    old, new = attribute.meanings(labels), attribute.meanings(names)
    if sorted(old) == sorted(new) == list(range(len(attribute.classes))):
        return np.array([int(np.flatnonzero(old == meaning)[0]) for meaning in new])
    return None


def hold_out(
    classes: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to keep: as many of each class there is; int [n] each.

    Classes are int [N]; `share` is of the smallest one, a UserError if that is too
    small to be divided.
    """
    kinds, counts = np.unique(classes, return_counts=True)
    size = max(1, int(share * counts.min()))
    if counts.min() <= size:
        raise UserError(
            f"Class {kinds[counts.argmin()]} has {counts.min()} images, of which {size}"
            " would be held out; give more images, or a smaller --holdout."
        )
    kept = []
    for kind in kinds:
        rows = np.flatnonzero(classes == kind)
        kept.append(np.random.default_rng([seed, 1, kind]).permutation(rows)[:size])
    kept = np.sort(np.concatenate(kept))
    return np.setdiff1d(np.arange(len(classes)), kept), kept


def train(
    start: Start,
    split: Split,
    rows: np.ndarray,
    folder: Path,
    *,
    num_steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> Any:
    """The trained weights; every class of the rows, int [n], is drawn equally often.

    So the classifier has no prejudice of its own about how frequent a class is. It
    goes on from the folder's checkpoints; the learning rate is Muon's, at its peak.
    """
    by_class = [rows[split.classes[rows] == k] for k in range(len(start.columns))]
    present = [k for k, found in enumerate(by_class) if len(found)]
    num_labels = len(start.config["id2label"])

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([seed, 2, step])
        kinds = draw.permutation(np.arange(batch_size) % len(present))
        drawn = [present[kind] for kind in kinds]
        chosen = [by_class[k][draw.integers(len(by_class[k]))] for k in drawn]
        targets = np.eye(num_labels, dtype=np.float32)[start.columns[drawn]]
        return unit_pixels(split, chosen), targets

    def loss(params: Any, batch: tuple, key: jax.Array) -> jax.Array:
        images, targets = augmentation.augment_batch(key, *batch)
        found = logits(start.classifier, params, images)
        return optax.softmax_cross_entropy(found, targets).mean()

    return supervised.fit(
        "classifier",
        folder,
        jax.tree.map(jnp.asarray, start.classifier.params),
        supervised.optimizer(learning_rate, num_steps, WEIGHT_DECAY),
        loss,
        batch,
        seed,
        num_steps,
    )


def calibrate(start: Start, params: Any, split: Split, rows: np.ndarray) -> Any:
    """The weights after temperature scaling on held-out rows, int [n]."""
    on_device = jax.jit(partial(logits, start.classifier))
    found = [
        np.asarray(on_device(params, unit_pixels(split, part)))
        for part in np.array_split(rows, max(1, len(rows) // 64))
    ]
    labels = start.columns[split.classes[rows]]
    return calibrated(params, np.concatenate(found), labels)


def calibrated(params: Any, logits: np.ndarray, labels: np.ndarray) -> Any:
    """The weights with the best temperature folded into the head `classifier`.

    Logits [N, K] and labels int [N] are of images that were not trained on. The
    temperature makes the labels likeliest (Guo et al. 2017, ICML).
    """
    right = np.take_along_axis(logits, np.int64(labels)[:, None], axis=1)
    behind = logits - right  # of each class, behind the true one
    losses = [np.logaddexp.reduce(behind / t, axis=1).mean() for t in TEMPERATURES]
    best = float(TEMPERATURES[int(np.argmin(losses))])
    head = jax.tree.map(lambda leaf: leaf / best, params["classifier"])
    return {**params, "classifier": head}


def unit_pixels(split: Split, rows: np.ndarray | list[int]) -> np.ndarray:
    """Images float32 [n, H, W, 3] in [-1, 1] of rows [n]."""
    return split.pixels(rows).astype(np.float32) / np.float32(127.5) - 1


def logits(model: classifier.Classifier, params: Any, images: jax.Array) -> jax.Array:
    """Logits [N, labels] of images [N, H, W, 3] in [-1, 1] of the network's size."""
    scaled = (images + 1) * np.float32(127.5 * model.preprocessing.scale)
    inputs = classifier.normalise(model.preprocessing, scaled)
    return model.network.apply({"params": params}, inputs)


def save(folder: Path, start: Start, params: Any) -> None:
    """Writes the official folder, which `config.classifier` takes."""
    text = files.json_text(dict(sorted(start.preprocessor.items())), indent=2)
    files.replace(folder / classifier.PREPROCESSOR, text)
    weights.save(folder, params, start.config, WEIGHTS)
    shutil.rmtree(folder / WORK, ignore_errors=True)


def bind(folder: Path, settings: dict[str, Any]) -> None:
    """Makes a folder that of one training; a UserError if it is another's, or done."""
    files.bind(folder / SETTINGS, settings, "--output")
    if (folder / WEIGHTS).exists():
        raise UserError(
            f"--output={shown(str(folder))} holds the finished classifier of these"
            " settings; give another folder to train anew."
        )
