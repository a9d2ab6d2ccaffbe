"""Tensors in one file of the safetensors format, which every safetensors library can open.

The bytes are written here and not by the library because it would copy everything twice, and because a file's image
in memory is at the same time the snapshot that later training steps cannot change. A dtype that the format does not
know (complex128, an array of foreign byte order) is stored as U8; its true dtype and shape stand in the spec.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpctool.checkpoint.tensors import Spec, as_bytes, empty, spec_of
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


def encode(tensors: Mapping[str, Any]) -> bytearray:
    """The image of a file that holds these tensors: a copy of their values."""
    # Wide dtypes first keeps every tensor aligned for those who map the file into memory.
    names = sorted(tensors, key=lambda name: (-_item_bytes(tensors[name]), name))
    header: dict[str, Any] = {}
    end = 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        header[name] = {**_described(spec_of(tensors[name]), end - start), "data_offsets": [start, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    image = bytearray(_LENGTH_BYTES + len(text) + end)
    image[:_LENGTH_BYTES] = len(text).to_bytes(_LENGTH_BYTES, "little")
    image[_LENGTH_BYTES : _LENGTH_BYTES + len(text)] = text
    data = memoryview(image)[_LENGTH_BYTES + len(text) :]
    for name in names:
        start, stop = header[name]["data_offsets"]
        data[start:stop] = as_bytes(tensors[name]).data
    return image


def read(path: Path, specs: Mapping[str, Spec]) -> dict[str, Any]:
    """The tensors of a file by name, each in memory of its own. Raises CorruptError, OSError."""
    tensors: dict[str, Any] = {}
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        try:
            header = json.loads(file.read(length))
            for name, spec in specs.items():
                tensor, raw = empty(spec)
                start, stop = header[name]["data_offsets"]
                file.seek(_LENGTH_BYTES + length + start)
                if stop - start != raw.size or file.readinto(raw.data) != raw.size:
                    raise ValueError(f"tensor '{name}' has {stop - start} bytes where {raw.size} belong")
                tensors[name] = tensor
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(path, f"its table of tensors does not fit ({error})") from error
    return tensors


def _described(spec: Spec, size_bytes: int) -> dict[str, Any]:
    name = _FORMAT_NAMES.get(spec.dtype)
    return {"dtype": name, "shape": list(spec.shape)} if name else {"dtype": "U8", "shape": [size_bytes]}


def _item_bytes(tensor: Any) -> int:
    return int(tensor.itemsize)
