"""Tables as csv: a header that names the columns, then rows, each with the line that it ends on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO

from hpctool.errors import SourceError

#: the line on which a row ends, and its cells
Line = tuple[int, list[str]]


def read_csv(path: Path, max_rows: int | None = None) -> tuple[list[str], list[int], list[list[str]]]:
    """A csv file's header, and the line number and cells of each row. Raises SourceError."""
    with opened(path) as file:
        lines = lines_of(file, 0)
        header = header_of(path, next(lines, (1, []))[1])
        rows = list(islice(rows_of(path, header, (line for line in lines if line[1])), max_rows))
    return header, [line for line, _ in rows], [cells for _, cells in rows]


@contextmanager
def opened(path: Path, start: int = 0, stop: int | None = None) -> Iterator[TextIO]:
    """The text, of a part of the file where bytes are given. Whatever goes wrong with reading it is a SourceError."""
    try:
        if stop is None:
            with open(path, newline="", encoding="utf-8-sig") as file:
                yield file
        else:
            with open(path, "rb") as raw:
                raw.seek(start)
                data = raw.read(stop - start)
            yield io.StringIO(data.decode("utf-8-sig" if start == 0 else "utf-8"), newline="")
    except OSError as error:
        raise SourceError(path, f"it cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(path, f"it cannot be read as csv ({error}).") from error


def lines_of(file: TextIO, line: int) -> Iterator[Line]:
    """The lines of cells; `line` is how many lines stand before."""
    reader = csv.reader(file)
    for cells in reader:
        yield line + reader.line_num, cells


def rows_of(path: Path, header: list[str], lines: Iterator[Line]) -> Iterator[Line]:
    """The rows; empty lines and the header are left out. Raises SourceError on a row with too few or many cells."""
    for line, cells in lines:
        if not cells or (line == 1 and [cell.strip() for cell in cells] == header):
            continue
        if len(cells) != len(header):
            raise SourceError(path, f"it has {len(cells)} cells where the header has {len(header)}.", line)
        yield line, cells


def header_of(path: Path, cells: list[str]) -> list[str]:
    """The names of the columns. Raises SourceError where there are none, or one stands twice."""
    header = [name.strip() for name in cells]
    if not any(header):
        raise SourceError(path, "it is empty; the first line must name the columns.", 1)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise SourceError(path, f"the column '{twice}' stands twice in the header.", 1)
    return header
