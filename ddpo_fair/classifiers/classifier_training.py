"""Training of an image classifier on labelled pictures, from scratch or further."""

import concurrent.futures
import contextlib
import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ddpo_fair import rng
from ddpo_fair.classifiers import classes, classifier, resize
from ddpo_fair.classifiers.labelled_images import Split
from ddpo_fair.embedded import pretrain_classifier, pretrain_loop
from ddpo_fair.errors import UserError, differences, shown
from ddpo_fair.models import tensor_files, vit, weights

SETTINGS, WORK = "training.json", "training"
PREPROCESSOR = "preprocessor_config.json"
WEIGHT_DECAY = 0.05
AHEAD = 3  # batches that are read while the devices train


@dataclasses.dataclass(frozen=True)
class Settings:
    """What decides, beside data and start, which classifier comes out."""

    steps: int
    batch: int
    learning_rate: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Start:
    """A classifier to begin with.

    Attributes:
        config: of config.json, with the final labels.
        preprocessor: of preprocessor_config.json.
        classifier: its network and its weights.
        columns: int [K], the label of each class of the data.
        note: a sentence on what it is.
    """

    config: dict[str, Any]
    preprocessor: dict[str, Any]
    classifier: classifier.Classifier
    columns: np.ndarray
    note: str


def from_scratch(names: tuple[str, ...], image_size: int, seed: int) -> Start:
    """The embedded classifier's architecture with random weights.

    Args:
        names: of the classes of the data.
        image_size: pixels of a side, a multiple of 8.
        seed: of the weights.
    """
    config = {
        **pretrain_classifier.CONFIG,
        **_labels(names),
        "image_size": image_size,
    }
    size = {"height": image_size, "width": image_size}
    preprocessor = {**pretrain_classifier.PREPROCESSOR, "size": size}
    half = (0.5, 0.5, 0.5)  # mean and standard deviation, as PREPROCESSOR says
    settings = classifier.Preprocessing(
        (image_size, image_size), resize.BILINEAR, 1 / 255, half, half
    )
    network = vit.ImageClassifier(vit.Config.from_dict(config))
    found = classifier.label_classes(names, Path("--output"))
    loaded = classifier.Classifier(network, settings, found, _initial(network, seed))
    columns = np.arange(len(names))
    return Start(config, preprocessor, loaded, columns, "From scratch")


def from_folder(folder: Path, names: tuple[str, ...], seed: int) -> Start:
    """A classifier of any labels, whose head is kept if it tells the same classes.

    Args:
        folder: in transformers' layout.
        names: of the classes of the data.
        seed: of a new head's weights.

    Raises:
        UserError: if it cannot be read, or its pictures' sides are no multiple of 8.
    """
    config = weights.read_config(folder)
    before = vit.Config.from_dict(config)
    preprocessor = tensor_files.read_json(folder / PREPROCESSOR)
    if before.image_size % 8:
        raise UserError(
            f"--start={shown(str(folder))}: image_size={before.image_size} must be a"
            " multiple of 8; start from another classifier."
        )
    network = vit.ImageClassifier(before)
    template = weights.init_template(network, _input(before))
    params = weights.load(folder, template)
    settings = classifier.read_preprocessing(folder, before)
    columns = np.arange(len(names))
    old, new = (classes.meanings(n) for n in (before.id2label, names))
    if len(old) == len(new) == 2 and set(old) == set(new) == {0, 1}:
        columns = np.array([int(np.flatnonzero(old == m)[0]) for m in new])
        note = f"From {folder}, with its head for {', '.join(before.id2label)}"
    else:
        note = f"From {folder}, with a new head for {', '.join(names)}"
        config = {**config, **_labels(names)}
        network = vit.ImageClassifier(vit.Config.from_dict(config))
        params = {**params, "classifier": _initial(network, seed)["classifier"]}
    found = classifier.label_classes(network.config.id2label, folder)
    loaded = classifier.Classifier(network, settings, found, params)
    return Start(config, preprocessor, loaded, columns, note)


