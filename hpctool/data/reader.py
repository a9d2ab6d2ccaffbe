"""Reader: any rows of a version, in any order, at the speed of memory.

The manifest says at which byte every column of every row group begins, so reading is a memmap (mapped.py) or a pread
(blocks.py): no HDF5, no lock, safe after a fork and from many threads.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from hpctool.data.access import Access, access_of
from hpctool.data.blocks import IO_THREADS, Blocks, Cache, Direct, num_cores
from hpctool.data.mapped import Index, Mapped, Parts, Unmappable
from hpctool.data.objects import StoredObject, offsets_of
from hpctool.data.opened import OpenFiles
from hpctool.data.ragged import Ragged
from hpctool.errors import InputError, UnknownName
from hpctool.world import Array

if TYPE_CHECKING:
    from hpctool.data.images import ImageForm
    from hpctool.data.version import Version

Rows = npt.NDArray[np.int64]

#: Blocks of all columns together take as much memory as this at most, in each process that reads.
CACHE_BYTES = 1 << 30


class Reader:
    """Gathers rows of some columns. Files are opened at first touch and checked for their size then.

    `access` None takes what the version says, which by itself follows the file system. `window` is the number of
    rows within which the caller's order stays for a while (order.py): pread then reads whole blocks and keeps them.
    `images` says which encoded columns are decoded, and to which form.
    """

    def __init__(
        self,
        version: Version,
        columns: Sequence[str],
        access: Access | None = None,
        *,
        window: int = 0,
        images: Mapping[str, ImageForm] | None = None,
    ) -> None:
        for name in columns:
            if name not in version.contents.columns:
                raise UnknownName(f"column of {version.ref} called", name, version.columns)
        self.version = version
        self.columns = list(columns)
        self.access: Access = access or access_of(version.stage or version.store.root, version.access)
        self.window = window
        self.images = dict(images or {})
        sizes = [group.num_rows for group in version.contents.row_groups]
        self._num_rows = sum(sizes)
        self._ends = np.cumsum(sizes, dtype=np.int64)
        self._begins = self._ends - np.array(sizes, np.int64)
        #: of all row groups but the last, if they are of one size, as `prepare` makes them
        self._group_rows = sizes[0] if sizes and set(sizes[:-1]) <= {sizes[0]} and sizes[-1] <= sizes[0] else 0
        self._sources: _Sources | None = None

    def gather(self, rows: Rows, out: Mapping[str, Array] | None = None) -> dict[str, Array]:
        """The rows in the order asked for: int64 (n,) → column → (n, *shape), freshly made or in `out`.

        `out` may hold arrays of that shape for some columns, pinned memory for example, which are filled and returned.
        Raises IndexError on a row that is not there, InputError on rows of different lengths that are not decoded,
        CorruptError on an object that is missing or cut off, and on an image that cannot be decoded.
        """
        rows = np.asarray(rows, np.int64)
        groups, items = self._located(rows)
        found = {}
        for name in self.columns:
            dtype = self.version.contents.columns[name].dtype
            values = out[name] if out and name in out else np.empty((len(rows), *self.shape(name)), dtype)
            if name in self.images:
                self._decode(name, groups, items, values)
            elif values.size:
                self._mine.take(name, groups, items, values)
            found[name] = values
        return found

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one row of a column as `gather` gives it. Raises InputError where rows differ in length."""
        column = self.version.contents.columns[name]
        if name in self.images:
            return self.images[name].shape
        if column.ragged:
            raise InputError(f"Column '{name}' of {self.version.ref} has rows of different lengths: no batch.")
        return column.shape

    def ragged(self, name: str, rows: Rows) -> Ragged:
        """The rows of a ragged column, in the order asked for, as they are stored. Raises like `gather`."""
        column = self.version.contents.columns[name]
        runs = self._runs(name, *self._located(np.asarray(rows, np.int64)))
        offsets = np.zeros(len(runs) + 1, np.int64)
        np.cumsum([len(run) for run in runs], out=offsets[1:])
        values = np.concatenate(runs) if runs else np.empty((0, *column.shape), column.dtype)
        return Ragged(values, offsets)

    def prefetch(self, rows: Rows) -> None:
        """Begin to read what these rows need, if blocks are read and hold all of them; else nothing."""
        groups, items = self._located(np.asarray(rows, np.int64))
        if not len(groups):
            return
        for name in self.columns:
            parts, first = self._mine.parts(name), items
            if not isinstance(parts, Blocks):
                continue
            if self.version.contents.columns[name].ragged:
                first = np.empty(len(items), np.int64)
                self._mine.take(offsets_of(name), groups, items, first)
            parts.prefetch(groups, first)

    def close(self) -> None:
        """Let go of the files and threads; arrays that `gather` returned stay valid, and it may be called again."""
        if self._sources is not None and self._sources.process == os.getpid():
            self._sources.close()
        self._sources = None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # For workers that are spawned; what is open stays here.
        return {**self.__dict__, "_sources": None}

    @property
    def _mine(self) -> _Sources:
        """What is open in this process: threads and locks do not survive a fork."""
        if self._sources is None or self._sources.process != os.getpid():
            self._sources = _Sources(self)
        return self._sources

    def _located(self, rows: Rows) -> tuple[Index, Index]:
        """The row group of each row, and its place in there. Raises IndexError."""
        # Without its sign a negative row is a huge one.
        if rows.size and int(rows.view(np.uint64).max()) >= self._num_rows:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self._num_rows}")
        if self._group_rows:
            groups = rows // self._group_rows
            return groups, rows - groups * self._group_rows
        groups = self._ends.searchsorted(rows, side="right")
        return groups, rows - self._begins[groups]

    def _decode(self, name: str, groups: Index, items: Index, out: Array) -> None:
        from hpctool.data.images import decode

        encoded = self._runs(name, groups, items)
        decode(encoded, self.images[name], out, self._mine.cores.map, self.version.store.root)

    def _runs(self, name: str, groups: Index, items: Index) -> list[Array]:
        """The rows of a ragged column, one array each, to be read only."""
        if not len(groups):
            return []
        starts, stops = np.empty(len(groups), np.int64), np.empty(len(groups), np.int64)
        self._mine.take(offsets_of(name), groups, items, starts)
        self._mine.take(offsets_of(name), groups, items + 1, stops)
        return self._mine.runs(name, groups, starts, stops)


