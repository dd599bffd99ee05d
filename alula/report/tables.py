"""Markup that cannot be injected into: whatever is not :class:`Html` is escaped on its way into the page."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from html import escape


class Html(str):
    """Text that is markup already. Only functions of this package make it."""

    __slots__ = ()


def safe(value: object) -> Html:
    """``value`` as markup: itself if it is markup, escaped text otherwise."""
    return value if isinstance(value, Html) else Html(escape(str(value), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Html:
    """The parts as one piece of markup."""
    return Html(separator.join(safe(part) for part in parts))


def element(tag: str, *content: object, **attributes: object) -> Html:
    """An element; attribute names lose a trailing underscore, and ``_`` inside them becomes ``-``.

    >>> element("p", "a < b", class_="note", aria_label="x")
    '<p class="note" aria-label="x">a &lt; b</p>'
    """
    words = (
        f' {name.rstrip("_").replace("_", "-")}="{escape(str(value), quote=True)}"'
        for name, value in attributes.items()
        if value is not None
    )
    return Html(f"<{tag}{''.join(words)}>{join(content)}</{tag}>")


@dataclass(frozen=True, slots=True)
class Column:
    """The head of a table's column."""

    title: str
    number: bool = False  # right-aligned, and sorted by value
    wide: bool = False  # prose: wraps, at least a readable width


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and the number it is sorted by (None sorts last)."""

    shown: object
    order: float | None = None


def table(
    caption: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[object]],
    *,
    sortable: bool = False,
    marked: Collection[int] = (),
    tall: bool = False,
) -> Html:
    """A captioned table in a box of its own, which scrolls sideways where the page is narrower.

    A sortable table is sorted by the buttons in its head (see page.js); the first cell of each row is its heading;
    the rows whose indices are ``marked`` stand out. The box of a ``tall`` one scrolls downwards too.
    """
    head = join(
        element("th", element("button", column.title, type="button") if sortable else column.title, scope="col",
                class_=_kind(column), data_sort=("number" if column.number else "text") if sortable else None)
        for column in columns
    )  # fmt: skip
    body = join(_row(columns, row, marked=index in marked) for index, row in enumerate(rows))
    return element(
        "div",
        element(
            "table",
            element("caption", caption),
            element("thead", element("tr", head)),
            element("tbody", body),
            class_="sortable" if sortable else None,
        ),
        class_="box tall" if tall else "box",
        role="region",
        aria_label=caption,
        tabindex="0",
    )


def path(name: str) -> Html:
    """A layer's name that may break after its separators."""
    return join(re.split(r"(?<=[/._:])(?=[^/._:])", name), "<wbr>")


def facts(pairs: Iterable[tuple[object, object]]) -> Html:
    """Names and their values, as a description list."""
    return element("dl", join(element("div", element("dt", name), element("dd", value)) for name, value in pairs))


def _row(columns: Sequence[Column], row: Sequence[object], *, marked: bool) -> Html:
    return element(
        "tr",
        join(
            _cell("th" if index == 0 else "td", column, cell)
            for index, (column, cell) in enumerate(zip(columns, row, strict=True))
        ),
        class_="marked" if marked else None,
    )


def _cell(tag: str, column: Column, cell: object) -> Html:
    cell = cell if isinstance(cell, Cell) else Cell(cell)
    return element(
        tag,
        cell.shown,
        scope="row" if tag == "th" else None,
        class_=_kind(column),
        data_order=None if cell.order is None else repr(float(cell.order)),
    )


def _kind(column: Column) -> str | None:
    return "number" if column.number else "wide" if column.wide else None
