"""Tables with a header. The chosen columns become one float32 column `x`, their names are kept.

A big file is cut into pieces at line ends, which ranks share; one with quotes in it is not, since a quoted cell may
hold a line end.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import numpy as np

from hpctool.data import csvtable
from hpctool.data.manifest import Column
from hpctool.data.schema import Source
from hpctool.data.sources.base import (
    BLOCK_BYTES,
    EARLY_BYTES,
    Block,
    Piece,
    RowSource,
    file_piece,
    key_of_row,
    piece_file,
    pin_of_files,
    source_files,
)
from hpctool.errors import SourceError, UnknownName

_GREATEST = float(np.finfo(np.float32).max)
_BLOCK_LINES = 16384


class CsvFiles(RowSource):
    """Column `x`, float32 (number of features,). Every cell must be a finite number, unless data.allow_nan says so."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes

    def pin(self) -> str:
        """The checksum of the file, after a look at its header."""
        paths = self._files()
        for path in paths:
            self._names(path, csvtable.read_csv(path, max_rows=0)[0])
        return pin_of_files(paths)

    def pieces(self) -> list[Piece]:
        self.shared = {"names": self._names(path := self._files()[0], csvtable.read_csv(path, max_rows=0)[0])}
        return [file_piece(path, **part) for path in self._files() for part in _parts(path)]

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path = piece_file(piece)
        with csvtable.opened(path, piece.get("start") or 0, piece.get("stop")) as file:
            header = csvtable.read_csv(path, max_rows=0)[0]
            if (names := self._names(path, header)) != self.shared["names"]:
                raise SourceError(path, f"its columns are {names} where the first file has {self.shared['names']}.", 1)
            lines = csvtable.rows_of(path, header, csvtable.lines_of(file, piece["line"]))
            row = piece["row"]
            while chunk := list(islice(lines, _BLOCK_LINES)):
                yield self._block(path, header, row, chunk)
                row += len(chunk)

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        names = self.shared["names"]
        return {"x": Column("x", np.dtype(np.float32), (len(names),), names=names)}

    def _files(self) -> list[Path]:
        return source_files(self.source.path, "a table", [".csv"])

    def _block(self, path: Path, header: list[str], row: int, chunk: list[csvtable.Line]) -> Block:
        source = self.source

        def column(name: str | None) -> list[str] | None:
            place = header.index(name) if name else 0
            return [cells[place].strip() for _, cells in chunk] if name else None

        keys = [cells[header.index(source.key)] for _, cells in chunk] if source.key else None
        return Block(
            keys=keys or [key_of_row(path, row + number) for number in range(len(chunk))],
            labels=column(source.label),
            columns={"x": self._numbers(path, header, chunk)},
            groups=column(source.group),
            splits=column(source.split),
            wrong=lambda number, problem: SourceError(path, problem, chunk[number][0]),
        )

    def _numbers(self, path: Path, header: list[str], chunk: list[csvtable.Line]) -> np.ndarray:
        places = [header.index(name) for name in self.shared["names"]]
        texts = [[cells[place] for place in places] for _, cells in chunk]
        cells = chain.from_iterable(texts)
        try:
            x_ND = np.fromiter(map(float, cells), np.float64).reshape(len(texts), -1)
        except ValueError:
            x_ND = np.array([[_number(cell) for cell in row] for row in texts])
        if self.allow_nan:
            return x_ND.astype(np.float32)
        if not (fine := np.abs(x_ND) <= _GREATEST).all():
            row, place = np.argwhere(~fine)[0].tolist()
            problem = (
                f"'{texts[row][place]}' in column '{self.shared['names'][place]}' is not a finite number (float32)."
            )
            raise SourceError(path, problem, chunk[row][0])
        return x_ND.astype(np.float32)

    def _names(self, path: Path, header: list[str]) -> list[str]:
        source = self.source
        special = [name for name in (source.label, source.key, source.group, source.split) if name]
        names = source.columns if source.columns is not None else [n for n in header if n not in special]
        for name in [*special, *names]:
            if name not in header:
                raise UnknownName(f"column in {path} called", name, header, "See source.label, .key and .columns.")
        if not names:
            raise SourceError(path, "it has no column of features.")
        return list(names)


def _parts(path: Path) -> Iterator[dict[str, int | None]]:
    """Where the pieces of a file begin and end: bytes, and how many lines and rows stand before."""
    if path.stat().st_size <= EARLY_BYTES or not _is_plain(path):
        yield {"start": 0, "stop": None, "line": 0, "row": 0}
        return
    start = stop = line = 0
    row = rows_before = -1  # the header is none
    lines_before = 0
    with open(path, "rb") as file:
        for text in file:
            if stop - start >= BLOCK_BYTES:
                yield {"start": start, "stop": stop, "line": lines_before, "row": max(rows_before, 0)}
                start, lines_before, rows_before = stop, line, row
            stop, line = stop + len(text), line + 1
            row += bool(text.strip(b"\r\n"))
    yield {"start": start, "stop": stop, "line": lines_before, "row": max(rows_before, 0)}


def _is_plain(path: Path) -> bool:
    """Whether every line is a row: no quotes, no lone carriage return."""
    with open(path, "rb") as file:
        while data := file.read(BLOCK_BYTES):
            if b'"' in data or data.count(b"\r") != data.count(b"\r\n"):
                return False
    return True


def _number(cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        return math.nan
