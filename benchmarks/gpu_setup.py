"""What the parts of gpu.py share: a run's settings, random numbers, a clock."""

import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
CONFIG = ROOT / "configs" / "mech_eng_unrestrained.py"
STEPS = 20
EPOCH = {"sample.batches": 1, "train.updates_per_epoch": 2, "sample.num_steps": STEPS}
PEER = {"sample.batch_per_device": 16, "train.microbatch": 8}
TINY = {"sample.num_steps": 4, "train.skip_last_steps": 2, "train.lora.rank": 4}


def config(options: Any, variant: str) -> tuple[Any, list[str]]:
    """A variant's settings, and what is wrong with those of the command line."""
    from ddpo_fair import experiment

    flags = {**EPOCH, **(PEER if variant == "sd15" else {})}
    flags |= {"sample.batch_per_device": options.batch} if options.batch else {}
    flags |= TINY if options.tiny else {}
    named = [f"--config.{name}={value}" for name, value in flags.items()]
    given = [f"--config={CONFIG}:{variant}", *named, *options.settings]
    command, problems = experiment.parse(given, "gpu")
    return command.config.unlock(), problems


def configs(variant: str, tiny: bool) -> dict[str, Any]:
    """The networks' configs of a variant that is downloaded, or of a toy like it."""
    if tiny:
        import tiny_model

        like = {"sdxl": tiny_model.XL, "sd35": tiny_model.CONFIGS_3}
        return like.get(variant, tiny_model.CONFIGS)
    from ddpo_fair import config
    from ddpo_fair.models import published

    return published.MODELS[config.MODELS[variant]]


def draw(shapes: Any) -> Any:
    """Numbers that keep a signal's size, of shapes with dtypes; cut from one pool."""
    import jax
    import numpy as np

    pool = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)

    def one(path: tuple, leaf: Any) -> Any:
        name, size = getattr(path[-1], "key", ""), math.prod(leaf.shape)
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(0), leaf.shape)
        if name == "scale" or leaf.dtype == bool:
            return np.ones(leaf.shape, leaf.dtype)
        if name == "bias" or np.issubdtype(leaf.dtype, np.integer):
            return np.zeros(leaf.shape, leaf.dtype)
        array = np.resize(pool[:size], leaf.shape)
        fan_in = leaf.shape[len(leaf.shape) == 3 : -1]  # without the layers of a row
        array /= np.float32(math.sqrt(math.prod(fan_in)))
        return array.astype(leaf.dtype, copy=False)

    return jax.tree_util.tree_map_with_path(one, shapes)


def time_of(
    function: Callable[..., Any], repeats: int, arguments: Callable[[], tuple] = tuple
) -> dict[str, float]:
    """Median seconds of a call, and what the first one took longer: the compiler.

    The arguments are made before each call.
    """

    def once() -> float:
        given = arguments()
        begin = time.perf_counter()
        function(*given)
        return time.perf_counter() - begin

    first, *times = [once() for _ in range(1 + repeats)]
    median = statistics.median(times)
    return {"seconds": median, "compile_seconds": max(0.0, first - median)}
