"""Objects: arrays in immutable HDF5 files, named by the SHA-256 of their bytes and readable without HDF5.

h5py writes them (hdf5.py), so `h5dump` and any HDF5 library open them. Each array is contiguous, little-endian and its
byte offset is kept in the manifest: reading is a memmap or a pread, without HDF5's lock and safe after a fork.

Two kinds of columns need a second array beside them in the object, which is contiguous itself:
`<column>.offsets` of a ragged one, int64 (rows + 1,), and `<column>.chunks` of a compressed one, int64 (chunks, 3):
byte offset, packed bytes, and HDF5's mask of filters that were left out (not 0: the chunk stands as it is).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hpctool import files
from hpctool.data.filters import Chunks, Filter, unpack
from hpctool.data.hdf5 import KINDS, hdf5_bytes, plain_arrays
from hpctool.data.layout import Layout, again_if_stale, fresh
from hpctool.data.ragged import Ragged, Values
from hpctool.errors import CorruptError
from hpctool.world import Array

#: zlib packs no better than 1032 to 1; what says so is damaged and would only fill the memory.
_MOST_PACKED = 1100
_VERIFY = "See what it touches with: hpctool data verify."


@dataclass(frozen=True)
class Extent:
    """Where one array lies in an object: `shape[0]` rows of `dtype` from byte `offset` on, or in chunks."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    #: SHA-256 of dtype, shape and values: stays when another HDF5 version writes other bytes around them
    digest: str
    #: how it is packed, if it is; `offset` means nothing then
    chunks: Chunks | None = None

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape[1:])

    @property
    def size_bytes(self) -> int:
        """Of the values, unpacked."""
        return self.dtype.itemsize * prod(self.shape)

    @property
    def num_chunks(self) -> int:
        """0 for a contiguous array."""
        return -(-self.shape[0] // self.chunks.rows) if self.chunks else 0

    def to_json(self) -> dict[str, Any]:
        said = {"dtype": self.dtype.str, "shape": list(self.shape), "offset": self.offset, "digest": self.digest}
        return said | ({"chunks": self.chunks.to_json()} if self.chunks else {})

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Extent:
        """Raises KeyError, TypeError, ValueError where the value is none of ours."""
        dtype = np.dtype(value["dtype"])
        shape = tuple(map(int, value["shape"]))
        offset = int(value["offset"])
        if dtype.kind not in KINDS or not shape or min(shape) < 0 or offset < 0:
            raise ValueError(f"an array of {dtype.str} {shape} at {offset}")
        chunks = Chunks.from_json(value["chunks"]) if "chunks" in value else None
        return cls(dtype, shape, offset, str(value["digest"]), chunks)


@dataclass(frozen=True)
class StoredObject:
    """One object and the arrays in it, as a manifest or commit says it."""

    id: str
    size_bytes: int
    extents: dict[str, Extent]

    def to_json(self) -> dict[str, Any]:
        columns = {name: extent.to_json() for name, extent in self.extents.items()}
        return {"id": self.id, "size_bytes": self.size_bytes, "columns": columns}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> StoredObject:
        """Raises KeyError, TypeError, ValueError; an array beyond the end of its file is a ValueError, too."""
        extents = {str(name): Extent.from_json(v) for name, v in value["columns"].items()}
        stored = cls(str(value["id"]), int(value["size_bytes"]), extents)
        for name, extent in extents.items():
            if extent.chunks:
                index = extents[chunks_of(name)]
                if index.dtype != np.int64 or index.shape != (extent.num_chunks, 3):
                    raise ValueError(f"the chunks of '{name}' are {index.dtype} {index.shape}")
                if extent.size_bytes > _MOST_PACKED * stored.size_bytes:
                    raise ValueError(f"array '{name}' of {extent.size_bytes} bytes in {stored.size_bytes}")
            elif extent.offset + extent.size_bytes > stored.size_bytes:
                raise ValueError(f"array '{name}' ends beyond the {stored.size_bytes} bytes of object {stored.id}")
        return stored


def offsets_of(column: str) -> str:
    """The array that says where the rows of a ragged column begin."""
    return f"{column}.offsets"


def chunks_of(column: str) -> str:
    """The array that says where the chunks of a compressed column lie."""
    return f"{column}.chunks"


def write_object(
    layout: Layout, columns: Mapping[str, Values], filters: Mapping[str, Filter] | None = None
) -> StoredObject:
    """Store columns as one object; the same columns make the same bytes, so they are stored once.

    Shapes (rows, …) or ragged, dtypes bool, integer, float or fixed-length bytes; `filters` says which to compress.
    A damaged object of the same id is mended. Raises SourceError on other dtypes, OSError.
    """
    arrays = plain_arrays(columns)
    written = hdf5_bytes(arrays, filters or {})
    object_id = files.sha256_bytes(written.data)
    size_bytes = len(written.data)
    path = layout.object(object_id)
    if damage(path, object_id, size_bytes) or not layout.renew(path):
        layout.write(path, written.data)
    extents = {
        name: Extent(a.dtype, a.shape, written.offsets[name], array_digest(a), written.chunks.get(name))
        for name, a in (arrays | written.indices).items()
    }
    return StoredObject(object_id, size_bytes, extents)


def damage(path: Path, object_id: str, size_bytes: int, *, checksum: bool = True) -> str:
    """What is wrong with an object's file, as the end of a sentence; empty where nothing is."""
    try:
        found_bytes = path.stat().st_size
        if found_bytes != size_bytes:
            return f"it has {found_bytes} bytes instead of {size_bytes}"
        if checksum and files.sha256_file(path) != object_id:
            return "its bytes do not fit its checksum"
    except FileNotFoundError:
        return "it is missing"
    except OSError as error:
        return f"it cannot be read ({error.strerror})"
    return ""


def open_object(layout: Layout, stored: StoredObject) -> int:
    """A file descriptor for reading. Raises CorruptError where the object is missing or has another size."""
    path = layout.object(stored.id)
    try:
        handle = os.open(fresh(path), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptError(path, "it is missing", _VERIFY) from error
    size_bytes = os.fstat(handle).st_size
    if size_bytes != stored.size_bytes:
        os.close(handle)
        raise CorruptError(path, f"it has {size_bytes} bytes instead of {stored.size_bytes}", _VERIFY)
    return handle


def read_array(layout: Layout, stored: StoredObject, name: str, out: Array | None = None) -> Array:
    """One whole array of an object, in memory: freshly made, or in `out` of that form. Raises CorruptError."""
    extent = stored.extents[name]
    array = np.empty(extent.shape, extent.dtype) if out is None else out
    again_if_stale(lambda: _fill(layout, stored, name, array))
    return array


def _fill(layout: Layout, stored: StoredObject, name: str, array: Array) -> None:
    extent, path = stored.extents[name], layout.object(stored.id)
    handle = open_object(layout, stored)
    try:
        if extent.chunks:
            _read_chunks(handle, stored, name, array, path)
        else:
            read_into(handle, array, extent.offset, path)
    finally:
        os.close(handle)


def read_column(layout: Layout, stored: StoredObject, name: str) -> Values:
    """One whole column of an object, in memory: (rows, *shape), or ragged where it was written so. CorruptError."""
    values = read_array(layout, stored, name)
    if offsets_of(name) not in stored.extents:
        return values
    offsets = read_array(layout, stored, offsets_of(name))
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise CorruptError(layout.object(stored.id), f"the offsets of '{name}' do not ascend to its end", _VERIFY)
    return Ragged(values, offsets)


def read_into(handle: int, array: Array, offset: int, path: Path) -> None:
    """Fill a C-contiguous array from byte `offset` of the open file `path`. Raises CorruptError at the file's end."""
    if not array.size:
        return
    view = array.reshape(-1).view(np.uint8).data
    while view:
        count = os.preadv(handle, [view], offset)
        if count == 0:
            raise CorruptError(path, f"it was cut off at byte {offset} while it was read", _VERIFY)
        view, offset = view[count:], offset + count


def unpack_chunk(handle: int, extent: Extent, place: Sequence[int], path: Path) -> Array:
    """One chunk of a compressed array by its line in `<column>.chunks`: (chunk's rows, *shape). Raises CorruptError."""
    assert extent.chunks, "only compressed arrays have chunks"
    offset, size_bytes, left_out = place
    shape = (extent.chunks.rows, *extent.shape[1:])
    if not 0 <= size_bytes <= os.fstat(handle).st_size or offset < 0:
        raise CorruptError(path, f"a chunk of {size_bytes} bytes at byte {offset} cannot lie in it", _VERIFY)
    data = np.empty(size_bytes, np.uint8)
    read_into(handle, data, offset, path)
    try:
        if left_out:
            return data.view(extent.dtype).reshape(shape)
        return unpack(data.data, extent.chunks.filter, extent.dtype, prod(shape)).reshape(shape)
    except ValueError as error:
        raise CorruptError(path, str(error), _VERIFY) from error


def _read_chunks(handle: int, stored: StoredObject, name: str, array: Array, path: Path) -> None:
    extent, index = stored.extents[name], stored.extents[chunks_of(name)]
    places = np.empty(index.shape, np.int64)
    read_into(handle, places, index.offset, path)
    assert extent.chunks, "only compressed arrays have chunks"
    for number, place in enumerate(places.tolist()):
        part = array[number * extent.chunks.rows : (number + 1) * extent.chunks.rows]
        part[:] = unpack_chunk(handle, extent, place, path)[: len(part)]


def array_digest(array: Array) -> str:
    """SHA-256 of dtype, shape and C-order values, 64 hex digits."""
    digest = hashlib.sha256(f"{array.dtype.str}|{list(array.shape)}|".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
