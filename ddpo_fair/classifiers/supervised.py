"""Supervised training: the optimizer, the loop with its average, and how it resumes."""

import collections
import concurrent.futures
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
import optax.contrib
import orbax.checkpoint as ocp
import tqdm

from ddpo_fair import parallel, rng

WARMUP_STEPS = 100
DECAY_FRACTION = 0.4  # of all steps: the learning rate falls to zero over the last ones
SAVE_EVERY_SECONDS = 120.0
AHEAD = 3  # batches that are read while the devices train


@flax.struct.dataclass
class FitState:
    """What training needs to go on: weights, their average, optimizer, steps done."""

    params: Any
    average: Any
    optimizer: Any
    step: jax.Array


def learning_rate(step: jax.Array, peak: float, num_steps: int) -> jax.Array:
    """Warm-up, constant, then linear to zero ("warm-up, stable, decay"); a scalar."""
    warmup = (step + 1) / WARMUP_STEPS
    decay = (num_steps - step) / (DECAY_FRACTION * num_steps)
    return peak * jnp.clip(jnp.minimum(warmup, decay), 0.0, 1.0)


def optimizer(
    peak: float, num_steps: int, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon for the kernels, AdamW for the rest, with a clipped global norm.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes each
    kernel's update orthogonal; `peak` is in its unit, 5 times AdamW's for the same
    root mean square of the update.
    """
    muon = optax.contrib.muon(
        partial(learning_rate, peak=peak, num_steps=num_steps),
        muon_weight_dimension_numbers=_kernels,
        weight_decay=weight_decay,
        consistent_rms=0.2,
        adam_b2=0.99,
        adam_learning_rate=partial(learning_rate, peak=peak / 5, num_steps=num_steps),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _kernels(params: Any) -> Any:
    """Which axes of a kernel are its rows and columns; None for what is no kernel."""

    def axes(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        first, last = int(leaf.ndim == 3), leaf.ndim - 1  # the layers of a row apart
        return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), (last,))

    return jax.tree_util.tree_map_with_path(axes, params)


@partial(jax.jit, static_argnames=("loss", "transform", "decay"), donate_argnums=0)
def update(
    state: FitState,
    batch: Any,
    key: jax.Array,
    *,
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    transform: optax.GradientTransformation,
    decay: float,
) -> tuple[FitState, jax.Array]:
    """The state after one update, and the loss before it; arguments as for `fit`."""
    value, gradient = jax.value_and_grad(loss)(state.params, batch, key)
    change, moments = transform.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, change)
    rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
    average = jax.tree.map(lambda a, p: a + (1 - rate) * (p - a), state.average, params)
    return FitState(params, average, moments, state.step + 1), value


def fit(
    purpose: str,
    folder: Path,
    params: Any,
    transform: optax.GradientTransformation,
    loss: Callable[[Any, Any, jax.Array], jax.Array],
    batch: Callable[[int], Any],
    seed: int,
    num_steps: int,
    decay: float = 0.999,
) -> Any:
    """The averaged weights after `num_steps` updates in all, resumed from `folder`.

    Keys are `rng.key(seed, purpose, step)`, the loss `(params, batch, key) -> scalar`.
    `batch` gives that of a step number, so that resumed training sees the same data;
    threads call it. `decay` is of the weights' moving average, shorter at the start.
    """
    average = jax.tree.map(jnp.copy, params)
    state = FitState(params, average, transform.init(params), jnp.int32(0))
    state = parallel.replicate(state)
    options = ocp.CheckpointManagerOptions(max_to_keep=1)
    manager = ocp.CheckpointManager(folder.resolve(), options=options)
    newest = manager.latest_step()
    if newest is not None:
        shapes = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = manager.restore(newest, args=ocp.args.StandardRestore(shapes))
        logging.info("%s: resumed at step %d", purpose, newest)
    first, saved, smooth = int(state.step), time.monotonic(), None
    one_update = partial(update, loss=loss, transform=transform, decay=decay)
    bar = tqdm.trange(first, num_steps, initial=first, total=num_steps, desc=purpose)
    batches = ahead(batch, first, num_steps)
    # Left early, too: a save that goes on would meet the next one's clean-up.
    with contextlib.closing(manager), contextlib.closing(batches):
        for step, read in zip(bar, batches, strict=True):
            key = rng.key(seed, purpose, step)
            state, value = one_update(state, parallel.spread(read), key)
            if step % 10 == 9:
                value = float(value)
                smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
                bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
            if time.monotonic() - saved > SAVE_EVERY_SECONDS:
                manager.save(step + 1, args=ocp.args.StandardSave(state))
                saved = time.monotonic()
        if first < num_steps:
            manager.wait_until_finished()
            if manager.latest_step() != num_steps:
                manager.save(num_steps, args=ocp.args.StandardSave(state))
    return state.average


def ahead(
    batch: Callable[[int], Any], first: int, num_steps: int, readers: int = AHEAD
) -> Iterator[Any]:
    """Batches `first` to `num_steps` - 1; threads read the next ones meanwhile."""
    waiting: collections.deque[concurrent.futures.Future] = collections.deque()
    pool = concurrent.futures.ThreadPoolExecutor(readers)
    try:
        for step in range(first, num_steps + readers):
            if step < num_steps:
                waiting.append(pool.submit(batch, step))
            if step >= first + readers:
                yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
