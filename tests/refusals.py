"""How every command must refuse: status 2, one paragraph, no traceback, at once."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from ddpo_fair import stopping

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
    assert text.startswith(f"{main.__module__}: ") and text.endswith("\n")
    assert text.count("\n") == 1 and text.rstrip("\n").isprintable()
    assert "Traceback" not in text and len(text) < 9000
    assert seconds < SECONDS
    return text
