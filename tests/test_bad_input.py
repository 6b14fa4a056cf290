"""Mistakes on the command line and in configs: one paragraph, status 2, at once."""

import contextlib
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time

import pytest
import tiny_run
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import CONFIG, ROOT, SCALARS, SECONDS, STEADY, named, refused

from ddpo_fair import config as configuration
from ddpo_fair import config_rules, experiment, parallel, process, train
from ddpo_fair.errors import HostLost, UserError

LONG = 10_000


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "Which experiment? Give a config file, e.g. `python -m ddpo_fair.train"),
        (["--config"], "Which experiment?"),
        (["--config=nowhere.py"], "'nowhere.py' is not a file of Python"),
        (["--config=/etc/passwd"], "choose one of configs/comp_sci.py, configs/elec"),
        ([f"--config={LONG * 'x'}.py"], "File name too long"),
        (["--config=~nobody_here/a.py"], "home directory"),
        ([CONFIG.replace(":embedded", ":sd9")], "'sd9' after the colon must be embedd"),
        ([CONFIG + LONG * "e"], "characters) after the colon must be embedded or"),
        ([CONFIG, "--config.epoch=3"], "is no flag; did you mean --config.epochs."),
        ([CONFIG, "--config.learning_rate=3"], "mean --config.train.learning_rate."),
        ([CONFIG, "--config.zzz=3"], "is no flag; --help lists them all."),
        ([CONFIG, f"--config.{LONG * 'x'}=3"], "characters) is no flag"),
        ([CONFIG, "--epochs=3"], "'--epochs=3' is no flag; did you mean --config.epo"),
        ([CONFIG, "--plann"], "'--plann' is no flag; did you mean --plan."),
        ([CONFIG, "--"], "'--' is no flag"),
        ([CONFIG, "epochs"], "'epochs' is no flag"),
        ([CONFIG, "--config.epochs"], "Missing value for flag --config.epochs."),
        ([CONFIG, "--noconfig.reward.soft=1"], "does not take an argument."),
        ([CONFIG, "--flagfile=nowhere"], "Unable to open flagfile"),
        ([CONFIG, "--plan=0"], "--plan='0' must be"),
        ([CONFIG, "--plan=h100:8"], "h100:1xHOSTSxGPUS"),
        ([CONFIG, "--plan=h100:0x1x1"], "h100:1xHOSTSxGPUS"),
        ([CONFIG, "--plan=a100"], "must be h100"),
        ([CONFIG, "--plan=v5e"], "--plan=v5e:2x2"),
    ],
    ids=named,
)
def test_command_lines(capsys, arguments, part):
    assert part in refused(train.main, arguments, capsys)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("epochs=", "--config.epochs='' must be an integer, like 20."),
        ("epochs=0", "epochs=0 must be at least 1 and at most 1000000"),
        (f"epochs={400 * '9'}", "characters) must be at least 1"),
        (f"epochs={5000 * '9'}", "characters) must be an integer"),
        ("attributes.gender.confidence_threshold=1", "at least 0 and at most 0.999;"),
        ("sample.eta=high", "'high' must be a number"),
        ("sample.eta=0", "sample.eta=0.0 must be at least 0.01"),
        ("sample.eta=nan", "sample.eta='nan' must be a number, like 1.0"),
        ("sample.eta=1e999", "sample.eta=inf must be at least 0.01"),
        ("train.learning_rate=1e-320", "=1e-320 must be at least 1e-08 and at most 1;"),
        ("distributed.cpu_devices=65", "at least 1 and at most 64; a core each is"),
        ("distributed.coordinator_address=a:0", "must be host:port of process 0"),
        ("distributed.coordinator_address=a:65536", "with a port of at most 65535"),
        ("train.guidance=perhaps", "must be true or false"),
        ("train.objective=trpo", "'trpo' must be one of ppo,"),
        ("train.remat=bananas", "'bananas' must be one of none, full, nothing_"),
        ("train.lora.target_modules=", "names of layers, e.g. ('to_q', 'to_v'), or '"),
        ("train.lora.target_modules=('to_q', ' ')", "must be names of layers"),
        ("train.microbatch=7", "try train.microbatch="),
        ("train.skip_last_steps=20", "leaves none of sample.num_steps=15"),
        ("sample.sde_window=(0, 4)", "are trained; give train.skip_last_steps=11."),
        (
            "sample.sde_window=(3, 20)",
            "at most at 2, which is sample.num_steps=15 less",
        ),
        (f"sample.sde_window=(0, {10**30})", "and the one behind the last, e.g. (0"),
        ("sample.sde_window=(3, 3)", "and the one behind the last, e.g. (0, 4)"),
        ("train.updates_per_epoch=5", "do not divide by train.updates_per_epoch=5"),
        ("dtype=float16", "'float16' must be one of float32, bfloat16"),
        ("reward.name=Balance", "must be one of shift, balance, balance_loo"),
        ("attributes.gender.target=(1,1)", "classified as female, male, not negative"),
        ("attributes.gender.target=((((", "must be numbers"),
        ("sample.time_ids=(1.5,0,0,0,0,0)", "must be whole numbers, like [0, 0"),
        ("sample.time_ids=(True,0,0,0,0,0)", "must be whole numbers, like [0, 0"),
        ("sample.preserve_prompts=None", 'must be texts, e.g. \'("one", "two")\''),
        (
            "train.base_kl_weight=1e-300",
            "would hold nothing; give 1e-06 or more, or 0.",
        ),
        ("attributes.gender.target=0.5", "with sum 1, e.g. (0.5, 0.5)"),
        ("checkpoint.keep=1", "a second one serves where the newest is damaged"),
        ("model=", "model='' must be 'embedded', a folder, or owner/name"),
        ("model=a\0b", "model='a\\x00b' must be"),
        ("attributes.gender.classifier=a\nb", "classifier='a\\nb' must be"),
        ("attributes.gender.classes=('female',)", "must be two classes or more"),
        ("attributes.gender.classes=('a', 'A')", "'a' belongs to the class 'a' and to"),
        ("attributes.gender.weight=0", "has a weight above 0, so there is nothing"),
        ("attributes.gender.weight=1e-320", "would teach nothing; give 0.001 or more"),
        ("attributes.gender.classes=('male', 'female')", "('female', 'male'), in this"),
        ("attributes.gender.classes=('', 'male')", "needs a name that can be read"),
        (f"attributes.gender.classes={tuple(map(str, range(101)))}", "at most 100 cla"),
        ("attributes.gender.target_class=dark", "must be one of auto, female, male"),
        ("attributes.gender.target_class=female", "is of the reward shift, not"),
        ("reward.name=balance", "=True counts in balance_loo alone, not in balance;"),
        ("attributes.gender.classifier=typology", "answers light, medium, dark"),
        ("attributes.age.weight=1", "did you mean --config.attributes.gender.weight"),
        ("targets=nowhere.json", "cannot be read as JSON ([Errno 2] No such file"),
        ("targets=/dev/zero", "='/dev/zero' cannot be read as JSON ([Errno 22] it"),
        ("variant=../fp16", "must be the middle of the names"),
        ("run.name=", "run.name='' must be"),
        ("run.name=../../up", "'../../up' must be a folder's name"),
        ("run.name=-rf", "the first a letter or digit"),
        (f"run.name={101 * 'a'}", "at most 100"),
        ("run.dir=", "run.dir='' must be a folder's path"),
        ("run.dir=gs://bucket/runs", "it is an address, not a folder of this machine"),
        ("run.dir=$HOME/runs", "no shell has put in the value of $HOME"),
        ("log.wandb=a/b/c", "log.wandb='a/b/c' must be a project, or team/project"),
        ("distributed.timeout_seconds=1", "at least 5"),
        ("prompts=", "prompts[0]='' is empty; say what to draw"),
        ("prompts=()", "prompts=() must hold at least one text"),
        ("prompts=\u200b \u00ad", "is empty"),
        ("prompts=('a'", "must be texts"),
        ("prompts='a' of 'b'", 'must be texts, e.g. \'("one", "two")\''),
        ("train.lora.target_modules=to_q,to_v", "e.g. ('to_q', 'to_v')"),
        ("attributes.gender.target='0.5, 0.5'", "must be numbers, e.g. '(0.5, 0.5)'"),
        ("prompts=(best quality) nurse", "where one begins with a bracket"),
        (f"prompts={LONG * 'x'}", "(10002 characters) must have at most 1000"),
        ("prompts=a\0b", "control character '\\x00', which no reader sees; remove"),
        ("prompts=a \udcff", "holds bytes that are not UTF-8; write it in UTF-8."),
        ("prompts=a \u202eesrun", "control character '\\u202e', which no reader"),
        ("prompts=('a b', 'a b')", "'a b' stands there twice"),
        ("prompts=photo of the face of a wizard", "its nouns are accountant,"),
        ("prompts=<script>alert(1)</script>", "does not know prompts='<script>"),
    ],
    ids=named,
)
def test_overrides(capsys, override, part):
    assert part in refused(train.main, [CONFIG, f"--config.{override}"], capsys)


