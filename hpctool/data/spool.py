"""Spool: the rows of a source while it is being prepared, under `tmp/prepare-<run>/` of the dataset.

A source may only be readable from its beginning to its end, and its rows are to be permuted. So each rank writes the
rows of its pieces as they come, in the dataset's own objects; then row groups are gathered from anywhere. A journal
entry for each finished piece and row group lets a prepare that was killed go on where it was.
"""

from __future__ import annotations

import mmap
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.data.hdf5 import plain_arrays
from hpctool.data.identity import Digests, uids_of_keys
from hpctool.data.layout import Layout
from hpctool.data.manifest import NO_LABEL, Column
from hpctool.data.objects import StoredObject, damage, offsets_of, open_object, read_array, write_object
from hpctool.data.ragged import Ragged, Values, concatenate, take
from hpctool.data.sources.base import Block, Piece, RowSource, check_block, class_codes, class_order
from hpctool.errors import CorruptError, SourceError

Rows = npt.NDArray[np.int64]

#: prefix of the source's own columns in a spooled object, beside uid, key, label, group and split
_OWN = "own."


@dataclass
class Identity:
    """What is known of all rows at once, in the source's order: 32 bytes a row, 16 more with groups."""

    #: uint8 (n, 16)
    uids: Digests
    #: class index, int64 (n,), -1 for none; None where the source has no labels
    labels: Rows | None
    classes: list[str]
    #: digest of the group's name, uint8 (n, 16)
    groups: Digests | None
    #: index into split_names, int64 (n,), -1 for none
    splits: Rows | None
    split_names: list[str]


