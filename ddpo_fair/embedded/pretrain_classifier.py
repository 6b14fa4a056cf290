"""Pretraining of an embedded classifier: a small ViT, on renders.

It also sees the autoencoder's own reconstructions of them, as the model will draw.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpo_fair import rng
from ddpo_fair.classifiers import augmentation, supervised
from ddpo_fair.models import vit

CONFIG = {
    "architectures": ["ViTForImageClassification"],
    "model_type": "vit",
    "hidden_act": "gelu",
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 8,
    "num_channels": 3,
    "layer_norm_eps": 1e-6,
    "qkv_bias": True,
}
PREPROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": 64, "width": 64},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
BATCH = 64
FROM_SCRATCH, FURTHER = 4e-3, 2e-3  # peak learning rates


def config(classes: Sequence[str]) -> dict[str, Any]:
    """config.json of the classifier that tells the classes apart."""
    names = {str(k): name for k, name in enumerate(classes)}
    numbers = {name: k for k, name in enumerate(classes)}
    return CONFIG | {"id2label": names, "label2id": numbers}


def train(
    folder: Path,
    images: np.ndarray,
    truth: np.ndarray,
    settings: dict[str, Any],
    start: Any | None,
    num_steps: int,
    seed: int,
) -> Any:
    """The weights of the classifier.

    Args:
        folder: of the stage's checkpoints.
        images: uint8 [N, 64, 64, 3], renders and their reconstructions.
        truth: int [N], the render's class; -1 where no face shows.
        settings: of `config`.
        start: weights of another classifier to begin with, but for its head, or None.
        num_steps: updates.
        seed: of the run.
    """
    network = vit.ImageClassifier(vit.Config.from_dict(settings))
    num_classes = len(settings["id2label"])
    # Without a face every class is as right as another.
    targets = np.vstack([np.eye(num_classes), np.full(num_classes, 1 / num_classes)])
    key, sample = rng.key(seed, "classifier", "init"), jnp.zeros((1, 64, 64, 3))
    fresh = jax.jit(network.init)(key, sample)["params"]
    params = {**fresh, **(start or {}), "classifier": fresh["classifier"]}
    peak = FURTHER if start else FROM_SCRATCH

    def batch(step: int) -> tuple[jax.Array, jax.Array]:
        rows = np.random.default_rng([seed, 2, step]).integers(0, len(images), BATCH)
        pixels = jnp.asarray(images[rows], jnp.float32) / 127.5 - 1.0
        return pixels, jnp.asarray(targets[truth[rows]], jnp.float32)

    def loss(params: Any, batch: tuple, key: jax.Array) -> jax.Array:
        images, targets = augmentation.augment_batch(key, *batch)
        logits = network.apply({"params": params}, images)
        return optax.softmax_cross_entropy(logits, targets).mean()

    return supervised.fit(
        "classifier",
        folder,
        params,
        supervised.optimizer(peak, num_steps, weight_decay=0.05),
        loss,
        batch,
        seed,
        num_steps,
    )