@pytest.mark.parametrize(
    ("overrides", "part"),
    [
        (
            "sample.batch_per_device=6 train.updates_per_epoch=4",
            "do not divide by train.updates_per_epoch=4; try train.updates_per_epoch=3",
        ),
        ("eval.images=0 reward.name=shift", "needs the evaluation before train"),
        ("reward.name=shift attributes.gender.target=(.3,.7)", "no aim of reward.na"),
        (
            "distributed.num_processes=2 distributed.process_id=2",
            "process_id=2 must be below distributed.num_processes=2",
        ),
        ("eval.images=1 prompts=('a','b')", "at least one for each of the 2 prompts"),
        ("epochs=x seed=-1 nothing=1", "3 settings cannot be used"),
    ],
)
def test_overrides_that_do_not_fit_together(capsys, overrides, part):
    flags = [f"--config.{override}" for override in overrides.split()]
    assert part in refused(train.main, [CONFIG, *flags], capsys)


START = (
    "from ddpo_fair import config\nfrom ml_collections.config_dict import *\n"
    "def get_config(variant):\n    c = config.defaults()\n    "
)
END = "\n    return c"
TONE = (
    "c.attributes = ConfigDict({'tone': config.attribute(classes=('light', 'dark'))})"
)
ANGLE = TONE.replace("tone", "skin_tone").replace("'dark'", "'medium', 'dark'")
ANGLE = ANGLE.replace("))})", "), classifier='typology')})")
PROMPT = configuration.defaults().prompts[0]


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("def get_config(variant", "SyntaxError"),
        ("\0", "null bytes"),
        ("x = 1", "AttributeError"),
        ("raise SystemExit('usage:\\nleave')", "line 1: SystemExit: usage: leave"),
        ("raise BaseException('no')", "line 1: BaseException: no. A config file def"),
        (f"raise ValueError({LONG} * 'x')", "line 1: ValueError: xxx"),
        ("def get_config(variant):\n    return 3", "get_config() returned 3"),
        (f"{START}c.epochs = 'many'\n", "line 5: TypeError"),
        (f"{START}c.attributes = ConfigDict(){END}", "attributes is empty: give one"),
        (f"{START}{ANGLE}; c.reward.views = 8{END}", "views=8 averages answers of net"),
        (
            f"{START}c.attributes.update({{f'a{{i}}': 0 for i in range(10**4)}}){END}",
            "10001 attributes; give 50 at most",
        ),
        (f"{START}{TONE.replace('tone', 'a-b')}{END}", "the name 'a-b' must"),
        (f"{START}{TONE}; c.sample.explicit_share = .5{END}", "the attribute gend"),
        (f"{START}c.epcohs = 3{END}", "mine.py: epcohs is no setting; did you mean ep"),
        (f"{START}c.train.rank = 3{END}", "mean train.lora.rank. train.objective='z'"),
        (f"{START}c.prompts = (1,){END}", "must be of type tuple of str, like"),
        (f"{START}c.epochs = None{END}", "epochs=None must be of type int, like 20"),
        (f"{START}c.epochs = placeholder(int){END}", "epochs=None must be of type int"),
        (f"{START}c.epochs = required_placeholder(int){END}", "RequiredValueError"),
        (f"{START}c.train.train = c.train{END}", "RecursionError"),
        (f"{START}c.seed = 10**400{END}", "at most 2147483647"),
        (f"{START}c.seed = 10**9999{END}", "seed=a int too long to show must be"),
    ],
    ids=named,
)
def test_config_files(capsys, source, part, tmp_path):
    (tmp_path / "mine.py").write_text(source)
    arguments = [f"--config={tmp_path / 'mine.py'}", "--config.train.objective=z"]
    assert part in refused(train.main, arguments, capsys)


