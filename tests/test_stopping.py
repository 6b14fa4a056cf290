"""Signals, sent to real processes."""

import os
import signal
import subprocess

import pytest
import tiny_run

from ddpo_fair import train
from ddpo_fair.training import stopping

# Leaves politely once asked to; one that will not stands for a long compilation.
PROGRAM = """
import sys, time
from ddpo_fair.training import stopping
stop = stopping.Stop()
stop.listen()
print("ready", flush=True)
while not (stop.requested and sys.argv[1] == "polite"):
    time.sleep(0.01)
sys.exit(stopping.INTERRUPTED)
"""


def start(manner):
    process = tiny_run.python("-c", PROGRAM, manner)
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize(
    ("epochs", "said", "unsaid"),
    [
        (0, "nothing to save. The same command begins again", "Saved"),
        (1, "Saved, with 1 epoch done. The same command continues", "epochs"),
        (7, "Saved, with 7 epochs done. The same command continues", "begins"),
    ],
)
def test_the_last_line_says_what_is_saved(epochs, said, unsaid, monkeypatch, capsys):
    def leave(*_, **__):
        raise stopping.Interrupted(epochs)

    monkeypatch.setattr(stopping.Stop, "listen", lambda self: None)
    monkeypatch.setattr(train, "train", leave)
    assert train.main(["--config=configs/mech_eng.py:embedded"]) == 75
    text = capsys.readouterr().err
    assert said in text and unsaid not in text


def test_one_signal_asks():
    process = start("polite")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == stopping.INTERRUPTED == os.EX_TEMPFAIL
    assert "SIGTERM" in errors and "the same command continues" in errors


def test_a_second_interrupt_ends_at_once_but_a_preemption_changes_nothing():
    process = start("busy")
    process.send_signal(signal.SIGINT)
    assert "SIGINT" in process.stderr.readline() + process.stderr.readline()
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=0.3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == stopping.AT_ONCE == 130
    assert "SIGTERM" not in errors


@pytest.mark.long
def test_what_cpp_aborts_leaves_with_the_status_that_continues():
    program = (
        "import os; from ddpo_fair import parallel\n"
        "with parallel.last_words('Start the same command.', 75): os.abort()"
    )
    process = tiny_run.python("-c", program)
    ((_, errors),) = tiny_run.finish(process, status=stopping.INTERRUPTED)
    assert "Start the same command." in errors
