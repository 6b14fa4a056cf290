"""Pretraining of the embedded classifier: a small ViT that looks at faces, not colours.

The pictures are augmented so that reinforcement learning cannot please it by tinting,
blurring or a new background: hue, grey, blur, noise, shifts, the autoencoder's own
reconstructions, and pictures with no face in them, whose right answer is one half.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ddpo_fair import rng
from ddpo_fair.embedded import pretrain_loop
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
    "id2label": {"0": "female", "1": "male"},
    "label2id": {"female": 0, "male": 1},
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
PEAK_LEARNING_RATE = 4e-3
LABEL_SMOOTHING = 0.02
FACELESS = 1 / 16  # share of pictures without a face


def tint(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images with another hue, contrast and brightness; one in five is grey."""
    keys = jax.random.split(key, 5)
    n = len(images)
    mix = jnp.eye(3) + 0.22 * jax.random.normal(keys[0], (n, 3, 3))
    images = jnp.einsum("nhwc,ncd->nhwd", images, mix)
    grey = jax.random.uniform(keys[1], (n, 1, 1, 1)) < 0.2
    images = jnp.where(grey, images.mean(-1, keepdims=True), images)
    contrast = jnp.exp(0.2 * jax.random.normal(keys[2], (n, 1, 1, 1)))
    brightness = 0.15 * jax.random.normal(keys[3], (n, 1, 1, 3))
    return images * contrast + brightness


def blur(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images, half of them softened by a box of three pixels, some of them twice."""
    kernel = jnp.ones((3,)) / 3
    keys = jax.random.split(key, 2)
    for one in keys:
        soft = images
        for axis in (1, 2):
            rolled = [jnp.roll(soft, shift, axis) for shift in (-1, 0, 1)]
            soft = sum(w * x for w, x in zip(kernel, rolled, strict=True))
        strength = jax.random.uniform(
            one, (len(images), 1, 1, 1), minval=-1.0, maxval=1.0
        )
        images = images + jnp.maximum(strength, 0.0) * (soft - images)
    return images


def faceless(key: jax.Array, images: jax.Array) -> jax.Array:
    """Pictures of the same colours with no face: shuffled in patches, or heavy blur."""
    keys = jax.random.split(key, 2)
    n, height, width, channels = images.shape
    patches = images.reshape(n, 8, height // 8, 8, width // 8, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, 64, -1)
    shuffled = jax.random.permutation(keys[0], patches, axis=1, independent=False)
    shuffled = shuffled.reshape(n, 8, 8, height // 8, width // 8, channels)
    shuffled = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    coarse = jax.image.resize(images, (n, 5, 5, channels), "linear")
    coarse = jax.image.resize(coarse, images.shape, "cubic")
    choice = jax.random.uniform(keys[1], (n, 1, 1, 1)) < 0.5
    return jnp.where(choice, shuffled, coarse)


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images in [-1, 1] as the classifier must be able to read them."""
    keys = jax.random.split(key, 6)
    mirrored = jax.random.uniform(keys[0], (len(images), 1, 1, 1)) < 0.5
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    most = images.shape[1] // 16
    shift = jax.random.randint(keys[1], (2,), -most, most + 1)
    images = jnp.roll(images, shift, (1, 2))
    images = blur(keys[2], tint(keys[3], images))
    noise = 0.12 * jax.random.uniform(keys[4], (len(images), 1, 1, 1))
    return images + noise * jax.random.normal(keys[5], images.shape)


def loss(
    classify: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    batch: tuple[jax.Array, jax.Array],
    key: jax.Array,
) -> jax.Array:
    """Cross-entropy, smoothed; pictures without a face should answer all alike.

    Args:
        classify: `(params, images) -> logits [N, K]`.
        params: of the network.
        batch: images [N, H, W, 3] in [-1, 1], sides divisible by 8, and the wanted
            probabilities [N, K].
        key: of the augmentation.
    """
    images, targets = batch
    keys = jax.random.split(key, 2)
    count = int(len(images) * FACELESS)
    empty = faceless(keys[0], images[:count])
    images = augment(keys[1], jnp.concatenate([empty, images[count:]]))
    even = jnp.full_like(targets[:count], 1 / targets.shape[1])
    targets = jnp.concatenate([even, targets[count:]])
    targets = optax.smooth_labels(targets, LABEL_SMOOTHING)
    return optax.softmax_cross_entropy(classify(params, images), targets).mean()


def train(
    folder: Path, images: np.ndarray, male: np.ndarray, num_steps: int, seed: int
) -> Any:
    """The weights of the classifier.

    Args:
        folder: of the stage's checkpoints.
        images: uint8 [N, 64, 64, 3], renders and their reconstructions.
        male: float [N], 0 or 1, the render's ground truth; 1/2 where no face shows.
        num_steps: updates.
        seed: of the run.
    """
    network = vit.ImageClassifier(vit.Config.from_dict(CONFIG))
    sample = jnp.zeros((1, 64, 64, 3))
    params = jax.jit(network.init)(rng.key(seed, "classifier", "init"), sample)[
        "params"
    ]

    def classify(params: Any, images: jax.Array) -> jax.Array:
        return network.apply({"params": params}, images)

    def batch(step: int) -> tuple[jax.Array, jax.Array]:
        rows = np.random.default_rng([seed, 2, step]).integers(0, len(images), BATCH)
        pixels = jnp.asarray(images[rows], jnp.float32) / 127.5 - 1.0
        wanted = jnp.asarray(male[rows], jnp.float32)
        return pixels, jnp.stack([1.0 - wanted, wanted], 1)

    return pretrain_loop.fit(
        "classifier",
        folder,
        params,
        pretrain_loop.optimizer(PEAK_LEARNING_RATE, num_steps, weight_decay=0.05),
        lambda p, x, k: loss(classify, p, x, k),
        batch,
        lambda step: rng.key(seed, "classifier", step),
        num_steps,
    )


def temper(params: Any, logits: np.ndarray, labels: np.ndarray) -> Any:
    """The classifier with the best temperature folded into its head.

    Args:
        params: of the network.
        logits: [N, K], of pictures that were not trained on.
        labels: int [N], the truth.
    """
    temperatures = np.exp(np.linspace(-1.5, 1.5, 301))
    labels = np.asarray(labels, np.int64)
    right = np.take_along_axis(logits, labels[:, None], axis=1)
    behind = logits - right  # of each class, behind the true one
    losses = [np.logaddexp.reduce(behind / t, axis=1).mean() for t in temperatures]
    best = float(temperatures[int(np.argmin(losses))])
    head = jax.tree.map(lambda leaf: leaf / best, params["classifier"])
    return {**params, "classifier": head}
