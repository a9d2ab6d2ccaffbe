"""A reader of the user's own, by `_target_`: an iterable of rows {"key": …, "label": …, column: array or number, …}.

`label` is a class's name or number, or None; `group` and `split` may stand beside it. A reader may have attributes:
`classes`, `ragged` (names of columns whose rows have different lengths) and `encoded` (columns of bytes that are
images). With the methods `pieces()`, a list of JSON values, and `rows(piece)` ranks share the work; else one reads all.
Columns of bytes or text are ragged by themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hpctool import config, files
from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.sources.base import BLOCK_BYTES, BLOCK_ROWS, Block, Piece, RowSource
from hpctool.errors import SourceError, TargetError
from hpctool.world import Array

_SPECIAL = ("key", "label", "group", "split")


class OwnReader(RowSource):
    """One column for each further entry of the rows; every row has the same, with the same shape and dtype."""

    def __init__(self, cfg: DictConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.name = str(cfg["_target_"])
        self._reader: Any = None

    def pin(self) -> str:
        """The reader's arguments: what it will yield cannot be known before it runs."""
        config.check_target("source", self.cfg)
        return f"arguments:{files.sha256_bytes(files.canonical_json(config.to_plain(self.cfg)))}"

    def pieces(self) -> list[Piece]:
        reader = self._made()
        self.notes = ["What a reader of your own yields cannot be pinned: when its data change, say code=rerun."]
        if not hasattr(reader, "pieces"):
            return [{"name": self.name}]
        return [
            {"name": f"{self.name}, piece {number}", "piece": piece} for number, piece in enumerate(reader.pieces())
        ]

    def blocks(self, piece: Piece) -> Iterator[Block]:
        reader = self._made()
        rows = reader.rows(piece["piece"]) if "piece" in piece else reader
        if not isinstance(rows, Iterable):
            raise SourceError(self.name, f"it is no iterable of rows but {type(rows).__name__}.")
        first: Mapping[str, Any] | None = None
        waiting: list[Mapping[str, Any]] = []
        start = size_bytes = 0
        for number, row in enumerate(rows):
            first = first or _checked(piece["name"], number, row)
            waiting.append(self._same(piece["name"], number, _checked(piece["name"], number, row), first))
            size_bytes += sum(_size(value) for value in row.values())
            if len(waiting) >= BLOCK_ROWS or size_bytes >= BLOCK_BYTES:
                yield self._block(piece["name"], start, waiting)
                start, size_bytes, waiting = number + 1, 0, []
        if waiting:
            yield self._block(piece["name"], start, waiting)

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        encoded = set(getattr(self._made(), "encoded", ()))
        return {name: replace(c, encoding="image" if name in encoded else None) for name, c in columns.items()}

    def _made(self) -> Any:
        """The reader, made at first need: what it does on the login node it need not do."""
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        if self._reader is None:
            try:
                self._reader = instantiate(self.cfg)
            except InstantiationException as error:
                raise TargetError("source", self.name, f"it could not be made: {error}") from error
            self.classes = list(getattr(self._reader, "classes", None) or []) or None
        return self._reader

    def _same(self, name: str, number: int, row: Mapping[str, Any], first: Mapping[str, Any]) -> dict[str, Any]:
        """The row with its values as arrays or bytes. Raises SourceError where it is not like the first."""
        if row.keys() != first.keys():
            raise SourceError(name, f"row {number} has {sorted(row)} where row 0 has {sorted(first)}.")
        values = {key: value if key in _SPECIAL else _plain(value) for key, value in row.items()}
        for column, value in values.items():
            if column in _SPECIAL:
                continue
            like = _plain(first[column])
            if self._shape(column, value) != self._shape(column, like):
                problem = f"column '{column}' of row {number} is {_said(value)} where row 0 has {_said(like)}"
                raise SourceError(name, f"{problem}. A reader whose rows have different lengths has `ragged`.")
        return values

    def _shape(self, column: str, value: Array | bytes) -> tuple[Any, ...]:
        if isinstance(value, bytes):
            return ("bytes",)
        return (value.dtype, value.shape[1:] if column in getattr(self._made(), "ragged", ()) else value.shape)

    def _block(self, name: str, start: int, rows: list[Mapping[str, Any]]) -> Block:
        special = {key: [_name(row[key]) for row in rows] if key in rows[0] else None for key in _SPECIAL}
        keys = special["key"]
        assert keys is not None, "every row was looked at"
        return Block(
            keys=keys,
            labels=special["label"],
            columns={column: self._stacked(column, rows) for column in rows[0] if column not in _SPECIAL},
            groups=special["group"],
            splits=special["split"],
            wrong=lambda row, problem: SourceError(name, f"row {start + row}: {problem}"),
        )

    def _stacked(self, column: str, rows: list[Mapping[str, Any]]) -> Values:
        values = [row[column] for row in rows]
        if isinstance(values[0], bytes) or column in getattr(self._made(), "ragged", ()):
            return Ragged.of(values)
        return np.stack(values)


def _checked(name: str, number: int, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping) or "key" not in row or not row.keys() - set(_SPECIAL):
        raise SourceError(name, f"row {number} is not a mapping with 'key' and at least one column.")
    return row


def _plain(value: Any) -> Array | bytes:
    if isinstance(value, str):
        return value.encode()
    return bytes(value) if isinstance(value, bytes | bytearray | memoryview) else np.asarray(value)


def _name(value: Any) -> str:
    return "" if value is None else str(value)


def _said(value: Array | bytes) -> str:
    return "bytes" if isinstance(value, bytes) else f"{value.dtype} {value.shape}"


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | bytes) else int(getattr(value, "nbytes", 8))
