"""The loop that the pretraining stages share: optimizer, average, resume, progress."""

import logging
import time
from collections.abc import Callable
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

from ddpo_fair import parallel

WARMUP_STEPS = 100
DECAY_FRACTION = 0.4  # of all steps: the learning rate falls to zero over the last ones
SAVE_EVERY_SECONDS = 120.0


@flax.struct.dataclass
class State:
    """What a stage needs to go on: weights, their average, optimizer, steps done."""

    params: Any
    average: Any
    optimizer: Any
    step: jax.Array


def learning_rate(peak: float, num_steps: int) -> optax.Schedule:
    """Warm-up, constant, then linear to zero ("warm-up, stable, decay")."""

    def schedule(step: jax.Array) -> jax.Array:
        warmup = (step + 1) / WARMUP_STEPS
        decay = (num_steps - step) / (DECAY_FRACTION * num_steps)
        return peak * jnp.clip(jnp.minimum(warmup, decay), 0.0, 1.0)

    return schedule


def optimizer(
    peak: float, num_steps: int, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """Muon for the kernels, AdamW for the rest, with a clipped global norm.

    Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) makes each
    kernel's update orthogonal; `peak` is in its unit, 5 times AdamW's for the same
    root mean square of the update.
    """
    muon = optax.contrib.muon(
        learning_rate(peak, num_steps),
        muon_weight_dimension_numbers=_kernels,
        weight_decay=weight_decay,
        consistent_rms=0.2,
        adam_b2=0.99,
        adam_learning_rate=learning_rate(peak / 5, num_steps),
    )
    return optax.chain(optax.clip_by_global_norm(1.0), muon)


def _kernels(params: Any) -> Any:
    """Which axes of a kernel are its rows and columns; None for what is no kernel."""

    def axes(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        if path[-1].key != "kernel":
            return None
        last = leaf.ndim - 1
        return optax.contrib.MuonDimensionNumbers(tuple(range(last)), (last,))

    return jax.tree_util.tree_map_with_path(axes, params)


def make_step(loss: Callable, transform: optax.GradientTransformation, decay: float):
    """The jitted update `(state, batch, key) -> (state, loss)` of one stage.

    Args:
        loss: `(params, batch, key) -> scalar`.
        transform: the optimizer.
        decay: of the moving average of the weights; shorter at the start.
    """

    @partial(jax.jit, donate_argnums=0)
    def step(state: State, batch: Any, key: jax.Array) -> tuple[State, jax.Array]:
        value, gradient = jax.value_and_grad(loss)(state.params, batch, key)
        update, opt = transform.update(gradient, state.optimizer, state.params)
        params = optax.apply_updates(state.params, update)
        rate = jnp.minimum(decay, (1.0 + state.step) / (10.0 + state.step))
        average = jax.tree.map(
            lambda a, p: a + (1 - rate) * (p - a), state.average, params
        )
        return State(params, average, opt, state.step + 1), value

    return step


def fit(
    name: str,
    folder: Path,
    params: Any,
    transform: optax.GradientTransformation,
    loss: Callable,
    batch: Callable[[int], Any],
    key: Callable[[int], jax.Array],
    num_steps: int,
    decay: float = 0.999,
) -> Any:
    """The averaged weights after `num_steps` updates, resumed from `folder`.

    Args:
        name: shown by the progress bar.
        folder: where this stage keeps its checkpoints.
        params: initial weights.
        transform: the optimizer.
        loss: `(params, batch, key) -> scalar`.
        batch: the batch of a step number, so that a resumed stage sees the same data.
        key: the key of a step number.
        num_steps: updates in all.
        decay: of the moving average.
    """
    average = jax.tree.map(jnp.copy, params)
    state = parallel.replicate(
        State(params, average, transform.init(params), jnp.int32(0))
    )
    manager = ocp.CheckpointManager(
        folder.resolve(), options=ocp.CheckpointManagerOptions(max_to_keep=1)
    )
    if manager.latest_step() is not None:
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        state = manager.restore(
            manager.latest_step(), args=ocp.args.StandardRestore(target)
        )
        logging.info("%s: resumed at step %d", name, int(state.step))
    step = make_step(loss, transform, decay)
    first, saved, smooth = int(state.step), time.monotonic(), None
    bar = tqdm.trange(first, num_steps, initial=first, total=num_steps, desc=name)
    for index in bar:
        state, value = step(state, parallel.spread(batch(index)), key(index))
        if index % 10 == 9:
            value = float(value)
            smooth = value if smooth is None else 0.95 * smooth + 0.05 * value
            bar.set_postfix(loss=f"{smooth:.4f}", refresh=False)
        if time.monotonic() - saved > SAVE_EVERY_SECONDS:
            manager.save(index + 1, args=ocp.args.StandardSave(state))
            saved = time.monotonic()
    if first < num_steps:
        manager.wait_until_finished()
        if manager.latest_step() != num_steps:
            manager.save(num_steps, args=ocp.args.StandardSave(state))
    manager.close()
    return state.average
