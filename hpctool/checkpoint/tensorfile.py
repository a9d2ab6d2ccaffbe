"""Tensors in one file of the safetensors format, which every safetensors library can open.

The bytes are written here and not by the library because it would copy everything twice, and because a file's image
in memory is at the same time the snapshot that later training steps cannot change. A dtype that the format does not
know (complex128, an array of foreign byte order) is stored as U8; its true dtype and shape stand in the spec.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.checkpoint.tensors import Bytes, Spec, copy_into, empty, spec_of, wait_for_copies
from hpctool.errors import CorruptError

# What safetensors 0.5 and everything after it can read.
_FORMAT_NAMES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "uint16": "U16",
    "int16": "I16",
    "uint32": "U32",
    "int32": "I32",
    "uint64": "U64",
    "int64": "I64",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}
_LENGTH_BYTES = 8
#: where tensors begin: a line of a processor's cache
_ALIGNED_BYTES = 64


class Image:
    """The bytes of a file that is to hold some tensors: first its plan, then, with `fill`, a copy of their values."""

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors = tensors
        rows = ((name, spec_of(one), int(one.itemsize), int(one.nbytes)) for name, one in tensors.items())
        self._header, self._places, end = _laid_out(tuple(rows))
        self._data_start = _LENGTH_BYTES + len(self._header)
        self.size_bytes = self._data_start + end
        self.bytes = memoryview(b"")

    def fill(self, room: memoryview) -> None:
        """Copy the tensors into `room` (size_bytes,), which becomes `bytes`; the tensors themselves are let go."""
        room[:_LENGTH_BYTES] = len(self._header).to_bytes(_LENGTH_BYTES, "little")
        room[_LENGTH_BYTES : self._data_start] = self._header
        raw = np.frombuffer(room, np.uint8)
        for name, (start, end) in self._places.items():
            copy_into(self._tensors[name], raw[self._data_start + start : self._data_start + end])
        wait_for_copies()
        self._tensors = {}
        self.bytes = room

    def holds(self, name: str) -> bool:
        """Whether a tensor of that name is in it."""
        return name in self._places

    def values(self, name: str) -> memoryview:
        """The bytes of one tensor in the filled image."""
        start, end = self._places[name]
        return self.bytes[self._data_start + start : self._data_start + end]


def encode(tensors: Mapping[str, Any]) -> memoryview:
    """The bytes of a file that holds these tensors: a copy of their values, in new memory."""
    image = Image(tensors)
    image.fill(memoryview(bytearray(image.size_bytes)))
    return image.bytes


class Reader:
    """An open file of tensors, out of which parts can be read. A context manager. Raises CorruptError, OSError."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115 - closed by __exit__
        try:
            length = int.from_bytes(self._file.read(_LENGTH_BYTES), "little")
            if length > path.stat().st_size:
                raise ValueError(f"its header of {length} bytes is longer than the file")
            self._header = json.loads(self._file.read(length))
        except (ValueError, TypeError) as error:
            self._file.close()
            raise self.corrupt(error) from error
        self._data_start = _LENGTH_BYTES + length

    def read(self, name: str, raw: Bytes, first_byte: int = 0, of_bytes: int | None = None) -> None:
        """Fill `raw` with a tensor's bytes from `first_byte` on; `of_bytes` is how many it must have in all."""
        try:
            start, stop = self._header[name]["data_offsets"]
            expected = raw.size if of_bytes is None else of_bytes
            if stop - start != expected:
                raise ValueError(f"tensor '{name}' has {stop - start} bytes where {expected} belong")
            self._file.seek(self._data_start + start + first_byte)
            view = raw.data
            while view.nbytes:
                if not (count := self._file.readinto(view)):
                    raise ValueError(f"tensor '{name}' ends early")
                view = view[count:]
        except (ValueError, KeyError, TypeError) as error:
            raise self.corrupt(error) from error

    def corrupt(self, error: Exception) -> CorruptError:
        """The error that says what does not fit."""
        return CorruptError(self.path, f"its table of tensors does not fit ({error})")

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Readers(contextlib.ExitStack):
    """The files of a folder, each opened when it is first asked for and closed in the end. A context manager."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._open: dict[str, Reader] = {}

    def of(self, name: str) -> Reader:
        """The file of that name. Raises CorruptError, OSError."""
        if name not in self._open:
            self._open[name] = self.enter_context(Reader(self._folder / name))
        return self._open[name]

    def tensor(self, file: str, name: str, spec: Spec) -> Any:
        """A whole tensor of a file, in memory of its own. Raises CorruptError, OSError."""
        reader = self.of(file)
        try:
            tensor, raw = empty(spec)
        except ValueError as error:
            raise reader.corrupt(error) from error
        reader.read(name, raw)
        return tensor


# The same from save to save, and while it is found the training waits.
@functools.lru_cache(maxsize=8)
def _laid_out(rows: tuple[tuple[str, Spec, int, int], ...]) -> tuple[bytes, Mapping[str, tuple[int, int]], int]:
    """For tensors of (name, spec, bytes per value, bytes): the header, the place of each behind it, and their end."""
    places: dict[str, tuple[int, int]] = {}
    header: dict[str, Any] = {}
    end = 0
    # Wide dtypes first keeps every tensor aligned for those who map the file into memory.
    for name, spec, _, size_bytes in sorted(rows, key=lambda row: (-row[2], row[0])):
        start, end = end, end + size_bytes
        header[name] = {**_described(spec, size_bytes), "data_offsets": [start, end]}
        places[name] = (start, end)
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    return text + b" " * (-(_LENGTH_BYTES + len(text)) % _ALIGNED_BYTES), places, end


def _described(spec: Spec, size_bytes: int) -> dict[str, Any]:
    name = _FORMAT_NAMES.get(spec.dtype)
    return {"dtype": name, "shape": list(spec.shape)} if name else {"dtype": "U8", "shape": [size_bytes]}