def hold_out(
    classes: np.ndarray, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train on, and rows to keep: as many of each class there is.

    Args:
        classes: int [N].
        share: of the smallest class.
        seed: of the choice.

    Raises:
        UserError: if a class is too small to be divided.
    """
    kinds, counts = np.unique(classes, return_counts=True)
    size = max(1, int(share * counts.min()))
    if counts.min() <= size:
        raise UserError(
            f"Class {kinds[counts.argmin()]} has {counts.min()} pictures, of which"
            f" {size} would be held out; give more pictures, or a smaller --holdout."
        )
    kept = []
    for kind in kinds:
        rows = np.flatnonzero(classes == kind)
        kept.append(np.random.default_rng([seed, 1, kind]).permutation(rows)[:size])
    kept = np.sort(np.concatenate(kept))
    return np.setdiff1d(np.arange(len(classes)), kept), kept


def train(
    start: Start, split: Split, rows: np.ndarray, settings: Settings, folder: Path
) -> Any:
    """The trained weights; every class is drawn equally often.

    So the classifier has no prejudice of its own about how frequent a class is.

    Args:
        start: where to begin.
        split: the pictures.
        rows: int [n], of it.
        settings: how.
        folder: of the checkpoints, to go on from.
    """
    of_class = [rows[split.classes[rows] == k] for k in range(len(start.columns))]
    of_class = [(k, found) for k, found in enumerate(of_class) if len(found)]
    num_labels = len(start.config["id2label"])

    def batch(step: int) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([settings.seed, 2, step])
        kinds = draw.permutation(np.arange(settings.batch) % len(of_class))
        chosen = [of_class[k][1][draw.integers(len(of_class[k][1]))] for k in kinds]
        images = split.pixels(chosen).astype(np.float32) / np.float32(127.5) - 1
        labels = start.columns[[of_class[k][0] for k in kinds]]
        return images, np.eye(num_labels, dtype=np.float32)[labels]

    with ahead(batch) as read:
        return pretrain_loop.fit(
            "classifier",
            folder,
            jax.tree.map(jnp.asarray, start.classifier.params),
            pretrain_loop.optimizer(
                settings.learning_rate, settings.steps, WEIGHT_DECAY
            ),
            lambda p, x, k: pretrain_classifier.loss(_classify(start), p, x, k),
            read,
            lambda step: rng.key(settings.seed, "classifier", step),
            settings.steps,
        )


@contextlib.contextmanager
def ahead(batch: Callable[[int], Any]) -> Iterator[Callable[[int], Any]]:
    """`batch`, with the next steps' batches read by threads meanwhile."""
    waiting: dict[int, concurrent.futures.Future] = {}
    pool = concurrent.futures.ThreadPoolExecutor(AHEAD)

    def read(step: int) -> Any:
        for one in range(step, step + AHEAD + 1):
            if one not in waiting:
                waiting[one] = pool.submit(batch, one)
        return waiting.pop(step).result()

    try:
        yield read
    finally:
        pool.shutdown(cancel_futures=True)


def temper(start: Start, params: Any, split: Split, rows: np.ndarray) -> Any:
    """The weights with the best temperature for held-out rows in the head."""
    classify = jax.jit(_classify(start))
    logits = []
    for part in np.array_split(rows, max(1, len(rows) // 64)):
        images = split.pixels(part).astype(np.float32) / np.float32(127.5) - 1
        logits.append(np.asarray(classify(params, images)))
    labels = start.columns[split.classes[rows]]
    return pretrain_classifier.temper(params, np.concatenate(logits), labels)


def save(folder: Path, start: Start, params: Any) -> None:
    """Writes the official folder, which `config.classifier` takes."""
    text = json.dumps(start.preprocessor, indent=2, sort_keys=True) + "\n"
    (folder / PREPROCESSOR).write_text(text, encoding="utf-8")
    weights.save(folder, params, start.config, "model.safetensors")
    shutil.rmtree(folder / WORK, ignore_errors=True)


def bind(folder: Path, said: dict[str, Any]) -> None:
    """Makes a folder that of one training, or finds that it is.

    Raises:
        UserError: if another was begun or finished there, or nothing can be written.
    """
    path = folder / SETTINGS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists() and any(folder.iterdir()):
            raise UserError(
                f"--output={shown(str(folder))} is not empty; give a new folder."
            )
        if not path.exists():
            part = path.with_name(f".{SETTINGS}.part")
            part.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path)
        before = dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(
            f"--output={shown(str(folder))} cannot be used ({error}); give another."
        ) from error
    if changes := differences(before, said):
        raise UserError(
            f"--output={shown(str(folder))} holds another training:"
            f" {'; '.join(changes)}. Give the same settings to go on with it, or"
            " another folder."
        )
    if (folder / "model.safetensors").exists():
        raise UserError(
            f"--output={shown(str(folder))} holds the finished classifier of these"
            " settings; give another folder to train anew."
        )


def _classify(start: Start) -> Callable[[Any, jax.Array], jax.Array]:
    """`(params, images in [-1, 1]) -> logits`."""
    settings = start.classifier.preprocessing
    scale = np.float32(127.5 * settings.scale)
    mean, std = (np.float32(x)[None, None, None] for x in (settings.mean, settings.std))

    def classify(params: Any, images: jax.Array) -> jax.Array:
        inputs = ((images + 1) * scale - mean) / std
        return start.classifier.network.apply({"params": params}, inputs)

    return classify


def _labels(names: tuple[str, ...]) -> dict[str, Any]:
    return {
        "id2label": {str(i): name for i, name in enumerate(names)},
        "label2id": {name: i for i, name in enumerate(names)},
    }


def _input(config: vit.Config) -> tuple[int, ...]:
    return (1, config.image_size, config.image_size, config.num_channels)


def _initial(network: vit.ImageClassifier, seed: int) -> Any:
    key = rng.key(seed, "classifier", "init")
    return jax.jit(network.init)(key, jnp.zeros(_input(network.config)))["params"]