@pytest.mark.parametrize(
    ("table", "part", "further"),
    [
        ('{"PROMPT": {"gender": [0.3, 0.7]}, "PROMPT": {}}', "twice; keep one", ()),
        ('{"PROMPT": {"gender": [1, 0], "gender": [0, 1]}}', "'gender' stands", ()),
        ('{"PROMPT": {"gender": [0.3, 0.6]}}', "negative, with sum 1; its form", ()),
        (json.dumps({PROMPT: {}}), "holds none", ()),
        (json.dumps(dict.fromkeys(range(10**5), 0)), "'7' is none of", ()),
        ('{"PROMPT": {"gender": [0.3, 0.7]}}', "not aim at", ["reward.name=shift"]),
    ],
    ids=named,
)
def test_tables_of_targets(capsys, table, part, further, tmp_path):
    (tmp_path / "targets.json").write_text(table.replace("PROMPT", PROMPT))
    flags = [f"--config.{x}" for x in (f"targets={tmp_path}/targets.json", *further)]
    text = refused(train.main, [CONFIG, *flags], capsys)
    assert part in text and text.count("is none of the prompts") <= 8


def test_a_config_file_may_define_dataclasses_and_return_a_frozen_config(
    tmp_path, monkeypatch, capsys
):
    source = "from __future__ import annotations\nimport dataclasses\n" + START.replace(
        "def get", "@dataclasses.dataclass\nclass Mine:\n    seed: int = 3\ndef get"
    )
    source += "c.seed = Mine().seed\n    return FrozenConfigDict(c)"
    (tmp_path / "mine.py").write_text(source)
    arguments = [f"--config={tmp_path / 'mine.py'}", "--config.epochs=5"]
    command, problems = experiment.parse(arguments, "ddpo_fair.train")
    assert problems == [] and (command.config.seed, command.config.epochs) == (3, 5)
    (tmp_path / "mine.py").write_text("\n\nraise ValueError('no')")
    monkeypatch.chdir(tmp_path)
    assert "'mine.py', line 3" in refused(train.main, ["--config=mine.py"], capsys)


