"""Mapped: one array of all row groups as a single array in memory, without reading any of it.

A stretch of addresses is reserved, and the pages of each object are mapped into it one behind the other when they are
first asked for. So a batch is gathered by one call of NumPy, from however many files its rows come: taking group by
group and putting the parts in order is half as fast.
"""

from __future__ import annotations

import ctypes
import math
import mmap
import os
import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from hpctool.data.layout import again_if_stale
from hpctool.data.objects import Extent, StoredObject, read_into
from hpctool.data.opened import OpenFiles
from hpctool.world import Array

Index = npt.NDArray[np.int64]

#: Addresses are free, but a process has 2**47 of them.
_MOST_BYTES = 1 << 44
#: Arrays that do not begin at a page are copied; only small ones do not.
_SMALL_BYTES = 1 << 16
_MAP_FIXED = 0x10
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
_PROT_NONE = 0


class Parts(Protocol):
    """One array, cut into a part for each row group; `groups` and `items` count from 0, `items` within the group."""

    def take(self, groups: Index, items: Index, out: Array) -> None:
        """Fill out[i] with item items[i] of groups[i]. Raises CorruptError."""

    def runs(self, groups: Index, starts: Index, stops: Index) -> list[Array]:
        """Items starts[i] to stops[i] of groups[i] for each i, to be read only. Raises CorruptError."""


class Unmappable(Exception):
    """These parts cannot be mapped side by side here: too many for this process, or their pages do not fit."""


class Mapped:
    """Parts of one array in a single stretch of addresses. Raises Unmappable."""

    def __init__(self, files: OpenFiles, stored: Sequence[StoredObject], name: str) -> None:
        self._files, self._stored, self._name = files, stored, name
        extents = [one.extents[name] for one in stored]
        dtype, shape, item_bytes = extents[0].dtype, extents[0].shape[1:], extents[0].row_bytes
        self._begins = self._lay_out(extents, item_bytes)
        total = int(self._begins[-1])
        try:
            # Nobody may touch it, so it costs no memory.
            self._whole = mmap.mmap(-1, max(total, 1), flags=_PRIVATE, prot=_PROT_NONE)
        except (OSError, OverflowError, ValueError) as error:
            raise Unmappable(str(error)) from error
        self._address = np.frombuffer(self._whole, np.uint8).ctypes.data
        self._items = np.ndarray((total // item_bytes, *shape), dtype, buffer=self._whole)
        #: where the first item of each group stands in `_items`
        self._first = self._begins[:-1] // item_bytes
        self._ready = np.zeros(len(stored), np.bool_)
        self._all_ready = False
        self._lock = threading.Lock()

    @staticmethod
    def _lay_out(extents: list[Extent], item_bytes: int) -> Index:
        """The byte at which each part begins: at a page, and a whole number of items from the first one."""
        unit = math.lcm(max(item_bytes, 1), mmap.PAGESIZE)
        sizes = [-(-extent.size_bytes // unit) * unit for extent in extents]
        aligned = all(e.offset % mmap.PAGESIZE == 0 or e.size_bytes <= _SMALL_BYTES for e in extents)
        if not item_bytes or not aligned or sum(sizes) > _MOST_BYTES:
            raise Unmappable("its parts do not fit side by side")
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def take(self, groups: Index, items: Index, out: Array) -> None:
        if not self._all_ready:
            self._need(groups)
        # mode="clip" only spares a copy: the rows have been checked.
        self._items.take(self._first[groups] + items, axis=0, out=out, mode="clip")

    def runs(self, groups: Index, starts: Index, stops: Index) -> list[Array]:
        self._need(groups)
        first = self._first[groups]
        pairs = zip((first + starts).tolist(), (first + stops).tolist(), strict=True)
        return [self._items[start:stop] for start, stop in pairs]

    def _need(self, groups: Index) -> None:
        ready = self._ready[groups]
        if ready.all():
            return
        with self._lock:
            for group in np.unique(groups[~ready]).tolist():
                if not self._ready[group]:
                    again_if_stale(partial(self._map, group))
            self._all_ready = bool(self._ready.all())

    def _map(self, group: int) -> None:
        extent = self._stored[group].extents[self._name]
        opened = self._files.once(self._stored[group])
        address = self._address + int(self._begins[group])
        if extent.size_bytes and extent.offset % mmap.PAGESIZE == 0:
            _mmap(address, extent.size_bytes, mmap.PROT_READ, mmap.MAP_SHARED, opened.handle, extent.offset)
        elif extent.size_bytes:
            _mmap(address, extent.size_bytes, mmap.PROT_READ | mmap.PROT_WRITE, _PRIVATE, -1, 0)
            copy: Any = (ctypes.c_uint8 * extent.size_bytes).from_address(address)
            read_into(opened.handle, np.frombuffer(copy, np.uint8), extent.offset, opened.path)
        self._ready[group] = True


_libc_mmap = ctypes.CDLL(None, use_errno=True).mmap
_libc_mmap.restype = ctypes.c_void_p
_libc_mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def _mmap(address: int, size_bytes: int, prot: int, flags: int, handle: int, offset: int) -> None:
    """Map into addresses that are reserved; Python's own mmap chooses them itself. Raises Unmappable."""
    found = _libc_mmap(address, size_bytes, prot, flags | _MAP_FIXED, handle, offset)
    if found != address:
        # ENOMEM above all: Linux lets a process have 65,530 mappings, and each part takes one or two.
        raise Unmappable(f"{size_bytes} bytes: {os.strerror(ctypes.get_errno())}")
