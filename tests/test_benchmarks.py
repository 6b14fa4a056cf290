"""Scripts for rented devices must not fail there: what they need is tried here."""

import importlib
from pathlib import Path

import pytest
import tiny_run

from ddpo_fair import setting_rules
from ddpo_fair.learning import losses, policy_update

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.mark.parametrize("script", ["keep", "results"])
def test_what_is_no_run_is_refused(tmp_path, monkeypatch, capsys, script):
    monkeypatch.syspath_prepend(BENCHMARKS)
    (tmp_path / "config.json").write_text('{"config": {"epochs": 1}}')
    target = [tmp_path / "kept"] * (script == "keep")
    monkeypatch.setattr("sys.argv", [script, str(tmp_path), *map(str, target)])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main()
    assert f"{tmp_path} " in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("script", "flag", "words"),
    [
        ("gpu", "--parts=matmul,sample", "--parts: sample must be of matmul,"),
        ("gpu", "--variant=sd99", "--variant: invalid choice: 'sd99'"),
        ("gpu", "--output=/dev/null/x", "--output: "),
        ("gpu", "--config.train.remta=full", "--config.train.remat.\n"),
        ("gpu", "--config.train.remat=ful", "train.remat='ful' must be one of"),
        ("grpo_guard", "--config=configs/truly_ppo.py", "'truly_ppo' must be one of"),
    ],
)
def test_no_script_measures_something_else(script, flag, words, monkeypatch, capsys):
    monkeypatch.chdir(BENCHMARKS.parent)
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr("sys.argv", [script, flag])
    for name in (losses, "ppo"), (policy_update, "step_log_prob"):
        monkeypatch.setattr(*name, getattr(*name))  # what the guard replaces
    choices = setting_rules.CHOICES
    monkeypatch.setitem(choices, "train.objective", choices["train.objective"])
    with pytest.raises(SystemExit, match="2"):
        importlib.import_module(script).main()
    assert words in capsys.readouterr().err


@pytest.mark.long
def test_the_gpu_script_times_a_runs_own_program():
    command = "benchmarks/gpu.py", "--tiny", "--parts=matmul,updating", "--variant=sd15"
    ((output, _),) = tiny_run.finish(tiny_run.python(*command))
    # Half of 16 images, two of four steps of each.
    row = "| sd15, updating 16 pairs of image and step |"
    assert "left out" not in output and row in output, output


# Arguments: a kernel of 1280 x 1280 and one of 1500 x 1000, and 512 numbers.
COMPILED = """HloModule jit_update
%fused_transpose (p.1: f32[1500,1000]) -> f32[1000,1500] {
  %p.1 = f32[1500,1000]{1,0} parameter(0)
  ROOT %t.1 = f32[1000,1500]{1,0} transpose(%p.1), dimensions={1,0}
}
%fused_exp (p.2: f32[9000,9000]) -> bf16[512] {
  %p.2 = f32[9000,9000]{1,0} parameter(0)
  ROOT %e.1 = bf16[512]{0} exponential(%p.2)
}
%body.1 (p.3: (f32[1000,1500], bf16[512])) -> (f32[1000,1500]) {
  %p.3 = (f32[1000,1500]{1,0}, bf16[512]{0}) parameter(0)
  %g.1 = f32[1000,1500]{1,0} get-tuple-element(%p.3), index=0
  %c.1 = bf16[1000,1500]{1,0} convert(%g.1)
  %c.2 = bf16[1000,1500]{1,0:T(8,128)(2,1)S(1)} copy(%g.1)
  %d.1 = f32[4096,1,4096]{2,1,0} dot(%c.1, %c.2), lhs_contracting_dims={1}
  %d.2 = (f32[500]{0}, s8[9]{0}) custom-call(%d.1), custom_call_target="__cublas$gemm"
  %d.3 = (bf16[500]{0}, u8[9]{0}) custom-call(%c.1), custom_call_target="__cudnn$fmhaS"
  %x.1 = f32[1280,1280]{1,0} negate(%d.2)
}
ENTRY %main (a.1: f32[1280,1280], a.2: f32[1500,1000]) -> f32[512] {
  %a.1 = f32[1280,1280]{1,0} parameter(0)
  %a.2 = f32[1500,1000]{1,0} parameter(1)
  %f.1 = f32[1000,1500]{1,0} fusion(%a.2), kind=kInput, calls=%fused_transpose
  %f.2 = bf16[512]{0} fusion(%f.1), kind=kLoop, calls=%fused_exp
  %w.1 = (f32[1000,1500]{1,0}) while(%f.2), condition=%until, body=%body.1
}
"""


def test_a_compiled_program_is_read_by_hand(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    assert importlib.import_module("compile_text").facts(COMPILED) == {
        "flash": 1,
        "logits_mb": 67,  # 4096 x 4096 x 4 bytes; 9000 x 9000 are never written
        "products": "1 of 16 bits; 1 of 32 bits",
        "copied_mb": "6 once; 3 each turn",  # 1000 x 1500 of 4 bytes, of 2
    }