FIELDS = tuple(configuration.flatten(configuration.defaults()))
EXTREMES = st.sampled_from(
    [10**400, -(10**9999), "\0", "\ud800", (), ("",), (10**400,)]
)
VALUES = st.one_of(SCALARS, EXTREMES, st.lists(SCALARS, max_size=3).map(tuple))


@settings(STEADY, max_examples=250)
@given(name=st.sampled_from(FIELDS), value=VALUES)
def test_any_value_is_accepted_or_refused_in_words(name, value):
    config = configuration.defaults()
    *parents, leaf = name.split(".")
    place = config
    for parent in parents:
        place = place[parent]
    try:
        with config.ignore_type():
            place[leaf] = value
    except OverflowError:  # of ConfigDict; a config file's reader tells of it
        return
    for problem in config_rules.violations(config):
        assert problem.endswith(".") and len(problem) < 2000
    with contextlib.suppress(UserError):
        train.check(config, [])


@settings(STEADY, max_examples=50)
@given(name=st.sampled_from(FIELDS), value=VALUES, text=st.text(max_size=30))
def test_any_text_is_accepted_or_refused_in_words(name, value, text):
    for typed in (text, str(value) if value != -(10**9999) else "-" + 9999 * "9"):
        arguments = [CONFIG, f"--config.{name}={typed}"]
        with contextlib.suppress(UserError):
            command, problems = experiment.parse(arguments, "ddpo_fair.train")
            train.check(command.config, problems)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (KeyError("a\nb"), 1, "this is a bug of ddpo_fair"),
        (RecursionError(), 1, "this is a bug"),
        (FileNotFoundError(errno.ENOENT, "no", "x"), 1, "this is a bug"),
        (ValueError("x is no JAX_NO_WORD"), 2, "JAX_NO_WORD='x' of the env"),
        (ValueError("no backend 'x'"), 2, "JAX_NO_WORD='x' of the environment"),
        (FULL, 2, "cannot be written or read (No space left on device); see"),
        (PermissionError(errno.EACCES, "denied", "x.png"), 2, "x.png cannot be"),
        (IsADirectoryError(errno.EISDIR, "is one", "y.png"), 2, "y.png cannot be"),
        (UserError("name=3 is wrong."), 2, "name=3 is wrong."),
        (HostLost("start again."), 75, "start again."),
        (KeyboardInterrupt(), 130, "Interrupted; nothing was written."),
        (BrokenPipeError(), 141, None),
    ],
    ids=repr,
)
def test_whatever_ends_a_command_is_one_paragraph(
    error, status, part, tmp_path, monkeypatch, capsys
):
    def work():
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_NO_WORD", "x")
    monkeypatch.delenv(process.DEBUG, raising=False)
    assert process.run("ddpo_fair.x", work, "nothing was written") == status
    text = capsys.readouterr().err
    assert text.strip().count("\n") == 0 and "Traceback" not in text
    assert part in text if part else not text
    files = list(tmp_path.rglob("*.txt"))
    assert len(files) == (status == 1)
    for path in files:
        assert str(path) in text and "in work" in path.read_text()
    if status == 1:
        monkeypatch.setenv(process.DEBUG, "1")
        with pytest.raises(type(error)):
            process.run("ddpo_fair.x", work, "")


