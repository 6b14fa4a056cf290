"""Models of a hub that answers on this machine, in all the ways a hub can fail."""

import hashlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import pytest
from huggingface_hub import constants

from ddpo_fair.errors import UserError
from ddpo_fair.models import hub, lora_files, sources

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAME = "someone/sd"


def contents(names):
    """Files, all different: the hub's cache keeps equal ones once."""
    return {name: f"content of {name}" for name in names.split()}


PLAIN = contents("""
    model_index.json scheduler/scheduler_config.json
    tokenizer/vocab.json tokenizer/merges.txt
    text_encoder/config.json text_encoder/model.safetensors
    unet/config.json unet/diffusion_pytorch_model.safetensors
    vae/config.json vae/diffusion_pytorch_model.safetensors
""")
NEEDED = sorted(PLAIN)
UNNEEDED = contents("""
    README.md v1-5-pruned.ckpt safety_checker/model.safetensors
    text_encoder/model.fp16.safetensors text_encoder/pytorch_model.bin
    unet/diffusion_pytorch_model.bin unet/diffusion_pytorch_model.fp16.safetensors
    unet/diffusion_pytorch_model.non_ema.safetensors
    vae/diffusion_pytorch_model.fp16.safetensors
""")
CLASSIFIER = contents("""
    config.json preprocessor_config.json model.safetensors
    pytorch_model.bin training_args.bin
""")


