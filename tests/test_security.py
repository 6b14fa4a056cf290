"""Hostile files, names and texts do nothing but get refused, or stay texts."""

import ast
import json
import pathlib
import struct
import subprocess
import sys
from types import SimpleNamespace
from xml.etree import ElementTree

import huggingface_hub
import made_runs
import pytest
import tiny_model
from refusals import CONFIG, refused

from ddpo_fair import command_line, train
from ddpo_fair import config as configuration
from ddpo_fair.errors import LONGEST, UserError, paragraph
from ddpo_fair.evaluation import evaluation_parts, evaluation_plan
from ddpo_fair.evaluation.evaluation_plan import Plan, Sampler
from ddpo_fair.models import hub, tensor_files
from ddpo_fair.prompts import Prompt
from ddpo_fair.report import model_card, writer
from ddpo_fair.training import run_folder, saved_run

PACKAGE = pathlib.Path(tensor_files.__file__).parents[1]
FLOATS = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
TWICE = json.dumps({"a": FLOATS})[:-1] + ", " + json.dumps({"a": FLOATS})[1:]


def file_of(header, data=16, size=None):
    """A safetensors file: the header's length, the header, so many bytes of data."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if size is None else size
    return struct.pack("<Q", length) + text + bytes(data)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04\x95" + bytes(50),  # a pickle
        struct.pack("<Q", 0),
        file_of({"a": FLOATS}, size=2**60),
        file_of({"a": FLOATS}, size=2**63 + 1),
        file_of({"a": FLOATS}, size=10**6),  # longer than the file
        file_of({"a": FLOATS}, size=10),
        file_of({"a": FLOATS}, data=15),
        file_of({"a": FLOATS}, data=17),
        file_of({"a": FLOATS, "b": FLOATS}),  # the same bytes
        file_of({"a": FLOATS, "b": {**FLOATS, "data_offsets": [8, 24]}}, data=24),
        file_of({"a": FLOATS, "b": {**FLOATS, "data_offsets": [32, 48]}}, data=48),
        file_of({"a": {**FLOATS, "data_offsets": [16, 0]}}),
        file_of({"a": {**FLOATS, "data_offsets": [-16, 0]}}),
        file_of({"a": {**FLOATS, "data_offsets": [0, 2**62], "shape": [2**60]}}),
        file_of({"a": {**FLOATS, "shape": [5]}}),
        file_of({"a": {**FLOATS, "shape": [-4]}}),
        file_of({"a": {**FLOATS, "shape": [4.0]}}),
        file_of({"a": {**FLOATS, "shape": [2**62, 4]}}),
        file_of({"a": {**FLOATS, "shape": [2**32, 2**32, 4]}}),
        file_of({"a": {**FLOATS, "shape": [0, 2**63]}}),
        file_of({"a": {**FLOATS, "dtype": "O"}}),
        file_of({"a": {"shape": [4]}}),
        file_of({"__metadata__": {"a": 5}}, data=0),
        file_of(TWICE.encode()),
        file_of(b"null"),
        file_of(b"[1]"),
        file_of(b"{" * 50),
        file_of(b"[" * 100_000),
        file_of(b"\xff" * 50),
    ],
    ids=range(30),
)
def test_hostile_tensors_are_refused(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(UserError, match="no sound safetensors file") as raised:
        tensor_files.open_all([path])
    assert str(path) in str(raised.value) and "download it again" in str(raised.value)


def test_the_sound_file_is_read(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(file_of({"a": FLOATS}))
    found = tensor_files.open_all([tmp_path / "model.safetensors"])
    assert tensor_files.read(*found["a"][:1], "a", tmp_path).tolist() == [0] * 4


def test_more_axes_than_numpy_has(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(file_of({"a": {**FLOATS, "shape": [1] * 100 + [4]}}))
    (file, _) = tensor_files.open_all([path])["a"]
    with pytest.raises(UserError, match="cannot be read"):
        tensor_files.read(file, "a", path)


# What would run code that a file, a config or the network brings.
FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal"}
FORBIDDEN_MODULES |= {"shelve", "yaml", "torch", "ctypes", "telnetlib", "ftplib"}
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__", "system", "popen"}
FORBIDDEN_CALLS |= {"execv", "execve", "spawnl", "spawnv", "mktemp", "unpickle"}


def crimes(tree):
    """Forbidden imports, calls and arguments of a module, with their lines."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            names += [node.module] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                if name.split(".")[0] in FORBIDDEN_MODULES:
                    yield node.lineno, name
        if not isinstance(node, ast.Call):
            continue
        called = node.func
        owner = getattr(getattr(called, "value", None), "id", None)
        if isinstance(called, ast.Name) and called.id in FORBIDDEN_CALLS:
            yield node.lineno, called.id
        if owner in ("os", "builtins", "tempfile") and called.attr in FORBIDDEN_CALLS:
            yield node.lineno, called.attr
        for word in node.keywords:
            said = getattr(word.value, "value", None)
            if word.arg in ("shell", "allow_pickle", "trust_remote_code") and said:
                yield node.lineno, word.arg


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from yaml import load", "eval('1')", "os.system('x')"),
        *("run('x', shell=True)", "np.load(f, allow_pickle=True)", "exec(text)"),
    ],
)
def test_the_search_finds_what_it_looks_for(source):
    assert list(crimes(ast.parse(source)))


