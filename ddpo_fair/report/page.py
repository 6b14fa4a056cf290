"""The report as one HTML page that needs nothing but itself."""

import base64
import dataclasses
import io
import time
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

import ddpo_fair
from ddpo_fair.report import evaluation_tables, html, tables
from ddpo_fair.report.html import Markup, element
from ddpo_fair.report.run_reader import Record
from ddpo_fair.report.summary import Verdict

CSS = Path(__file__).with_name("page.css")
# No script, no network: even a hole in the escaping would find nothing to call.
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    " base-uri 'none'; form-action 'none'"
)
LARGEST_SIDE = 1100  # pixels of a grid that goes in as it is
FILM_SIDE, FILM_LENGTH = 420, 3  # pixels and number of the grids in between


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A chart as it stands in the page."""

    title: str
    caption: str
    picture: Markup


def build(
    groups: Sequence[Sequence[Record]],
    verdicts: Sequence[Verdict],
    alone: Sequence[Drawn],
    curves: Sequence[Drawn],
) -> str:
    """The whole page.

    Args:
        groups: runs that differ in their seed only, together.
        verdicts: one for each group.
        alone: charts that are a section each; the first stands before the pictures.
        curves: all others.
    """
    runs = [run for group in groups for run in group]
    title = ", ".join(run.name for run in runs)
    body = [
        _header(title, runs),
        *(
            _verdict(found, group, len(groups) > 1)
            for group, found in zip(groups, verdicts, strict=True)
        ),
        tables.key_figures(runs[0]) if len(runs) == 1 else None,
        tables.comparison(groups, verdicts) if len(runs) > 1 else None,
        tables.differences(groups) if len(groups) > 1 else None,
        *map(_alone, alone[:1]),
        section("Before and after", *_pictures(runs)),
        *map(_alone, alone[1:]),
        section("By prompt", *(tables.prompts(run, len(runs) > 1) for run in runs)),
        *(_evaluated(run, len(runs) > 1) for run in runs),
        section("Training", element("div", *map(_figure, curves), class_="many"))
        if curves
        else None,
        section("Settings and origin", *(_origin(run, len(runs) > 1) for run in runs)),
        section("How to read this", *_reading()),
    ]
    return _document(f"{title}: fairness report", body)


def section(title: str, *children: object) -> Markup:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *children)


def _document(title: str, body: list[Markup | None]) -> str:
    head = [
        element("meta", charset="utf-8"),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Markup(f"<title>{html.text(title)}</title>"),
        Markup(f"<style>\n{CSS.read_text(encoding='utf-8')}</style>"),
    ]
    page = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{page}\n"


def _header(title: str, runs: Sequence[Record]) -> Markup:
    when = time.strftime("%Y-%m-%d %H:%M %Z")
    return element(
        "header",
        element("h1", f"Fairness report: {title}"),
        element("p", f"{when}, ddpo_fair {ddpo_fair.__version__}", class_="meta"),
    )


def _verdict(found: Verdict, group: Sequence[Record], several: bool) -> Markup:
    names = ", ".join(run.name for run in group)
    opinions = [evaluation_tables.second_opinion(run) for run in group]
    remarks = [*(opinion for opinion in opinions if opinion), *found.doubts]
    return element(
        "section",
        element("p", names, class_="of") if several else None,
        element("p", found.word, class_="word"),
        element("p", found.sentence, class_="said"),
        element("ul", *(element("li", one) for one in remarks), class_="doubts")
        if remarks
        else None,
        class_="verdict",
    )


def _figure(drawn: Drawn) -> Markup:
    title = element("h3", drawn.title) if drawn.title else None
    return element("figure", title, drawn.picture, element("figcaption", drawn.caption))


def _alone(drawn: Drawn) -> Markup:
    """A chart that is a section."""
    return section(drawn.title, _figure(dataclasses.replace(drawn, title="")))


def _pictures(runs: Sequence[Record]) -> list[Markup]:
    found = []
    for run in runs:
        if len(runs) > 1:
            found.append(element("h3", run.name))
        if not run.grids:
            found.append(
                element("p", "The run has saved no pictures yet.", class_="meta")
            )
            continue
        epochs = list(run.grids)
        ends = list(dict.fromkeys([epochs[0], epochs[-1]]))
        shown = [_grid(run, epoch, LARGEST_SIDE) for epoch in ends]
        found.append(element("div", *shown, class_="two"))
        middle = epochs[1:-1]
        if middle:
            step = max(1, len(middle) // FILM_LENGTH)
            film = [_grid(run, e, FILM_SIDE) for e in middle[::step][:FILM_LENGTH]]
            found.append(
                element(
                    "details",
                    element("summary", "In between"),
                    element("div", *film, class_="film"),
                )
            )
    if any(len(run.grids) > 1 for run in runs):
        text = (
            "Each place of a grid starts from the same noise before and after: a change"
            " in one place is a change of the model, not of luck."
        )
        found.append(element("p", text, class_="meta"))
    return found


def _grid(run: Record, epoch: int, side: int) -> Markup:
    when = "Before training" if epoch == 0 else f"After epoch {epoch}"
    path = run.grids[epoch]
    try:
        source = data_uri(path, side)
    except Exception as error:  # Pillow raises whatever a broken file brings up
        text = f"{when}: {path.name} cannot be read ({type(error).__name__})."
        return element("p", text, class_="meta")
    picture = element("img", src=source, alt=f"{when}: a grid of generated pictures")
    return element("figure", element("h3", when), picture)


def data_uri(path: Path, side: int) -> str:
    """An image file as a data URI, at most so many pixels wide and high."""
    content, kind = path.read_bytes(), "png"
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        if max(image.size) > side:
            image = image.convert("RGB")
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
            file = io.BytesIO()
            image.save(file, format="jpeg", quality=88)
            content, kind = file.getvalue(), "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _evaluated(run: Record, several: bool) -> Markup | None:
    found = evaluation_tables.section(run)
    if not found:
        return None
    sheets = sorted(run.folder.glob("evaluation_*/samplers.png"))[-1:]
    found += [_sheet(path) for path in sheets]
    return section(f"Evaluation: {run.name}" if several else "Evaluation", *found)


def _sheet(path: Path) -> Markup:
    """The same seeds under all samplers."""
    try:
        source = data_uri(path, LARGEST_SIDE)
    except Exception as error:  # Pillow raises whatever a broken file brings up
        text = f"{path.name} cannot be read ({type(error).__name__})."
        return element("p", text, class_="meta")
    text = "The same seeds under each sampler, before and after training."
    picture = element("img", src=source, alt=text)
    return element("figure", picture, element("figcaption", text))


def _origin(run: Record, several: bool) -> Markup:
    return element(
        "div",
        element("h3", run.name) if several else None,
        tables.origin(run),
        element("details", element("summary", "All settings"), tables.settings(run)),
        element("details", element("summary", "Epoch by epoch"), tables.epochs(run)),
    )


def _reading() -> list[Markup]:
    texts = (
        "Brackets are 95 % intervals: Wilson's for a share, Newcombe's for the"
        " difference of two, Student's t over seeds, the bootstrap over prompts. A"
        " verdict of balance says that the interval holds the target, no more; a wide"
        " interval holds much else.",
        "Female and male are what a classifier calls the picture of a face: a"
        " perception with error bars, nobody's identity. What it calls neither counts"
        " as neither.",
        "The classifier that judges here is the one that gave the reward, so part of"
        " the change may please this classifier only. A second one, held-out prompts"
        " and image quality are measured by python -m ddpo_fair.evaluate; write the"
        " report again after it.",
    )
    return [element("p", text) for text in texts]
