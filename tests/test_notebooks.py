"""The notebooks: small, sound, and true from the first cell to the last."""

import base64
import json
from pathlib import Path

import pytest
import tiny_run

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
MOST_IMAGES = 150_000  # bytes, in all
SECONDS = 170  # all of them within 3 minutes on two idle cores
# Where a test takes fewer images and steps than a user, and does no less.
FEWER = {
    "audit": {'"embedded", 16,': '"embedded", 4, steps=5,'},
    "demo": {
        "num_images=16": "num_images=8",
        "log.images = 16": "log.images = 8; settings.sample.batch_per_device = 4"
        "; settings.train.microbatch = 4"
        "; settings.sample.num_steps, settings.train.skip_last_steps = 5, 3",
    },
    "results": {},
}


def cells(path: Path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_code_is_python(path):
    for cell in cells(path):
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), str(path), "exec")


def test_images_are_small_and_no_output_is_an_error():
    size = 0
    for cell in (cell for path in NOTEBOOKS for cell in cells(path)):
        for output in cell.get("outputs", []):
            assert output["output_type"] != "error"
            for kind, content in output.get("data", {}).items():
                if kind.startswith("image/"):
                    size += len(base64.b64decode("".join(content)))
    assert size < MOST_IMAGES


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("XLA_FLAGS", tiny_run.devices(2))  # as users have
    for name in ("DDPO_FAIR_RUN", "DDPO_FAIR_RUNS"):
        monkeypatch.delenv(name, raising=False)
    source = path.read_text(encoding="utf-8")
    for usual, fewer in FEWER[path.stem].items():
        usual, fewer = (json.dumps(text)[1:-1] for text in (usual, fewer))
        assert source.count(usual) == 1
        source = source.replace(usual, fewer)
    notebook = nbformat.reads(source, as_version=4)
    folder = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(
        notebook, timeout=SECONDS, startup_timeout=SECONDS, resources=folder
    )
    client.execute()
    last = notebook.cells[-1] if path.stem == "results" else notebook.cells[-2]
    assert any("image/png" in one.get("data", {}) for one in last["outputs"])
