"""Folders that one process holds, and arrays that are read whole or not at all."""

import fcntl
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from ddpo_fair import files
from ddpo_fair.errors import UserError

FORK = """
import os, sys, time
from pathlib import Path
from ddpo_fair import files
files.hold(Path(sys.argv[1]), "--output")
if child := os.fork():
    print(child)
else:
    os.close(1)
    os.close(2)
    time.sleep(100)
"""


def is_free(folder):
    """Whether another process could hold it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@pytest.fixture(autouse=True)
def _nothing_held():
    yield
    files.let_go()


def test_a_folder_made_again_is_held_again(tmp_path):
    folder = tmp_path / "folder"
    for _ in range(2):
        files.hold(folder, "--output")
        files.hold(folder, "--output")
        assert not is_free(folder)
        folder.rmdir()
    files.hold(folder, "--output")
    with ThreadPoolExecutor(1) as pool:
        with pytest.raises(UserError, match="another process or thread works there"):
            pool.submit(files.hold, folder, "--output").result()
        pool.submit(files.let_go).result()
    assert not is_free(folder)
    files.let_go()
    assert is_free(folder)


def test_a_worker_that_outlives_its_parent_holds_nothing(tmp_path):
    command = [sys.executable, "-c", FORK, tmp_path]
    child = int(subprocess.run(command, capture_output=True, check=True).stdout)
    try:
        assert is_free(tmp_path)
    finally:
        os.kill(child, signal.SIGKILL)


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    path = tmp_path / "a.npz"
    files.save_arrays(path, {"a": np.arange(3)})
    monkeypatch.setattr("numpy.load", load)
    with pytest.raises(MemoryError):
        files.load_arrays(path)


def test_a_folder_in_a_files_place_is_named(tmp_path):
    (tmp_path / "result.json").mkdir()
    said = f"^It cannot be written .*; move {tmp_path / 'result.json'} away, or choose"
    with pytest.raises(UserError, match=said), files.writing("It"):
        files.replace(tmp_path / "result.json", "{}")
