"""HTML by construction: whatever is not markup already is escaped on its way in."""

import html
import re

# What no HTML document may hold: control characters, surrogates, non-characters.
FORBIDDEN = re.compile(
    r"[^\t\n\r\x20-\x7e\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]"
)
VOID = ("img", "br", "meta")  # elements without an end


class Markup(str):
    """Text that is HTML. Anything else counts as plain text."""


def text(value: object) -> Markup:
    """`value` as HTML that shows just that text."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(FORBIDDEN.sub("\ufffd", str(value))))


def element(name: str, /, *children: object, **attributes: object) -> Markup:
    """An element with its children.

    Args:
        name: of the element.
        children: markup, or text that is escaped; None is left out.
        attributes: values are escaped; "class_" is class, "_" within a name is "-".
    """
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{shown}>")
    inner = "".join(text(child) for child in children if child is not None)
    return Markup(f"<{name}{shown}>{inner}</{name}>")


def join(parts: list[Markup]) -> Markup:
    """Pieces of markup one after the other."""
    return Markup("".join(text(part) for part in parts))


def quoted(prompt: str) -> Markup:
    """A prompt in quotation marks; its writing direction stays inside them."""
    return element("q", element("bdi", prompt))


def table(head: list[object], rows: list[list[object]], class_: str = "") -> Markup:
    """A table that scrolls by itself where it is too wide; first cells are headers."""
    top = element("tr", *(element("th", cell, scope="col") for cell in head))
    body = [
        element(
            "tr",
            element("th", row[0], scope="row"),
            *(element("td", cell) for cell in row[1:]),
        )
        for row in rows
    ]
    inside = element("table", element("thead", top), element("tbody", *body))
    return element("div", inside, class_=f"scroll {class_}".strip())
