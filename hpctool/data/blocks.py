"""Blocks: parts of arrays that are read by pread, from shared file systems and where columns are compressed.

Direct reads what is asked for, neighbours at once. Blocks reads a megabyte or more at a time and keeps it for the rows
that will be asked for soon: all that a window of the shuffle needs, or what was unpacked. Both read with several
threads, because on a shared file system each read waits for the network, and unpacking takes a core.
"""

from __future__ import annotations

import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from hpctool.data.mapped import Index
from hpctool.data.objects import Extent, StoredObject, chunks_of, read_into, unpack_chunk
from hpctool.data.opened import OpenFiles
from hpctool.world import Array

#: What is read at once: the most that a file system's client asks a server for in one go, more or less.
BLOCK_BYTES = 1 << 20
#: Reads that wait for the network at once.
IO_THREADS = 16
#: If so many reads take longer than this each, their bytes come from a disk or over the network.
_FEW, _QUICK_S = 32, 150e-6

Key = tuple[str, int, int]


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Cache:
    """Blocks in memory, the least used given up first; each is loaded once however many threads want it."""

    def __init__(self, capacity_bytes: int, threads: ThreadPoolExecutor) -> None:
        self.capacity_bytes = capacity_bytes
        self._threads = threads
        self._held: OrderedDict[Key, _Held] = OrderedDict()
        self._held_bytes = 0
        self._lock = threading.Lock()

    def get(self, keys: Sequence[Key], size_bytes: int, load: Callable[[Key], Array]) -> list[Array]:
        """The blocks, loaded side by side where they are not there; `size_bytes` is what each takes at most."""
        return [held.block() for held in self.ask(keys, size_bytes, load)]

    def ask(self, keys: Sequence[Key], size_bytes: int, load: Callable[[Key], Array]) -> list[_Held]:
        """The same, without waiting for them."""
        found = []
        with self._lock:
            for key in keys:
                held = self._held.get(key)
                if held is None or held.failed:
                    if held is None:
                        self._held_bytes += size_bytes
                    held = self._held[key] = _Held(self._threads.submit(load, key), size_bytes)
                self._held.move_to_end(key)
                found.append(held)
            while self._held_bytes > self.capacity_bytes and len(self._held) > len(keys):
                self._held_bytes -= self._held.popitem(last=False)[1].size_bytes
        return found


class _Held:
    """A block that is there or on its way."""

    def __init__(self, coming: Future[Array], size_bytes: int) -> None:
        self._coming = coming
        self._there: Array | None = None
        self.size_bytes = size_bytes
        self.failed = False

    def block(self) -> Array:
        # What is there is taken without the locks of a future.
        if self._there is None:
            try:
                self._there = self._coming.result()
            except BaseException:
                self.failed = True
                raise
        return self._there


class Direct:
    """Parts of one array, each item read from its file when it is asked for."""

    def __init__(
        self, files: OpenFiles, stored: Sequence[StoredObject], name: str, threads: ThreadPoolExecutor
    ) -> None:
        self._files, self._stored, self._name, self._threads = files, stored, name, threads

    def take(self, groups: Index, items: Index, out: Array) -> None:
        order = np.lexsort((items, groups))
        while len(order):
            # What the kernel has in memory comes faster than a thread could be told to fetch it.
            few, order = order[:_FEW], order[_FEW:]
            begun = time.perf_counter()
            self._fill(groups, items, out, few)
            if len(order) and time.perf_counter() - begun > _FEW * _QUICK_S:
                pieces = np.array_split(order, min(IO_THREADS, len(order)))
                for done in [self._threads.submit(self._fill, groups, items, out, piece) for piece in pieces]:
                    done.result()
                return

    def runs(self, groups: Index, starts: Index, stops: Index) -> list[Array]:
        asked = zip(groups.tolist(), starts.tolist(), stops.tolist(), strict=True)
        return list(self._threads.map(lambda run: self._run(*run), asked))

    def _fill(self, groups: Index, items: Index, out: Array, order: Index) -> None:
        """Read the items at some places, which are in order of group and item: those that touch in one go."""
        apart = (np.diff(groups[order]) != 0) | (np.diff(items[order]) != 1)
        edges = [0, *(np.flatnonzero(apart) + 1).tolist(), len(order)]
        for begin, end in pairwise(edges):
            places = order[begin:end]
            group, first = int(groups[places[0]]), int(items[places[0]])
            if end - begin == 1:
                read_items(self._files, self._stored[group], self._name, first, out[places[0], ...])
            else:
                out[places] = self._run(group, first, first + end - begin)

    def _run(self, group: int, start: int, stop: int) -> Array:
        return read_run(self._files, self._stored[group], self._name, start, stop)


