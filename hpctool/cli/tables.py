"""Tables that fit where they are shown: columns shrink, then go, on a narrow terminal; a pipe gets everything."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import click
from rich import box
from rich.cells import set_cell_size
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from hpctool.cli.output import cell_text, console, distinct_texts

#: How each state of a run looks.
STATE_STYLES = {
    "queued": "dim",
    "running": "cyan",
    "stopping": "yellow",
    "requeued": "blue",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "broken": "bold red",
    "lost": "magenta",
}
_GAP = 2
_ENDLESS = 100_000
#: a uid stays whole; longer words are paths, or digests in a table that has room for them
_LONGEST_WORD = 32
#: beyond so many rows, and in pipes, a table is plain lines: rich takes a millisecond for a row
_PLAIN_ROWS = 500


@dataclass
class Column:
    """A column and its cells. On a narrow terminal those of the highest `rank` go first, those of rank 0 never."""

    name: str
    cells: Sequence[object]
    rank: int = 0
    #: it may be cut down to this width before anything goes
    min_width: int | None = None
    style: str = ""
    #: values that differ are shown so that they do
    is_exact: bool = False
    #: text goes on in the next line, between words: what is one word (an id, a name) can be copied
    wraps: bool = False
    width: int = field(init=False)
    right: bool = field(init=False)

    def __post_init__(self) -> None:
        self.right = bool(self.cells) and all(isinstance(c, int | float) or c in (None, "") for c in self.cells)
        words = distinct_texts(self.cells) if self.is_exact else [cell_text(cell) for cell in self.cells]
        both = zip(self.cells, words, strict=True)
        self.texts = [cell if isinstance(cell, Text) else Text(text, self.style) for cell, text in both]
        self.width = max([len(self.name), *(text.cell_len for text in self.texts)])
        if self.wraps:
            words_of_it = [*self.name.split(), *(word for text in self.texts for word in text.plain.split())]
            self.min_width = min(_LONGEST_WORD, max(map(len, words_of_it), default=0))


def print_columns(columns: Sequence[Column], title: str = "") -> list[str]:
    """Print columns as a table on stdout; returns the names of those that a narrow terminal had no room for."""
    out = console()
    kept = fit(columns, out.width) if out.is_terminal else list(columns)
    names = {column.name for column in kept}
    gone = [column.name for column in columns if column.name not in names]
    if kept and (not out.is_terminal or len(kept[0].texts) > _PLAIN_ROWS):
        _print_plain(kept, title)
        return gone
    if any(column.wraps for column in kept):
        # Rather than that a word is broken the terminal shall wrap the lines.
        out.width = max(out.width, _total(kept))
    out.print(_table(kept, title))
    return gone


def table_of(columns: Sequence[Column], width: int) -> Table:
    """The same table as something of rich, in so many characters; what there is no room for is left out."""
    return _table(fit(columns, width), "")


def _table(kept: Sequence[Column], title: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, _GAP - 1, 0, 0))
    table.title, table.title_justify, table.title_style = title or None, "left", "bold"
    for column in kept:
        justify: Any = "right" if column.right else "left"
        shape: Any = {"no_wrap": not column.wraps, "overflow": "fold" if column.wraps else "ellipsis"}
        table.add_column(column.name, justify=justify, width=column.width, **shape)
    for cells in zip(*(column.texts for column in kept), strict=True):
        table.add_row(*cells)
    return table


def _print_plain(columns: Sequence[Column], title: str) -> None:
    """The same table without colours."""

    def line(cells: Iterable[str]) -> str:
        padded = zip(cells, columns, strict=True)
        return (" " * _GAP).join(set_cell_size(c, o.width) if not o.right else c.rjust(o.width) for c, o in padded)

    lines = [title] if title else []
    lines += [line(column.name for column in columns), "─" * _total(columns)]
    lines += map(line, zip(*([text.plain for text in column.texts] for column in columns), strict=True))
    click.echo("\n".join(lines))


def print_whole(renderable: RenderableType) -> None:
    """Print something of rich on stdout; in a terminal it fits, and what goes into a pipe is neither cut nor folded."""
    out = console()
    if not out.is_terminal:
        natural = out.measure(renderable, options=out.options.update(max_width=_ENDLESS)).maximum
        out.width = max(out.width, natural + 1)
    out.print(renderable)


def fit(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns that fit into a width: if shrinking is enough the widest shrink, else the highest rank goes."""
    kept = list(columns)
    while (over := _total(kept) - width) > 0:
        shrinkable = [c for c in kept if c.min_width is not None and c.width > c.min_width]
        if sum(c.width - (c.min_width or 0) for c in shrinkable) >= over:
            max(shrinkable, key=lambda c: c.width).width -= 1
        elif loose := [c for c in kept if c.rank]:
            kept.remove(max(loose, key=lambda c: c.rank))
        else:
            for column in shrinkable:
                column.width = column.min_width or column.width
            break
    return kept


def _total(columns: Sequence[Column]) -> int:
    return sum(column.width for column in columns) + _GAP * max(len(columns) - 1, 0)


def state_text(state: str) -> Text:
    """A state in its colour."""
    return Text(state, STATE_STYLES.get(state, ""))


def age_text(created: str) -> str:
    """How long ago a time of ours was, in its largest unit: `4 min`; empty if it cannot be read."""
    try:
        then = datetime.datetime.fromisoformat(created)
        seconds = (datetime.datetime.now(datetime.UTC) - then).total_seconds()
    except (ValueError, TypeError):
        return ""
    for unit, unit_s in (("d", 2 * 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= unit_s:
            return f"{seconds // min(unit_s, 86_400):.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def settings_text(values: dict[str, Any]) -> str:
    """`model=cnn optim.lr=0.01`: keys and values in one line."""
    return " ".join(f"{key}={cell_text(value)}" for key, value in values.items())
