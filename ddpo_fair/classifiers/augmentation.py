"""Augmentation: a classifier learns faces, not colours.

Images are changed so that reinforcement learning cannot please the classifier by
tinting, blurring or a new background: hue, grey, blur, noise, shifts, and images with
no face in them, for which all classes are right alike.
"""

import jax
import jax.numpy as jnp
import optax

LABEL_SMOOTHING = 0.02
FACELESS = 1 / 16  # share of images without a face


def tint(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] with another hue, contrast and brightness; some are grey."""
    keys = jax.random.split(key, 5)
    n = len(images)
    mix = jnp.eye(3)[None] + 0.22 * jax.random.normal(keys[0], (n, 3, 3))
    images = jnp.einsum("nhwc,ncd->nhwd", images, mix)
    grey = jax.random.uniform(keys[1], (n, 1, 1, 1)) < 0.2
    images = jnp.where(grey, images.mean(-1, keepdims=True), images)
    contrast = jnp.exp(0.2 * jax.random.normal(keys[2], (n, 1, 1, 1)))
    brightness = 0.15 * jax.random.normal(keys[3], (n, 1, 1, 3))
    return images * contrast + brightness


def blur(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3], half of them softened by a box of three pixels, or twice."""
    kernel = jnp.ones((3,)) / 3
    for one in jax.random.split(key, 2):
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
    """Images [N, H, W, C], sides 8's multiples, without a face: shuffled or blurred."""
    keys = jax.random.split(key, 2)
    n, height, width, channels = images.shape
    patches = images.reshape(n, 8, height // 8, 8, width // 8, channels)
    patches = patches.transpose(0, 1, 3, 2, 4, 5)
    patches = patches.reshape(n, 64, height * width // 64 * channels)
    shuffled = jax.random.permutation(keys[0], patches, axis=1, independent=False)
    shuffled = shuffled.reshape(n, 8, 8, height // 8, width // 8, channels)
    shuffled = shuffled.transpose(0, 1, 3, 2, 4, 5).reshape(images.shape)
    coarse = jax.image.resize(images, (n, 5, 5, channels), "linear")
    coarse = jax.image.resize(coarse, images.shape, "cubic")
    choice = jax.random.uniform(keys[1], (n, 1, 1, 1)) < 0.5
    return jnp.where(choice, shuffled, coarse)


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Images [N, H, W, 3] in [-1, 1] as the classifier must be able to read them."""
    keys = jax.random.split(key, 6)
    mirrored = jax.random.uniform(keys[0], (len(images), 1, 1, 1)) < 0.5
    images = jnp.where(mirrored, images[:, :, ::-1], images)
    most = images.shape[1] // 16
    shift = jax.random.randint(keys[1], (2,), -most, most + 1)
    images = jnp.roll(images, shift, (1, 2))
    images = blur(keys[2], tint(keys[3], images))
    noise = 0.12 * jax.random.uniform(keys[4], (len(images), 1, 1, 1))
    return images + noise * jax.random.normal(keys[5], images.shape)


def augment_batch(
    key: jax.Array, images: jax.Array, targets: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Augmented images and their smoothed targets; the first images lose their face.

    Images are float32 [N, H, W, 3] in [-1, 1], sides divisible by 8; targets float32
    [N, K], probabilities of the classes.
    """
    keys = jax.random.split(key, 2)
    count = int(len(images) * FACELESS)
    empty = faceless(keys[0], images[:count]) if count else images[:0]
    images = augment(keys[1], jnp.concatenate([empty, images[count:]]))
    even = jnp.full_like(targets[:count], 1 / targets.shape[1])
    targets = jnp.concatenate([even, targets[count:]])
    return images, optax.smooth_labels(targets, LABEL_SMOOTHING)
