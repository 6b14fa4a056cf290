"""The documents: small, and every link in them leads somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [
    *ROOT.glob("*.md"),
    *(
        path
        for name in ("docs", "launch", "benchmarks")
        for path in ROOT.glob(f"{name}/*.md")
    ),
]
MOST_WORDS = 900  # of the README, outside code
MOST_BYTES, MOST_IN_ALL = 100_000, 5_000_000  # of docs/


def text(page: Path) -> str:
    """A page without its code blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    titles = re.findall(r"^#+ (.+)$", text(page), re.M)
    return {re.sub(r"[^\w\- ]", "", t.lower()).replace(" ", "-") for t in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text(page))
    for link in (one or other for one, other in links):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short_and_docs_are_light():
    assert len(text(ROOT / "README.md").split()) <= MOST_WORDS
    sizes = {path: path.stat().st_size for path in (ROOT / "docs").rglob("*.*")}
    assert max(sizes.values()) <= MOST_BYTES, max(sizes, key=sizes.get)
    assert sum(sizes.values()) <= MOST_IN_ALL
