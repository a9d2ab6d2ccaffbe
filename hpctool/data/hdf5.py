"""The bytes of an HDF5 file that holds some arrays, and where each of them lies in it. The same arrays, the same bytes.

Plain files that every site's HDF5 opens: no virtual, external or linked data, nothing that grows. Paged allocation
(`fs_strategy`) is never used: it writes the clock into the file.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from hpctool.data.filters import Chunks, Filter, pack
from hpctool.data.ragged import Ragged, Values
from hpctool.errors import SourceError
from hpctool.world import Array

if TYPE_CHECKING:
    import h5py

_PAGE_BYTES = 4096
_COLUMN = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
KINDS = "biufS"  # bool, integers, floats, bytes of a fixed length

#: What the attribute `format` of a file says: 1 all arrays are contiguous, 2 some are compressed.
_CONTIGUOUS, _COMPRESSED = 1, 2


@dataclass(frozen=True)
class Written:
    """A file's bytes, and what the manifest says of it."""

    data: memoryview
    #: array → byte offset; 0 for an empty and for a compressed one
    offsets: dict[str, int]
    #: how the compressed arrays are packed
    chunks: dict[str, Chunks]
    #: `<column>.chunks` of each compressed array
    indices: dict[str, Array]


def plain_arrays(columns: Mapping[str, Values]) -> dict[str, Array]:
    """The arrays that hold some columns, little-endian, in order of name. Raises SourceError on what is none."""
    found = {}
    for name, values in sorted(columns.items()):
        if isinstance(values, Ragged):
            found[name] = _plain(name, values.values)
            found[f"{name}.offsets"] = _plain(name, values.offsets)
        else:
            found[name] = _plain(name, values)
    return found


def hdf5_bytes(arrays: Mapping[str, Array], filters: Mapping[str, Filter]) -> Written:
    """A file with these arrays; those that `filters` names are compressed, unless they are empty.

    In memory: HDF5 does not survive a full disk, and takes locks that Lustre may not have.
    """
    import h5py

    memory = io.BytesIO()
    packed = {name: filter for name, filter in filters.items() if name in arrays and arrays[name].size}
    # An old layout, so that every site's HDF5 opens it; arrays from half a page on begin at a page.
    file = h5py.File(
        memory,
        "w",
        libver=("earliest", "v110"),
        alignment_threshold=_PAGE_BYTES // 2,
        alignment_interval=_PAGE_BYTES,
    )
    chunks: dict[str, Chunks] = {}
    indices: dict[str, Array] = {}
    with file:
        file.attrs["format"] = _COMPRESSED if packed else _CONTIGUOUS
        for name, filter in sorted(packed.items()):
            chunks[name] = Chunks.for_rows(arrays[name][:1].nbytes, len(arrays[name]), filter)
            indices[f"{name}.chunks"] = _write_packed(file, name, arrays[name], chunks[name])
        contiguous = {name: a for name, a in arrays.items() if name not in packed} | indices
        # Data that is given at once is laid out at once, so the offset is known before the file is closed.
        datasets = {name: file.create_dataset(name, data=a, track_times=False) for name, a in contiguous.items()}
        offsets = {name: int(dataset.id.get_offset() or 0) for name, dataset in datasets.items()}
    return Written(memory.getbuffer(), dict.fromkeys(packed, 0) | offsets, chunks, indices)


def _write_packed(file: h5py.File, name: str, array: Array, chunks: Chunks) -> Array:
    """Write one array in chunks that we pack ourselves, and return where they lie: int64 (chunks, 3)."""
    dataset = file.create_dataset(
        name,
        shape=array.shape,
        dtype=array.dtype,
        chunks=(chunks.rows, *array.shape[1:]),
        compression="gzip",
        shuffle="shuffle" in chunks.filter,
        track_times=False,
    )
    corner: tuple[Any, ...] = (0,) * (array.ndim - 1)
    for start in range(0, len(array), chunks.rows):
        chunk = array[start : start + chunks.rows]
        if len(chunk) < chunks.rows:
            chunk = np.concatenate([chunk, np.zeros((chunks.rows - len(chunk), *array.shape[1:]), array.dtype)])
        dataset.id.write_direct_chunk((start, *corner), pack(chunk, chunks.filter))
    file.flush()
    places = (dataset.id.get_chunk_info_by_coord((start, *corner)) for start in range(0, len(array), chunks.rows))
    return np.array([(p.byte_offset, p.size, p.filter_mask) for p in places], np.int64).reshape(-1, 3)


def _plain(name: str, array: Array) -> Array:
    if not _COLUMN.fullmatch(name):
        raise SourceError(f"column '{name}'", "a column's name has letters, digits, '_', '.' and '-' only.")
    if array.dtype.kind not in KINDS or array.ndim == 0:
        raise SourceError(f"column '{name}'", f"{array.dtype} of shape {array.shape} is not an array of numbers.")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
