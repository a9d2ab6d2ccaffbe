"""Reader: any rows of a version, in any order, at the speed of memory.

The manifest says at which byte every column of every row group begins, so reading is a memmap or a pread: no HDF5, no
lock, safe after a fork and from many threads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from hpctool.data.objects import Extent, StoredObject, open_object, read_into
from hpctool.errors import UnknownName
from hpctool.world import Array

if TYPE_CHECKING:
    from hpctool.data.version import Version

Rows = npt.NDArray[np.int64]

#: memmap: the fastest on local disks and in memory. pread: for shared file systems, where a file that is purged or cut
#: off under a memmap would kill the process with SIGBUS instead of raising an error.
Access = Literal["memmap", "pread"]


class Reader:
    """Gathers rows of some columns. Files are opened at first touch and checked for their size then."""

    def __init__(self, version: Version, columns: Sequence[str], access: Access = "memmap") -> None:
        self._mapped: dict[tuple[int, str], Array] = {}
        self._opened: dict[str, mmap.mmap | int] = {}
        for name in columns:
            if name not in version.contents.columns:
                raise UnknownName(f"column of {version.ref} called", name, version.columns)
        self.version = version
        self.columns = list(columns)
        self.access: Access = access
        self._groups = version.contents.row_groups
        self._ends = np.cumsum([group.num_rows for group in self._groups])

    def gather(self, rows: Rows) -> dict[str, Array]:
        """The rows in the order asked for: int64 (n,) → column → (n, *shape), freshly made.

        Raises IndexError on a row that is not there, CorruptError on an object that is missing or cut off.
        """
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= int(rows.min()) <= int(rows.max()) < self.version.num_rows:
            raise IndexError(f"rows {rows.min()}..{rows.max()} of {self.version.num_rows}")
        schema = self.version.contents.columns
        found = {name: np.empty((rows.size, *schema[name].shape), schema[name].dtype) for name in self.columns}
        if len(self._groups) == 1:
            for name, values in found.items():
                self._read(0, name, rows, values)
            return found
        group_of_row = np.searchsorted(self._ends, rows, side="right")
        for group in np.unique(group_of_row).tolist():
            places = np.flatnonzero(group_of_row == group)
            first = int(self._ends[group]) - self._groups[group].num_rows
            for name, values in found.items():
                part = np.empty((places.size, *values.shape[1:]), values.dtype)
                self._read(group, name, rows[places] - first, part)
                values[places] = part
        return found

    def close(self) -> None:
        """Close the files; arrays that `gather` returned stay valid."""
        self._mapped.clear()
        for opened in self._opened.values():
            if isinstance(opened, int):
                os.close(opened)
            else:
                opened.close()
        self._opened.clear()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _read(self, group: int, name: str, rows: Rows, values: Array) -> None:
        """Fill `values` (n, *shape) with rows that count from the group's first."""
        stored = self._groups[group].holder(name)
        extent = stored.extents[name]
        if self.access == "memmap":
            # mode="clip" only spares a copy: the rows have been checked.
            np.take(self._map(group, stored, name), rows, axis=0, out=values, mode="clip")
            return
        handle, path = self._open(stored), self.version.store.layout.object(stored.id)
        for place, row in enumerate(rows.tolist()):
            read_into(handle, values[place, ...], extent.offset + row * extent.row_bytes, path)

    def _map(self, group: int, stored: StoredObject, name: str) -> Array:
        if (group, name) not in self._mapped:
            whole = self._opened.get(stored.id)
            if not isinstance(whole, mmap.mmap):
                handle = open_object(self.version.store.layout, stored)
                try:
                    whole = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
                finally:
                    os.close(handle)
                self._opened[stored.id] = whole
            self._mapped[group, name] = _view(whole, stored.extents[name])
        return self._mapped[group, name]

    def _open(self, stored: StoredObject) -> int:
        opened = self._opened.get(stored.id)
        if not isinstance(opened, int):
            opened = open_object(self.version.store.layout, stored)
            self._opened[stored.id] = opened
        return opened


def _view(whole: mmap.mmap, extent: Extent) -> Array:
    # Not np.memmap: a plain array is quicker to index. Bounds were checked when the manifest was read.
    return np.ndarray(extent.shape, extent.dtype, buffer=whole, offset=extent.offset)
