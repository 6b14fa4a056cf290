"""Randomness by name: a key is a function of the seed and of what it is for."""

import zlib

import jax

MOST_EPOCHS = 10**6  # of a run


def key(seed: int, *names: str | int | jax.Array) -> jax.Array:
    """Key of one purpose, e.g. `key(0, epoch, "sample", image_index)`.

    Nothing is carried from one use to the next, hence a run can resume from its
    epoch number alone, and an image is the same on any number of devices. Strings
    (hashed with CRC-32) and integers are folded into the seed's key one by one.
    """
    result = jax.random.key(seed)
    for name in names:
        number = zlib.crc32(name.encode()) if isinstance(name, str) else name
        result = jax.random.fold_in(result, number)
    return result


def attempt(epoch: int, restores: int) -> int:
    """The number of an epoch, below `MOST_EPOCHS`, in keys: another after each restore.

    Of these are at most 1000: the number is an int32.
    """
    return epoch + restores * MOST_EPOCHS