def test_nothing_in_the_package_runs_foreign_code():
    found = {
        f"{path.relative_to(PACKAGE)}:{line}: {what}"
        for path in PACKAGE.rglob("*.py")
        for line, what in crimes(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert not found


def test_bandit_finds_nothing():
    pytest.importorskip("bandit")
    command = [sys.executable, "-m", "bandit", "-q", "-r", str(PACKAGE), "-ll"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout


def test_a_config_file_is_the_only_code_that_is_run(capsys):
    for text in ("__import__('os').abort()", "(__import__('os').abort(),)"):
        said = refused(train.main, [CONFIG, f"--config.prompts={text}"], capsys)
        assert "__import__" in said
    command, problems = command_line.parse([CONFIG, "--config.epochs=2+2"], "x")
    assert problems and command.config.epochs == 20


HOSTILE_NAMES = ("../up", "..", ".", "/abs", "a/b", "a\0b", "~", "-rf", "a\nb", "é", "")


@pytest.mark.parametrize("name", HOSTILE_NAMES)
def test_a_run_stays_inside_its_folder(name):
    config = configuration.defaults()
    config.run.name = name
    with pytest.raises(UserError, match=r"run\.name="):
        train.check(config, [])


@pytest.mark.parametrize("text", ["../../etc/passwd", "/abs", "..", "a\\b", "医", "."])
def test_pictures_stay_inside_the_evaluation(tmp_path, text):
    sampler = Sampler(1.0, 1.0, 5)
    plan = Plan({}, (sampler,), (Prompt(text, "given"),), 2, 0, 2, 1)
    job = next(evaluation_plan.jobs(plan))
    path = evaluation_parts.image_path(tmp_path, job, plan, 0)
    assert path.resolve() == path and path.is_relative_to(tmp_path / "images")


@pytest.fixture
def downloads(monkeypatch):
    """A hub that lists `files` and notes which revisions it is asked for."""
    noted = SimpleNamespace(listed=[], fetched=[], files=["config.json"])

    def model_info(self, name, revision, timeout):
        noted.listed.append(revision)
        siblings = [SimpleNamespace(rfilename=file) for file in noted.files]
        return SimpleNamespace(sha=40 * "a", siblings=siblings)

    def download(name, file, revision, etag_timeout):
        noted.fetched.append((file, revision))
        return f"/cache/{file}"

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return noted


@pytest.mark.parametrize("revision", ["v1.0", 40 * "b", "refs/pr/3"])
def test_a_revision_is_what_is_downloaded(downloads, revision):
    downloads.files += ["model.safetensors"]
    reference = f"owner/name@{revision}"
    hub.download("classifier", reference, ("",), lambda file: False)
    assert downloads.listed == [revision]
    # All of one commit, whatever the branch does meanwhile; then its name is noted.
    *files, note = downloads.fetched
    assert {commit for _, commit in files} == {40 * "a"} and len(files) == 2
    assert note[1] == revision


@pytest.mark.parametrize("file", ["tokenizer/../../x.json", "/etc/x", "../x"])
def test_a_hub_cannot_name_files_elsewhere(downloads, file):
    downloads.files += ["model.safetensors", file]
    with pytest.raises(UserError, match="do not trust this model"):
        hub.download("classifier", "owner/name", ("",), lambda name: name == file)
    assert downloads.fetched == []


def test_messages_give_a_terminal_no_orders():
    text = paragraph(UserError("a\x1b[2J\x07\u202eb\ud800\n c" + 10**6 * "x"))
    assert text.startswith("a\\x1b[2J\\x07\\u202eb\\ud800 cxxx") and text.isprintable()
    assert len(text) < LONGEST + 10


def test_figures_of_a_hostile_run_hold_no_script(tmp_path):
    bad = made_runs.HOSTILE
    lines = made_runs.balancing(3)
    for line in lines:
        line["prompts"] = {
            bad: made_runs.evaluation(10, 20),
            "b": made_runs.evaluation(5, 9),
        }
    folder = made_runs.make(tmp_path / "run", lines, prompts=[bad, "b"], model=bad)
    writer.write([folder])
    figures = list(tmp_path.rglob("*.svg"))
    assert figures
    for path in figures:
        for element in ElementTree.parse(path).iter():
            assert element.tag.rpartition("}")[2] not in ("script", "foreignObject")
            assert not any(name.startswith("on") for name in element.attrib)


def test_prompts_in_a_model_card_stay_text(tmp_path):
    config = tiny_model.config(tmp_path, tmp_path, tmp_path)
    config.prompts = ("<script>alert(1)</script> [a](http://b) `c` |", "b")
    run_folder.path_of(config).mkdir()
    run_folder.write_config(run_folder.path_of(config), config)
    saved = saved_run.read(run_folder.path_of(config))
    text = model_card.write(saved, 3, "lora")
    assert r"- \<script\>alert(1)\</script\> \[a\](http://b) \`c\` \|" in text
    assert "<script>" not in text.partition("## How to use it")[0]
