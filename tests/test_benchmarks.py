"""The script for a rented GPU must not fail there: it runs small here."""

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOT_THERE = ("ml_collections", "PIL", "matplotlib", "tqdm", "huggingface_hub")


@pytest.mark.long
def test_the_gpu_script_needs_no_more_than_a_bare_image(tmp_path):
    for name in NOT_THERE:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    command = [sys.executable, ROOT / "benchmarks" / "gpu.py", "--tiny"]
    done = subprocess.run(
        [*command, "--parts=matmul,decode"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert "left out" not in done.stdout, done.stdout
    assert "| decode, batch 8 |" in done.stdout
