"""How a command ends, whatever happens: with a status, and one paragraph on why."""

import _thread
import contextlib
import errno
import functools
import io
import os
import shlex
import signal
import sys
import time
import traceback
import types
from collections.abc import Callable
from typing import Any

import ddpo_fair
from ddpo_fair import errors, files
from ddpo_fair.errors import HostLost, UserError, shown
from ddpo_fair.training import stopping

# Exit statuses, next to those of `stopping`; the last is a shell's for SIGPIPE.
BUG, BAD_INPUT, UNREAD = 1, 2, 141
DEBUG = "DDPO_FAIR_DEBUG"  # set, a bug ends with its traceback
OF_THE_SYSTEM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)
OF_THE_SYSTEM += (errno.EISDIR, errno.ENOTDIR)
OF_LIBRARIES = ("CUDA_", "HF_", "JAX_", "MPL", "SOURCE_DATE_", "TF_", "TPU_", "XLA_")
LEAST_BYTES = 10**9  # of address space; measured: with .6e9 SciPy's import hangs
PATIENCE_SECONDS = 3  # for what a Ctrl-C interrupts to end


class Help(Exception):
    """Raised for --help; its text is what to print."""


def run(command: str, work: Callable[[], None], interrupted: str) -> int:
    """The exit status of a command's work; what ends it is said in one paragraph.

    0 done, 1 a bug, 2 for something to fix, 75 interrupted and saved, 130 stopped by
    Ctrl-C, 141 its output is not read. `interrupted` says what Ctrl-C leaves behind.
    """
    _open_streams()
    farewell = f"\nInterrupted; {interrupted}."
    ours = signal.getsignal(signal.SIGINT) is ddpo_fair.leave_early
    if ours:  # a process of this command
        signal.signal(signal.SIGINT, functools.partial(_interrupt, farewell))
        sys.unraisablehook = _unraisable
        stopping.watch(functools.partial(_end_in_time, farewell))
    try:
        status = _status(command, work)
    except KeyboardInterrupt:
        if ours:
            _leave_at_once(farewell)
        _say(farewell)
        return stopping.AT_ONCE
    if ours:
        signal.signal(signal.SIGINT, lambda *_: os._exit(status))  # it has ended
    return status


def _status(command: str, work: Callable[[], None]) -> int:
    try:
        errors.check_address_space(
            LEAST_BYTES,
            f"fewer than the {LEAST_BYTES / 1e9:.0f} GB that its libraries need: call"
            " `ulimit -v unlimited`.",
        )
        try:
            work()
        except Help as text:
            print(text)
        sys.stdout.flush()
        return 0
    except stopping.Interrupted as error:  # all processes leave together
        _say(error.message())
        return stopping.INTERRUPTED
    except UserError as error:
        _say(f"{command}: {errors.paragraph(error)}")
        lost = isinstance(error, HostLost)
        status = stopping.INTERRUPTED if lost else BAD_INPUT
    except BrokenPipeError:
        status = UNREAD
    except Exception as error:
        if os.environ.get(DEBUG):
            raise
        status, text = _unexpected(error)
        _say(f"{command}: {errors.paragraph(UserError(text))}")
    _discard_output()
    if "jax" in sys.modules:  # else no other process can wait for this one
        from ddpo_fair import parallel  # seconds

        parallel.leave(status)
    return status


def _unexpected(error: Exception) -> tuple[int, str]:
    """The status for an error that nothing has foreseen, and what to say of it."""
    if isinstance(error, OSError) and error.errno in OF_THE_SYSTEM:
        where = error.filename2 or error.filename or "The standard output, or a file,"
        return BAD_INPUT, (
            f"{where} cannot be written or read ({error.strerror}); see to the space on"
            " its disk and to its permissions."
        )
    if isinstance(error, ValueError) and (name := _variable(error)):
        return BAD_INPUT, (
            f"{name}={shown(os.environ[name])} of the environment cannot be used"
            f" ({errors.first_line(error)}); unset it, or give another value."
        )
    name = time.strftime(f"%Y-%m-%d_%H-%M-%S_{os.getpid()}.txt")
    path = files.cache() / "tracebacks" / name
    content = f"{shlex.join(sys.orig_argv)}\n{traceback.format_exc()}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8", errors="backslashreplace")
        where = f"Its traceback is in {path}; please report it with that file."
    except OSError as failure:
        where = f"Its traceback could not be written to {path} ({failure.strerror})."
    return BUG, (
        f"this is a bug of ddpo_fair {ddpo_fair.__version__}: {type(error).__name__}:"
        f" {errors.first_line(error)}. {where} {DEBUG}=1 shows it here."
    )


def _variable(error: Exception) -> str:
    """The variable of the environment that a library cannot read; "" if it is none."""
    frames = traceback.extract_tb(error.__traceback__)[-1:]
    said = " ".join([str(error), *(frame.line or "" for frame in frames)]).lower()
    names = (x for x in os.environ if x.startswith(OF_LIBRARIES))
    named = (x for x in names if x.lower() in said or repr(os.environ[x]) in said)
    return next(named, "")


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # the error stream is closed
        print(text, file=sys.stderr, flush=True)


def _open_streams() -> None:
    """Has the three standard streams open: a file would get a closed one's number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, os.fdopen(number, "w"))
        elif isinstance(stream, io.TextIOWrapper):  # no prompt is unprintable
            stream.reconfigure(errors="backslashreplace")


def _discard_output() -> None:
    """What is still to be written when Python ends is not, if it cannot be."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _interrupt(farewell: str, _: int, frame: types.FrameType | None) -> None:
    """Raises KeyboardInterrupt; but modules half imported may not survive that."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            _leave_at_once(farewell)
        frame = frame.f_back
    raise KeyboardInterrupt


def _end_in_time(farewell: str, _: int) -> None:
    """Ends the process even if what Ctrl-C interrupts does not end: a compilation."""
    time.sleep(PATIENCE_SECONDS)
    _leave_at_once(farewell)


def _leave_at_once(farewell: str) -> None:
    _say(farewell)
    _discard_output()
    os._exit(stopping.AT_ONCE)


def _unraisable(unraisable: Any) -> None:
    """Repeats a Ctrl-C that came where Python drops exceptions."""
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        _thread.interrupt_main()
    else:
        sys.__unraisablehook__(unraisable)
