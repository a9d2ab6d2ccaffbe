"""Objects: arrays in immutable HDF5 files, named by the SHA-256 of their bytes and readable without HDF5.

h5py writes them, so `h5dump` and any HDF5 library open them. Each array is contiguous, uncompressed, little-endian and
its byte offset is kept in the manifest: reading is a memmap or a pread, without HDF5's lock and safe after a fork.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from hpctool import files
from hpctool.data.layout import FORMAT, Layout
from hpctool.errors import CorruptError, SourceError
from hpctool.world import Array

_PAGE_BYTES = 4096
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_VERIFY = "See what it touches with: hpctool data verify."
_KINDS = "biufS"  # bool, integers, floats, bytes of a fixed length


@dataclass(frozen=True)
class Extent:
    """Where one array lies in an object: `shape[0]` rows of `dtype` from byte `offset` on."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    #: SHA-256 of dtype, shape and values: stays when another HDF5 version writes other bytes around them
    digest: str

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape[1:])

    @property
    def size_bytes(self) -> int:
        return self.dtype.itemsize * prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str, "shape": list(self.shape), "offset": self.offset, "digest": self.digest}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Extent:
        """Raises KeyError, TypeError, ValueError where the value is none of ours."""
        dtype = np.dtype(value["dtype"])
        shape = tuple(int(n) for n in value["shape"])
        offset = int(value["offset"])
        if dtype.kind not in _KINDS or not shape or min(shape) < 0 or offset < 0:
            raise ValueError(f"an array of {dtype.str} {shape} at {offset}")
        return cls(dtype, shape, offset, str(value["digest"]))


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
            if extent.offset + extent.size_bytes > stored.size_bytes:
                raise ValueError(f"array '{name}' ends beyond the {stored.size_bytes} bytes of object {stored.id}")
        return stored


def write_object(layout: Layout, arrays: Mapping[str, Array]) -> StoredObject:
    """Store arrays as one object; the same arrays make the same bytes, so they are stored once.

    Shapes (rows, …), dtypes bool, integer, float or fixed-length bytes. A damaged object of the same id is mended.
    Raises SourceError on other dtypes, OSError.
    """
    plain = {name: _plain(name, array) for name, array in sorted(arrays.items())}
    data, offsets = _hdf5(plain)
    object_id = files.sha256_bytes(data)
    path = layout.object(object_id)
    if damage(path, object_id, len(data)):
        _put(layout, path, data)
    extents = {name: Extent(a.dtype, a.shape, offsets[name], array_digest(a)) for name, a in plain.items()}
    return StoredObject(object_id, len(data), extents)


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
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise CorruptError(path, "it is missing", _VERIFY) from error
    size_bytes = os.fstat(handle).st_size
    if size_bytes != stored.size_bytes:
        os.close(handle)
        raise CorruptError(path, f"it has {size_bytes} bytes instead of {stored.size_bytes}", _VERIFY)
    return handle


def read_array(layout: Layout, stored: StoredObject, name: str) -> Array:
    """One whole array of an object, in memory. Raises CorruptError."""
    extent = stored.extents[name]
    array = np.empty(extent.shape, extent.dtype)
    handle = open_object(layout, stored)
    try:
        read_into(handle, array, extent.offset, layout.object(stored.id))
    finally:
        os.close(handle)
    return array


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


def array_digest(array: Array) -> str:
    """SHA-256 of dtype, shape and C-order values, 64 hex digits."""
    digest = hashlib.sha256(f"{array.dtype.str}|{list(array.shape)}|".encode())
    digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _plain(name: str, array: Array) -> Array:
    if not _COLUMN.fullmatch(name):
        raise SourceError(f"column '{name}'", "a column's name has letters, digits, '_', '.' and '-' only.")
    if array.dtype.kind not in _KINDS or array.ndim == 0:
        raise SourceError(f"column '{name}'", f"{array.dtype} of shape {array.shape} is not an array of numbers.")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))


def _hdf5(arrays: Mapping[str, Array]) -> tuple[memoryview, dict[str, int]]:
    """A plain HDF5 file's bytes and each array's byte offset in it (0 for an empty one).

    In memory: HDF5 does not survive a full disk, and takes locks that Lustre may not have.
    """
    import h5py

    memory = io.BytesIO()
    # An old layout, so that every site's HDF5 opens it; arrays from half a page on begin at a page. No paged
    # allocation: it writes the clock into the file.
    file = h5py.File(
        memory,
        "w",
        libver=("earliest", "v110"),
        alignment_threshold=_PAGE_BYTES // 2,
        alignment_interval=_PAGE_BYTES,
    )
    with file:
        file.attrs["format"] = FORMAT
        datasets = {name: file.create_dataset(name, data=array, track_times=False) for name, array in arrays.items()}
        offsets = {name: int(dataset.id.get_offset() or 0) for name, dataset in datasets.items()}
    return memory.getbuffer(), offsets


def _put(layout: Layout, path: Path, data: memoryview) -> None:
    """Give the bytes their name at once: what a killed writer leaves lies in tmp/."""
    layout.tmp.mkdir(parents=True, exist_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = layout.tmp / files.temporary_name("object")
    try:
        files.write_durably(temporary, data, mode=0o444)
        # The name says the content: whoever replaces this file puts the same bytes there.
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    files.fsync_dir(path.parent)