@pytest.mark.parametrize(
    ("flags", "part"),
    [
        ("--nonsense=1", r"Unknown flag in XLA_FLAGS: --nonsense=1\)"),
        ("--xla_cpu_prefer_vector_width=x", "Couldn't interpret value x for flag"),
        ("nonsense", 'Could not open file "nonsense"'),
    ],
)
def test_flags_for_which_xla_would_end_the_process(flags, part, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", flags)
    with pytest.raises(UserError, match=f"^XLA_FLAGS='{flags}' of the env.*{part}"):
        parallel.start(1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("command", "statuses", "lines"),
    [
        ("train --help | head -1 >&2", {0, 141}, 1),  # as soon as head closes
        ("report --help > /dev/full", {2}, 1),
        ("train --help >&-", {0}, 0),
        ("report --nonsense 2>&-", {2}, 0),
        ("report --nonsense 2> /dev/full", {2}, 0),
    ],
)
def test_closed_and_full_streams(command, statuses, lines):
    line = ["bash", "-o", "pipefail", "-c", f"{sys.executable} -m ddpo_fair.{command}"]
    process = subprocess.run(line, capture_output=True, text=True, cwd=ROOT)
    assert process.returncode in statuses and process.stderr.count("\n") == lines


# While it imports, and in the midst of its work.
INTERRUPTIONS = [("train", 0.5, signal.SIGINT), ("train", 0.5, signal.SIGTERM)]
INTERRUPTIONS += [("report", 0.5, signal.SIGINT)]
INTERRUPTIONS += [("embedded.pretrain", 1.5, signal.SIGINT)]


@pytest.mark.long
@pytest.mark.parametrize(("module", "seconds", "number"), INTERRUPTIONS)
def test_an_interruption_is_one_line(module, seconds, number, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-X", "importtime", "-m", f"ddpo_fair.{module}", CONFIG],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    for line in process.stderr:
        if line.endswith(" ddpo_fair\n"):  # the package has been imported
            break
    time.sleep(seconds)
    process.send_signal(number)
    text = process.communicate(timeout=60)[1]
    said = [line for line in text.splitlines() if line and "import time:" not in line]
    assert len(said) == 1, (process.returncode, said)
    assert process.returncode in (2, 75, 130, -signal.SIGINT)  # the last at its end


DEAF = """
import signal, time, ddpo_fair
signal.signal(signal.SIGINT, ddpo_fair.leave_early)  # as at the start of a command
from ddpo_fair import process
def work():
    print("works", flush=True)
    while True:
        try: time.sleep(60)
        except KeyboardInterrupt: pass
process.run("x", work, "nothing was written")
"""


@pytest.mark.long
def test_ctrl_c_ends_what_does_not_listen():
    process = tiny_run.python("-c", DEAF)
    assert process.stdout.readline() == "works\n"
    process.send_signal(signal.SIGINT)
    text = process.communicate(timeout=30)[1]
    assert process.returncode == 130
    assert text == "\nInterrupted; nothing was written.\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("module", "arguments", "part"),
    [
        ("train", [CONFIG, "--config.seed=x", "--config.eta=0"], "2 settings cannot"),
        ("evaluate", [], "Which run?"),
        ("report", [], "Which run? Give its folder"),
        ("export", ["--run=nowhere"], "--output is missing"),
    ],
)
def test_a_real_process_answers_at_once(module, arguments, part):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = tiny_run.python("-m", f"ddpo_fair.{module}", *arguments)
    ((output, text),) = tiny_run.finish(process, status=2)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert output == "" and part in text
    assert "Traceback" not in text and text.count("\n") == 1
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < SECONDS