class _Sources:
    """What one process has open to read from: files, mappings, threads, blocks."""

    def __init__(self, reader: Reader) -> None:
        self.process = os.getpid()
        version = reader.version
        self._groups = version.contents.row_groups
        self._num_rows = version.num_rows
        self._access, self._window = reader.access, reader.window
        self._files = OpenFiles(version.store.layout, version.stage)
        self._parts: dict[str, Parts] = {}

    @cached_property
    def io(self) -> ThreadPoolExecutor:
        """Threads that wait for files."""
        return ThreadPoolExecutor(IO_THREADS, thread_name_prefix="hpctool-read")

    @cached_property
    def cores(self) -> ThreadPoolExecutor:
        """Threads that compute."""
        return ThreadPoolExecutor(num_cores(), thread_name_prefix="hpctool-decode")

    @cached_property
    def cache(self) -> Cache:
        return Cache(CACHE_BYTES, self.io)

    def parts(self, name: str) -> Parts:
        """One array of all row groups, by the way that suits it."""
        if name not in self._parts:
            self._parts[name] = self._opened([group.holder(name) for group in self._groups], name)
        return self._parts[name]

    def take(self, name: str, groups: Index, items: Index, out: Array) -> None:
        try:
            self.parts(name).take(groups, items, out)
        except Unmappable:
            self._unmapped(name).take(groups, items, out)

    def runs(self, name: str, groups: Index, starts: Index, stops: Index) -> list[Array]:
        try:
            return self.parts(name).runs(groups, starts, stops)
        except Unmappable:
            return self._unmapped(name).runs(groups, starts, stops)

    def close(self) -> None:
        for name in ("io", "cores"):
            if name in self.__dict__:
                self.__dict__[name].shutdown(wait=False)

    def _opened(self, stored: list[StoredObject], name: str) -> Parts:
        row_bytes = sum(one.extents[name].size_bytes for one in stored) / max(1, self._num_rows)
        if any(one.extents[name].chunks for one in stored):
            return Blocks(self._files, stored, name, self.cache)
        if self._access == "memmap":
            try:
                return Mapped(self._files, stored, name)
            except Unmappable:
                return Direct(self._files, stored, name, self.io)
        # The current window and the next one stay in memory; a window that does not fit would be read again and again.
        if name.endswith(offsets_of("")) or 0 < 2 * self._window * row_bytes <= CACHE_BYTES:
            return Blocks(self._files, stored, name, self.cache)
        return Direct(self._files, stored, name, self.io)

    def _unmapped(self, name: str) -> Parts:
        """The array by pread from now on: this process has no room for more mappings."""
        stored = [group.holder(name) for group in self._groups]
        self._parts[name] = Direct(self._files, stored, name, self.io)
        return self._parts[name]
