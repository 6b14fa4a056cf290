"""The script for a rented GPU must not fail there: it runs small here."""

import pytest
import tiny_run

NOT_THERE = ("ml_collections", "PIL", "matplotlib", "tqdm", "huggingface_hub")


@pytest.mark.long
def test_the_gpu_script_needs_no_more_than_a_bare_image(tmp_path):
    for name in NOT_THERE:
        (tmp_path / f"{name}.py").write_text(f"raise ImportError('no {name}')\n")
    command = "benchmarks/gpu.py", "--tiny", "--parts=matmul,decode", "--batch=1"
    process = tiny_run.python(*command, PYTHONPATH=str(tmp_path))
    ((output, _),) = tiny_run.finish(process)
    assert "left out" not in output and "| decode, batch 1 |" in output, output
