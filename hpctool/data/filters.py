"""Filters: how a compressed column is cut into chunks and packed. HDF5's own deflate and shuffle, but without HDF5.

A chunk is `rows` consecutive rows (the last one is filled up), packed as one zlib stream; `shuffle` lays the first
bytes of all numbers side by side before, then the second ones. Both are built into every HDF5 library, so `h5dump`
reads the column, and zlib releases Python's lock, so threads unpack side by side.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from hpctool.world import Array

Filter = Literal["deflate", "shuffle+deflate"]

#: HDF5's default: 9 takes five times as long for 1 % less.
LEVEL = 4
#: Unpacked bytes of a chunk: what must be unpacked to read one row, and enough for zlib's window of 32 KiB.
CHUNK_BYTES = 256 << 10


@dataclass(frozen=True)
class Chunks:
    """How one array is packed; where its chunks lie says the array `<column>.chunks` beside it."""

    #: rows of each chunk
    rows: int
    filter: Filter

    @classmethod
    def for_rows(cls, row_bytes: int, num_rows: int, filter: Filter) -> Chunks:
        """Chunks of about CHUNK_BYTES, no bigger than the array."""
        return cls(max(1, min(num_rows, CHUNK_BYTES // max(row_bytes, 1))), filter)

    def to_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "filter": self.filter}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Chunks:
        """Raises KeyError, TypeError, ValueError where the value is none of ours."""
        chunks = cls(int(value["rows"]), value["filter"])
        if chunks.rows < 1 or chunks.filter not in get_args(Filter):
            raise ValueError(f"chunks of {chunks.rows} rows packed by {value['filter']!r}")
        return chunks


def pack(chunk: Array, filter: Filter) -> bytes:
    """A whole chunk's bytes as they stand in the file."""
    flat = np.ascontiguousarray(chunk).reshape(-1)
    planes = flat.view(np.uint8).reshape(len(flat), flat.dtype.itemsize)
    return zlib.compress((planes.T if "shuffle" in filter else planes).tobytes(), LEVEL)


def unpack(data: bytes | memoryview, filter: Filter, dtype: np.dtype[Any], num_items: int) -> Array:
    """A chunk's items, (num_items,) of `dtype`. Raises ValueError where the bytes are no such chunk.

    No more than the chunk's size is ever unpacked, whatever the stream says.
    """
    size_bytes = num_items * dtype.itemsize
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, max(size_bytes, 1))
    except zlib.error as error:
        raise ValueError(f"a chunk cannot be unpacked ({error})") from error
    if len(raw) != size_bytes or stream.decompress(stream.unconsumed_tail, 1):
        raise ValueError(f"a chunk unpacks to other than {size_bytes} bytes")
    if "shuffle" in filter and dtype.itemsize > 1:
        planes = np.frombuffer(raw, np.uint8).reshape(dtype.itemsize, num_items)
        return np.ascontiguousarray(planes.T).view(dtype).reshape(num_items)
    return np.frombuffer(raw, dtype)


def saving(sample: Array, filter: Filter) -> float:
    """The share of its bytes that packing saves on a sample, 0 to 1."""
    rows = Chunks.for_rows(sample[:1].nbytes, len(sample), filter).rows
    packed = sum(len(pack(sample[start : start + rows], filter)) for start in range(0, len(sample), rows))
    return max(0.0, 1 - packed / max(sample.nbytes, 1))