class Blocks:
    """Parts of one array, read in blocks of consecutive items that a cache keeps."""

    def __init__(self, files: OpenFiles, stored: Sequence[StoredObject], name: str, cache: Cache) -> None:
        self._files, self._stored, self._name, self._cache = files, stored, name, cache
        self._extents = [one.extents[name] for one in stored]
        self._sizes = [extent.shape[0] for extent in self._extents]
        self._rows = np.array([items_of_block(extent) for extent in self._extents], np.int64)
        self._block_bytes = int(self._rows.max()) * self._extents[0].row_bytes
        self._chunks: dict[int, list[list[int]]] = {}

    def take(self, groups: Index, items: Index, out: Array) -> None:
        sizes = self._rows[groups]
        numbers, local = np.divmod(items, sizes)
        keys, order, edges = self._sorted(groups, numbers)
        local = local[order]
        for block, begin, end in zip(self._get(keys), edges, edges[1:], strict=False):
            out[order[begin:end]] = block[local[begin:end]]

    def runs(self, groups: Index, starts: Index, stops: Index) -> list[Array]:
        first, last = starts // self._rows[groups], np.maximum(stops - 1, starts) // self._rows[groups]
        # A run may lie in several blocks: ask for all of them, then cut.
        counts = last - first + 1
        whose = np.repeat(np.arange(len(groups)), counts)
        numbers = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts) + first[whose]
        keys, _, _ = self._sorted(groups[whose], numbers)
        found = dict(zip(keys, self._get(keys), strict=True))
        parts = []
        for group, start, stop, low, high in zip(
            *(each.tolist() for each in (groups, starts, stops, first, last)), strict=True
        ):
            base = low * int(self._rows[group])
            blocks = [found[self._name, group, number] for number in range(low, high + 1)]
            parts.append((blocks[0] if low == high else np.concatenate(blocks))[start - base : stop - base])
        return parts

    def prefetch(self, groups: Index, items: Index) -> None:
        """Begin to read what will be asked for soon, if there is room for it beside what is needed now."""
        keys, _, _ = self._sorted(groups, items // self._rows[groups])
        if len(keys) * self._block_bytes * 2 <= self._cache.capacity_bytes:
            self._cache.ask(keys, self._block_bytes, self._load)

    def _get(self, keys: Sequence[Key]) -> list[Array]:
        return self._cache.get(keys, self._block_bytes, self._load)

    def _sorted(self, groups: Index, numbers: Index) -> tuple[list[Key], Index, list[int]]:
        """The blocks asked for, each once; the places in order of block; and where in these each block begins."""
        both = groups << 32 | numbers
        order = both.argsort(kind="stable")
        both = both[order]
        begins = np.flatnonzero(np.diff(both, prepend=-1))
        keys = [(self._name, key >> 32, key & 0xFFFFFFFF) for key in both[begins].tolist()]
        return keys, order, [*begins.tolist(), len(order)]

    def _load(self, key: Key) -> Array:
        _, group, number = key
        extent, start = self._extents[group], number * int(self._rows[group])
        stop = min(start + int(self._rows[group]), self._sizes[group])
        if extent.chunks is None:
            return read_run(self._files, self._stored[group], self._name, start, stop)
        stored = self._stored[group]
        if group not in self._chunks:
            index = chunks_of(self._name)
            places = np.empty(stored.extents[index].shape, np.int64)
            read_items(self._files, stored, index, 0, places)
            self._chunks[group] = places.tolist()
        place = self._chunks[group][number]
        chunk = self._files.read(stored, lambda opened: unpack_chunk(opened.handle, extent, place, opened.path))
        return chunk[: stop - start]


def items_of_block(extent: Extent) -> int:
    """How many items are read at once: a chunk where they are packed, about BLOCK_BYTES where they are not."""
    if extent.chunks is not None:
        return extent.chunks.rows
    return max(1, BLOCK_BYTES // max(extent.row_bytes, 1))


def read_run(files: OpenFiles, stored: StoredObject, name: str, start: int, stop: int) -> Array:
    """Consecutive items of an array that is not compressed: (stop - start, *shape). Raises CorruptError."""
    extent = stored.extents[name]
    run: Array = np.empty((stop - start, *extent.shape[1:]), extent.dtype)
    read_items(files, stored, name, start, run)
    return run


def read_items(files: OpenFiles, stored: StoredObject, name: str, first: int, out: Array) -> None:
    """Fill `out` from item `first` of an array that is not compressed. Raises CorruptError."""
    extent = stored.extents[name]
    offset = extent.offset + first * extent.row_bytes
    files.read(stored, lambda opened: read_into(opened.handle, out, offset, opened.path))
