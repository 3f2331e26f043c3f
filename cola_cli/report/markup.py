"""HTML and SVG elements whose text and attributes are escaped unless they are Markup already."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

VOID = frozenset({"meta"})
SVG_LEAVES = frozenset({"circle", "line", "path", "polyline", "rect"})
UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all controls but tab and newline


class Markup(str):
    """Text that is HTML already; everything else is escaped when it enters an element."""

    __slots__ = ()


def escaped(text: Any) -> Markup:
    """`text` as HTML text, unless it is Markup; controls and lone surrogates become U+FFFD or ?."""
    if isinstance(text, Markup):
        return text
    printable = UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(text))
    return Markup(html.escape(printable.encode("utf-8", "replace").decode("utf-8")))


def element(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """`<name attributes>children</name>`.

    None among children or attributes is left out; iterables of children are joined. `class_` stands for
    class, `data_label` for data-label; floats get two decimals.
    """
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escaped(_attribute(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in VOID:
        return Markup(f"<{name}{written}>")
    if name in SVG_LEAVES and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Markup:
    """All children, one after the other; lists and iterators are opened, None is left out."""
    pieces: list[str] = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, str) or not isinstance(child, Iterable):
            pieces.append(escaped(child))
        else:
            pieces.append(joined(child))
    return Markup("".join(pieces))


def table(
    columns: Sequence[Any], rows: Sequence[Sequence[Any]], class_: str | None = None
) -> Markup:
    """A table whose first column names the rows; it scrolls by itself where the page is narrow."""
    head = element("tr", [element("th", column, scope="col") for column in columns])
    body = [
        element("tr", element("th", name, scope="row"), [element("td", cell) for cell in cells])
        for name, *cells in rows
    ]
    written = element("table", element("thead", head), element("tbody", body), class_=class_)
    return element("div", written, class_="scroll", tabindex=0)


def _attribute(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def shortened(text: str, most: int) -> str:
    """The text with its middle left out where it is longer than `most` characters."""
    if len(text) <= most:
        return text
    tail = (most - 1) // 2
    return f"{text[: most - 1 - tail]}…{text[-tail:]}"
