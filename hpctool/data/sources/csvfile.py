"""A table with a header. The chosen columns become one float32 column `x`, their names are kept."""

from __future__ import annotations

import csv
import math
from itertools import islice
from pathlib import Path

import numpy as np

from hpctool import files
from hpctool.data.manifest import Column
from hpctool.data.schema import Source
from hpctool.data.sources.table import EARLY_BYTES, Table, encode_labels, row_keys, source_file
from hpctool.errors import SourceError, UnknownName

_GREATEST = float(np.finfo(np.float32).max)


def pin(source: Source) -> str:
    """The checksum of the file, after a look at its header."""
    path = source_file(source.path, "a table")
    header, _, _ = read_csv(path, max_rows=0)
    _feature_names(source, header)
    if path.stat().st_size <= EARLY_BYTES:
        load(source)
    return f"sha256:{files.sha256_file(path)}"


def load(source: Source) -> Table:
    """Column `x`, float32 (number of features,); held in memory. Every cell must be a finite number."""
    path = source_file(source.path, "a table")
    header, lines, rows = read_csv(path)
    names = _feature_names(source, header)
    places = [header.index(name) for name in names]
    x_ND = np.empty((len(rows), len(names)), np.float32)
    for number, (line, row) in enumerate(zip(lines, rows, strict=True)):
        x_ND[number] = [_number(path, line, header[place], row[place]) for place in places]
    labels, classes = None, source.classes or []
    if source.label:
        found = [row[header.index(source.label)].strip() for row in rows]
        labels, classes = encode_labels(
            found, source.classes, lambda number, problem: SourceError(path, problem, lines[number])
        )
    keys = [row[header.index(source.key)] for row in rows] if source.key else None
    return Table(
        keys=row_keys(path, len(rows), keys),
        columns={"x": Column("x", x_ND.dtype, (len(names),), names=names)},
        labels=labels,
        classes=classes,
        read=lambda chosen: {"x": x_ND[chosen]},
    )


def read_csv(path: Path, max_rows: int | None = None) -> tuple[list[str], list[int], list[list[str]]]:
    """A csv file's header, and the line number and cells of each row. Raises SourceError."""
    lines, rows = [], []
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = _checked_header(path, next(reader, []))
            for row in islice(filter(None, reader), max_rows):
                if len(row) != len(header):
                    problem = f"it has {len(row)} cells where the header has {len(header)}."
                    raise SourceError(path, problem, reader.line_num)
                lines.append(reader.line_num)
                rows.append(row)
    except OSError as error:
        raise SourceError(path, f"it cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(path, f"it cannot be read as csv ({error}).") from error
    return header, lines, rows


def _checked_header(path: Path, cells: list[str]) -> list[str]:
    header = [name.strip() for name in cells]
    if not any(header):
        raise SourceError(path, "it is empty; the first line must name the columns.", 1)
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise SourceError(path, f"the column '{twice}' stands twice in the header.", 1)
    return header


def _feature_names(source: Source, header: list[str]) -> list[str]:
    special = [name for name in (source.label, source.key) if name]
    names = source.columns if source.columns is not None else [n for n in header if n not in special]
    for name in [*special, *names]:
        if name not in header:
            raise UnknownName(f"column in {source.path} called", name, header, "See source.label, .key and .columns.")
    if not names:
        raise SourceError(str(source.path), "it has no column of features.")
    return names


def _number(path: Path, line: int, column: str, cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        value = math.nan
    if not abs(value) <= _GREATEST:
        raise SourceError(path, f"'{cell}' in column '{column}' is not a finite number (float32).", line)
    return value