class Hub(http.server.ThreadingHTTPServer):
    """A hub with one repository; `status` and `code` make it fail."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = PLAIN | UNNEEDED
        self.status, self.code = 200, ""
        self.revisions = set()  # that were asked for
        self.requests = []

    def got(self):
        """Files that were downloaded, in order of their names."""
        return sorted(path for method, path, _ in self.requests if method == "GET")


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET(body=False)

    def do_GET(self, body=True):
        server = self.server
        if server.status != 200:
            return self.answer(server.status, b"{}", {"X-Error-Code": server.code})
        path = urllib.parse.urlsplit(self.path).path
        if path.startswith(f"/api/models/{NAME}/tree/"):
            tree = [
                {"type": "file", "path": name, "size": len(text), "oid": name}
                for name, text in server.files.items()
            ]
            return self.answer(200, json.dumps(tree).encode(), {})
        if path.startswith(f"/api/models/{NAME}"):
            revision = urllib.parse.unquote(path.partition("/revision/")[2])
            server.revisions.add(revision)
            siblings = [{"rfilename": name} for name in server.files]
            sha = revision if re.fullmatch("[0-9a-f]{40}", revision) else COMMIT
            info = {"_id": "1", "id": NAME, "sha": sha, "siblings": siblings}
            return self.answer(200, json.dumps(info).encode(), {})
        _, _, rest = path.partition(f"/{NAME}/resolve/")
        commit, _, name = rest.partition("/")
        if name not in server.files:
            return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        content = server.files[name].encode()
        server.requests.append((self.command, name, commit))
        etag = hashlib.sha1(content).hexdigest()
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit}
        return self.answer(200, content if body else b"", headers, len(content))

    def answer(self, status, content, headers, length=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length or len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub client that may go online."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    return tmp_path / "cache"


def point_to(monkeypatch, address):
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture
def server(cache, monkeypatch):
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
        yield server
        server.shutdown()


def files_of(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))


def test_a_variant_comes_instead_of_the_usual_files(server):
    folder = sources.model_folder(f"{NAME}@main", "fp16")
    weights = [name for name in files_of(folder) if name.endswith(".safetensors")]
    assert weights == [name for name in UNNEEDED if ".fp16." in name]


@pytest.mark.parametrize("revision", ["v1.0", 40 * "b", "refs/pr/3"])
def test_a_revision_is_what_is_downloaded(server, revision):
    sources.model_folder(f"{NAME}@{revision}")
    assert server.revisions == {revision}
    # All of one commit, whatever the branch does meanwhile.
    commit = revision if len(revision) == 40 else COMMIT
    assert {asked for _, _, asked in server.requests} == {commit}


def test_a_hub_cannot_name_files_elsewhere(server, tmp_path):
    hostile = "tokenizer/../../../x.json /etc/x ../x unet/../../x.safetensors"
    server.files = contents(hostile) | PLAIN
    sources.model_folder(NAME)
    assert server.got() == NEEDED


def test_shards_come_with_their_index(server):
    del server.files["unet/diffusion_pytorch_model.safetensors"]
    shards = contents("""
        unet/diffusion_pytorch_model-00001-of-00002.safetensors
        unet/diffusion_pytorch_model-00002-of-00002.safetensors
        unet/diffusion_pytorch_model.safetensors.index.json
    """)
    half = "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors"
    server.files |= shards | contents(half)
    folder = sources.model_folder(NAME)
    found = [name for name in files_of(folder) if name.startswith("unet/diff")]
    assert found == list(shards)


def test_a_plan_takes_configs_alone_and_training_the_rest(server):
    folder = sources.model_folder(NAME, with_weights=False)
    light = [name for name in NEEDED if not name.endswith(".safetensors")]
    assert files_of(folder) == light == server.got()
    assert files_of(sources.model_folder(NAME)) == NEEDED == server.got()
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (folder / name).read_text() == PLAIN[name]


def test_the_classifier_comes_without_pickles(server):
    server.files = CLASSIFIER
    folder = sources.classifier_folder(NAME)
    assert files_of(folder) == sorted(list(CLASSIFIER)[:3])
    with pytest.raises(UserError, match=r"has no unet/config\.json"):
        sources.model_folder(NAME)


def test_a_lora_comes_alone_and_is_known_by_its_commit(server):
    server.files = contents("README.md style.safetensors old/style.safetensors x.bin")
    file = lora_files.find(NAME)
    assert file.read_text() == "content of style.safetensors"
    assert server.got() == ["style.safetensors"]
    known = lora_files.identity(f"{NAME}@v1", "base_lora")
    server.revisions.clear()
    lora_files.find(f"{NAME}@v1", "--lora")  # as training does, to load it
    assert not server.revisions
    assert known["revision"] == COMMIT and [*known["files"]] == ["style.safetensors"]
    assert lora_files.called(f"{NAME}@v1") == NAME
    server.files |= contents(f"{lora_files.PEFT} {lora_files.PEFT_CONFIG}")
    file = lora_files.find(f"{NAME}@{40 * 'b'}")  # which readers look for
    assert file.name == lora_files.PEFT
    assert file.with_name(lora_files.PEFT_CONFIG).exists()


def test_a_repository_of_several_lora_or_none_is_refused(server):
    server.files = contents("README.md a.safetensors b.safetensors")
    message = "it has a.safetensors, b.safetensors.*hf download someone/sd FILE"
    with pytest.raises(UserError, match=message):
        lora_files.find(f"{NAME}@two")
    server.files = contents("README.md pytorch_lora_weights.bin")
    with pytest.raises(UserError, match="it has none"):
        lora_files.find(f"{NAME}@none")
    with pytest.raises(UserError, match="is no file"):  # which is not asked for
        lora_files.find("someone/sd.safetensors")


def test_processes_of_a_host_download_once(server):
    with ThreadPoolExecutor(4) as pool:  # flock keeps threads apart as well
        folders = set(pool.map(sources.model_folder, [NAME] * 4))
    assert len(folders) == 1
    assert server.got() == NEEDED


def test_the_cache_serves_offline_and_while_the_hub_is_down(
    server, monkeypatch, caplog
):
    folder = sources.model_folder(NAME)
    server.status = 503
    assert sources.model_folder(NAME) == folder
    assert "the copy in" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    assert sources.model_folder(NAME) == folder
    huggingface_hub.close_session()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (401, "RepoNotFound", "no such model, or it is private"),
        (404, "RepoNotFound", "no such model, or it is private"),
        (404, "RevisionNotFound", "no revision 'v9'"),
        (403, "GatedRepo", "accept a licence.*hf auth login"),
        (500, "", r"cannot be fetched.*\b500\b"),
        (429, "", r"cannot be fetched.*\b429\b.*try again later"),
    ],
)
def test_each_refusal_has_its_message(server, status, code, message):
    server.status, server.code = status, code
    with pytest.raises(UserError, match=message):
        sources.model_folder(f"{NAME}@v9")


def test_a_name_that_moved_is_said(server):
    server.status, server.code = 401, "RepoNotFound"
    with pytest.raises(UserError, match=r"as stable-diffusion-v1-5/.* now"):
        sources.model_folder("runwayml/stable-diffusion-v1-5")


def test_a_hub_that_hangs_or_is_not_there_is_left_and_none_asked_offline(
    cache, monkeypatch
):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        point_to(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
    with pytest.raises(UserError, match=r"cannot be fetched \(Connect.*HF_ENDPOINT"):
        sources.model_folder(NAME)
    monkeypatch.setattr(hub, "TIMEOUT_SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, and never answered
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(UserError, match=r"did not answer in 0\.3 s"):
            sources.model_folder(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"HF_HUB_OFFLINE.*Unset it.*hf download"):
        sources.model_folder(NAME)


def test_what_a_repository_lacks_is_named(server):
    with pytest.raises(UserError, match=r"bf16.*the variants fp16; choose"):
        sources.model_folder(NAME, "bf16")
    del server.files["vae/diffusion_pytorch_model.safetensors"]
    del server.files["vae/diffusion_pytorch_model.fp16.safetensors"]
    server.files["vae/diffusion_pytorch_model.bin"] = "pickle"
    with pytest.raises(
        UserError, match=r"has no vae/.*, only diff.*\.bin: a pickle can run"
    ):
        sources.model_folder(NAME)
    assert server.got() == []


def test_a_full_disk_says_so(server, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)
    with pytest.raises(UserError, match=r"the disk is full.*HF_HOME"):
        sources.model_folder(NAME)
