"""The documents as a site: `sphinx-build -W -c docs . site` (extra `docs`)."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ddpo_fair import __version__, experiment  # noqa: E402 - of this checkout

project, release, html_title = "ddpo_fair", __version__, "ddpo_fair"
root_doc = "docs/index"
# The pages stay where they are read on GitHub; the site only ties them together.
include_patterns = ["*.md", "docs/*.md", "launch/*.md", "benchmarks/*.md"]
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
myst_heading_anchors = 4
myst_enable_extensions = ["deflist"]
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_use_ivar = True
# Docstrings are plain text with backticks, as they are read in an editor.
default_role = "code"


def _settings() -> str:
    """Every setting of a config with its defaults, from the comments of config.py."""
    found, group = [], ""
    for name, value, others, meaning in experiment.settings():
        own = name.rpartition(".")[0] or "general"
        if own != group:
            found.append(f"## {own}\n")
            group = own
        differs = f", `{others}`" if others else ""
        text = " ".join(meaning).replace("<", "&lt;").replace("*", r"\*")
        found.append(f"`{name}` = `{value!r}`{differs}\n: {text}\n")
    return "\n".join(found)


def _fill(app: object, name: str, source: list[str]) -> None:
    source[0] = source[0].replace("<!-- settings -->", _settings())


def _plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Takes |x| for an absolute value, where reStructuredText has a substitution."""
    lines[:] = [line.replace("|", r"\|") for line in lines]


def setup(app: object) -> None:
    """Sphinx calls it."""
    app.connect("source-read", _fill)
    app.connect("autodoc-process-docstring", _plain)
