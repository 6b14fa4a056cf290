"""How every command must refuse: status 2, one paragraph, no traceback, at once."""

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import tiny_model
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from ddpo_fair.training import stopping

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT / 'configs' / 'mech_eng.py'}:embedded"
SECONDS = 3.0  # of processor time, so that a busy machine fails no test


def refused(
    main: Callable[[Sequence[str]], int], arguments: Sequence[Any], capsys: Any
) -> str:
    """What a command says of bad input, its manners checked.

    Args:
        main: of the command.
        arguments: what follows its name.
        capsys: pytest's.
    """
    listen = stopping.Stop.listen
    stopping.Stop.listen = lambda self: None  # a test keeps its own signals
    start = time.process_time()
    try:
        status = main([str(argument) for argument in arguments])
    finally:
        stopping.Stop.listen = listen
    seconds = time.process_time() - start
    printed = capsys.readouterr()
    text = printed.err
    assert status == 2, text
    command = main.__module__.removesuffix(".__main__")
    assert text.startswith(f"{command}: ") and text.endswith("\n")
    assert text.count("\n") == 1 and text.rstrip("\n").isprintable()
    assert "Traceback" not in text and len(text) < 9000
    assert seconds < SECONDS
    return text


def named(value: Any) -> str:
    """What a test's case is called, for `ids=`: what is typed, what is said of it."""
    if callable(value):
        return getattr(value, "__module__", "").rpartition(".")[2]
    text = value if isinstance(value, str) else " ".join(map(str, value))
    if isinstance(value, dict):
        text = " ".join(f"{name}={value[name]}" for name in value)
    text = text.replace(CONFIG, "...").rpartition("defaults()")[2]
    return ascii(text)[1:-1][:40]


def arguments_of(folders, **changes):
    """A command line for the tiny model in these folders."""
    flat = {
        "model": folders / "model",
        "attributes.gender.classifier": folders / "classifier",
        "run.dir": folders / "runs",
        "sample.batch_per_device": 4,
        "train.microbatch": 4,
        "prompts": tiny_model.PROMPTS[0],
        **changes,
    }
    return [CONFIG, *(f"--config.{name}={value}" for name, value in flat.items())]


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20)
)
# The same examples every time, and no matter how busy the machine is.
STEADY = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