class Spool:
    """The folder and its journal. `plan` is a digest of all that decides its content; what another plan left is not."""

    def __init__(self, folder: Path, plan: str) -> None:
        self.folder = folder
        self.plan = plan
        self.layout = Layout(folder)

    def entry(self, kind: str, number: int) -> dict[str, Any] | None:
        """What was noted when a piece or row group was finished, if it was."""
        try:
            found = files.read_json(self._path(kind, number))
        except (FileNotFoundError, CorruptError):
            return None
        return dict(found) if found.get("plan") == self.plan else None

    def note(self, kind: str, number: int, value: Mapping[str, Any]) -> None:
        """Finish a piece or row group."""
        files.write_json(self._path(kind, number), {**value, "plan": self.plan})

    def count(self, kind: str) -> int:
        """How many pieces or row groups are finished, by whichever rank."""
        try:
            return sum(name.startswith(f"{kind}-") for name in os.listdir(self.folder))
        except FileNotFoundError:
            return 0

    def put_piece(self, number: int, source: RowSource, piece: Piece) -> Iterator[int]:
        """Write the rows of a piece and note it; yields the number of rows at each block. SourceError, OSError."""
        if (noted := self.entry("piece", number)) is not None and self._is_whole(noted):
            yield noted["num_rows"]
            return
        told: dict[str, Any] = {"name": piece["name"], "num_rows": 0, "ragged_bytes": 0, "blocks": []}
        names: dict[str, dict[str, None]] = {"label": {}, "split": {}}
        for block in source.blocks(piece):
            check_block(source, block)
            stored, columns = self._put_block(block, names)
            if columns != told.setdefault("columns", columns):
                raise SourceError(piece["name"], _mismatch(told["columns"], columns, "its first rows"))
            told["blocks"].append({"num_rows": len(block.keys), "object": stored.to_json()})
            told["num_rows"] += len(block.keys)
            ragged = (v.values.nbytes for v in block.columns.values() if isinstance(v, Ragged))
            told["ragged_bytes"] += sum(ragged) if block.ragged_bytes is None else block.ragged_bytes
            yield len(block.keys)
        told |= {kind: list(found) for kind, found in names.items()}
        self.note("piece", number, told)

    def begin(self) -> None:
        """Make the folder. Rank 0 does it, before anybody else looks."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._failed.unlink(missing_ok=True)

    def fail(self) -> None:
        """Tell the other ranks that the work is lost."""
        self._failed.touch()

    def has_failed(self) -> bool:
        """Whether any rank has failed."""
        return self._failed.exists()

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _put_block(self, block: Block, names: dict[str, dict[str, None]]) -> tuple[StoredObject, dict[str, Any]]:
        plain_arrays(block.columns)  # says what cannot be stored by its own name
        arrays: dict[str, Values] = {f"{_OWN}{name}": values for name, values in block.columns.items()}
        arrays["uid"] = uids_of_keys(block.keys)
        arrays["key"] = Ragged.of([key.encode("utf-8", "surrogateescape") for key in block.keys])
        for kind, found in (("label", block.labels), ("split", block.splits)):
            if found is not None:
                names[kind].update(dict.fromkeys(found))
                arrays[kind] = class_codes(found, list(names[kind]))
        if block.groups is not None:
            arrays["group"] = uids_of_keys(block.groups)
        columns = {
            name: Column(
                name,
                values.dtype.newbyteorder("<"),
                (values.values if isinstance(values, Ragged) else values).shape[1:],
                ragged=isinstance(values, Ragged),
            ).to_json()
            for name, values in sorted(block.columns.items())
        }
        kinds: dict[str, Any] = {kind: True for kind in ("label", "split", "group") if kind in arrays}
        return write_object(self.layout, arrays), {"columns": columns, **kinds}

    def _is_whole(self, noted: Mapping[str, Any]) -> bool:
        stored = (StoredObject.from_json(block["object"]) for block in noted["blocks"])
        return not any(damage(self.layout.object(s.id), s.id, s.size_bytes, checksum=False) for s in stored)

    @property
    def _failed(self) -> Path:
        return self.folder / "failed"

    def _path(self, kind: str, number: int) -> Path:
        return self.folder / f"{kind}-{number:08d}.json"


class Spooled:
    """All rows of all pieces, in the source's order, to be read from anywhere."""

    def __init__(self, spool: Spool, pieces: Sequence[dict[str, Any]]) -> None:
        """`pieces` is what was noted of each."""
        self.layout = spool.layout
        self._pieces = pieces
        blocks = [block for piece in self._pieces for block in piece["blocks"]]
        self._objects = [StoredObject.from_json(block["object"]) for block in blocks]
        self._ends = np.cumsum([block["num_rows"] for block in blocks], dtype=np.int64)
        self._mapped: dict[int, mmap.mmap] = {}
        self.num_rows = int(self._ends[-1]) if blocks else 0
        self.ragged_bytes = sum(piece["ragged_bytes"] for piece in self._pieces)
        self.columns = self._columns()

    def identity(self, classes: Sequence[str] | None) -> Identity:
        """Everybody's uid, label, group and split. Raises SourceError on a split that has no name.

        Where the source has no labels and classes are named all the same, people are to give them: all are missing.
        """
        labels, occurring = self._codes("label", classes)
        if labels is None and classes:
            labels, occurring = np.full(self.num_rows, NO_LABEL, np.int64), list(classes)
        splits, split_names = self._codes("split", None)
        groups = (
            np.concatenate([self._all(n, "group") for n in range(len(self._objects))]) if self._has("group") else None
        )
        uids = np.concatenate([self._all(number, "uid") for number in range(len(self._objects))])
        return Identity(uids, labels, occurring, groups, splits, split_names)

    def key(self, row: int) -> str:
        """The stable key of a row."""
        return self.keys(np.array([row]))[0]

    def keys(self, rows: Rows) -> list[str]:
        """The stable keys of some rows."""
        found = self._gather(rows, "key")
        assert isinstance(found, Ragged), "keys are written as ragged bytes"
        return [found[row].tobytes().decode("utf-8", "surrogateescape") for row in range(len(rows))]

    def read(self, rows: Rows) -> dict[str, Values]:
        """The source's own columns of some rows, in the order asked for."""
        return {name: self._gather(rows, f"{_OWN}{name}") for name in self.columns}

    def close(self) -> None:
        """Close the files."""
        for mapped in self._mapped.values():
            mapped.close()
        self._mapped.clear()

    def _columns(self) -> dict[str, Column]:
        """What all pieces have. Raises SourceError where one has other columns than the first, both sides shown."""
        pieces = [piece for piece in self._pieces if piece["num_rows"]]
        for piece in pieces:
            if piece["columns"] != pieces[0]["columns"]:
                raise SourceError(piece["name"], _mismatch(pieces[0]["columns"], piece["columns"], pieces[0]["name"]))
        found = pieces[0]["columns"]["columns"] if pieces else {}
        return {name: Column.from_json(name, value) for name, value in found.items()}

    def _has(self, kind: str) -> bool:
        return any(piece["num_rows"] and kind in piece["columns"] for piece in self._pieces)

    def _codes(self, kind: str, classes: Sequence[str] | None) -> tuple[Rows | None, list[str]]:
        """Labels or splits as indices into names that all pieces share."""
        if not self._has(kind):
            return None, list(classes or [])
        names = list(classes) if classes is not None else class_order([n for p in self._pieces for n in p[kind]])
        number, parts = 0, []
        for piece in self._pieces:
            index = np.append(class_codes(piece[kind], names), -1)  # the last is for rows without one
            for _ in piece["blocks"]:
                parts.append(index[self._all(number, kind)])
                number += 1
        return np.concatenate(parts), names

    def _all(self, number: int, name: str) -> npt.NDArray[Any]:
        return read_array(self.layout, self._objects[number], name)

    def _gather(self, rows: Rows, name: str) -> Values:
        block_of = np.searchsorted(self._ends, rows, side="right")
        order = np.argsort(block_of, kind="stable")
        numbers, starts = np.unique(block_of[order], return_index=True)
        found: npt.NDArray[Any] | None = None
        parts: list[Values] = []
        for number, places in zip(numbers.tolist(), np.split(order, starts[1:]), strict=True):
            here, inside = self._view(number, name), rows[places] - (int(self._ends[number - 1]) if number else 0)
            if isinstance(here, Ragged):
                parts.append(here.take(inside))
            else:
                found = np.empty((len(rows), *here.shape[1:]), here.dtype) if found is None else found
                found[places] = here[inside]
            # The pages stay in the file system's cache, but would count as this process's memory.
            self._mapped[number].madvise(mmap.MADV_DONTNEED)
        if found is not None:
            return found
        back = np.empty(len(rows), np.int64)
        back[order] = np.arange(len(rows))
        return take(concatenate(parts), back)

    def _view(self, number: int, name: str) -> Values:
        stored = self._objects[number]
        if number not in self._mapped:
            handle = open_object(self.layout, stored)
            try:
                self._mapped[number] = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
            finally:
                os.close(handle)
        values, offsets = (
            np.ndarray(e.shape, e.dtype, self._mapped[number], e.offset) if e else None
            for e in (stored.extents[name], stored.extents.get(offsets_of(name)))
        )
        assert values is not None, "the object has the column"
        return values if offsets is None else Ragged(values, offsets)


def _mismatch(first: Mapping[str, Any], found: Mapping[str, Any], where: str) -> str:
    """Both sides of columns that differ, as the rest of a sentence."""
    here, there = found["columns"], first["columns"]
    for name in sorted({*here, *there}):
        if here.get(name) != there.get(name):
            return f"column '{name}' is {_said(here.get(name))} where {where} has {_said(there.get(name))}."
    kind = next(kind for kind in ("label", "split", "group") if (kind in found) != (kind in first))
    return f"it has {f'a {kind}' if kind in found else f'no {kind}'}, unlike {where}."


def _said(column: Mapping[str, Any] | None) -> str:
    if column is None:
        return "not there"
    return f"{np.dtype(column['dtype']).name} {tuple(column['shape'])}{' ragged' if column.get('ragged') else ''}"
