"""Blocks from Arrow tables: parquet files, and the folders that Hugging Face's `datasets` saves.

Numbers of one value a row become one float32 column `x`, as those of a csv do, where a table has nothing else; else
every column stands for itself. Lists of numbers, texts and bytes are ragged. pyarrow is imported when it is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.schema import Source
from hpctool.data.sources.arrays import array_block, decoded, special_names
from hpctool.data.sources.base import Block, RowSource
from hpctool.data.sources.images import ImageColumns
from hpctool.errors import InputError, SourceError
from hpctool.world import Array

if TYPE_CHECKING:
    import pyarrow as pa


def pyarrow() -> Any:
    """The package. Raises InputError where it is not installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise InputError("This source needs pyarrow, which is not installed: pip install 'hpctool[arrow]'.") from error
    return pyarrow


def is_table(source: Source, schema: pa.Schema, names: Sequence[str]) -> bool:
    """Whether all features are numbers of one value a row, so that they make one column `x`."""
    features = [name for name in names if name not in special_names(source)]
    types = pyarrow().types
    return all(
        types.is_integer(t) or types.is_floating(t) or types.is_boolean(t)
        for t in (schema.field(name).type for name in features)
    )


def stacked_schema(columns: dict[str, Column], names: Sequence[str]) -> dict[str, Column]:
    """The column `x` with the names of its parts."""
    return {"x": replace(columns["x"], names=list(names))}


class ArrowSource(RowSource):
    """What sources of Arrow tables share: columns that are stacked into `x`, or stand for themselves with images."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes
        self.images = ImageColumns(source)

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        if self.shared["stack"]:
            return stacked_schema(columns, self.shared["stack"])
        return self.images.schema(self.shared["images"], columns)

    def features(self, columns: Mapping[str, Values], name_of: Callable[[int], str]) -> dict[str, Values]:
        return self.images.features(self.shared["images"], columns, name_of)


def arrow_block(source: Source, path: Path, start: int, table: pa.Table, stack: Sequence[str] = ()) -> Block:
    """The block of rows `start` and following of a file. `stack` names the columns that make `x`, in order."""
    values = {name: _values(path, start, name, table.column(name)) for name in table.column_names}
    special = special_names(source)
    if stack:
        x_ND = np.stack([np.asarray(values[name], np.float64) for name in stack], axis=1)
        with np.errstate(over="ignore"):  # what is too big for float32 is infinite, and said so
            values = {name: values[name] for name in special} | {"x": x_ND.astype(np.float32)}
    named = {
        name: _texts(path, start, name, v) if name in special and isinstance(v, Ragged) else v
        for name, v in values.items()
    }
    return array_block(source, path, start, named)


def _values(path: Path, start: int, name: str, column: pa.ChunkedArray) -> Values:
    """One column. Raises SourceError on a type that is none of numbers, lists of numbers, text or bytes."""
    types = pyarrow().types
    array = column.combine_chunks()
    if isinstance(array, pyarrow().ChunkedArray):  # of no rows, or too many for one array
        array = array.chunk(0) if array.num_chunks == 1 else pyarrow().concat_arrays(array.chunks)
    if isinstance(array, pyarrow().ExtensionArray):
        array = array.storage
    if types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if types.is_struct(array.type) and "bytes" in [field.name for field in array.type]:
        array = array.field("bytes")  # an image, as Hugging Face has it; a path beside it is never opened
    kind = array.type
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return _bytes(array)
    if array.null_count and not types.is_floating(kind):
        row = start + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
        raise SourceError(path, f"row {row}: column '{name}' ({kind}) has no value.")
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.asarray(array.to_numpy(zero_copy_only=False))
    if types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind):
        return _lists(path, name, array)
    raise SourceError(path, f"column '{name}' is {kind}, which cannot be taken; choose others with source.columns.")


def _bytes(array: pa.Array) -> Ragged:
    """Text or bytes as ragged uint8; no value is none at all."""
    pa = pyarrow()
    array = array.cast(pa.large_binary()).fill_null(b"")
    offsets, data = array.buffers()[1:]
    found = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    values = np.frombuffer(data, np.uint8)[found[0] : found[-1]] if data else np.zeros(0, np.uint8)
    return Ragged(values, found - found[0])


def _lists(path: Path, name: str, array: pa.Array) -> Values:
    """Lists of numbers: ragged, or (n, k) where the type says so. Lists inside lists must all be of one length."""
    types = pyarrow().types
    inner = array.flatten()
    if types.is_fixed_size_list(array.type):
        values = _numbers(path, name, inner)
        return values.reshape(len(array), array.type.list_size, *values.shape[1:])
    lengths = np.asarray(array.value_lengths().to_numpy(zero_copy_only=False), np.int64)
    return Ragged(_numbers(path, name, inner), np.concatenate([[0], np.cumsum(lengths)]))


def _numbers(path: Path, name: str, array: pa.Array) -> Array:
    types = pyarrow().types
    if types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        rows = _lists(path, name, array)
        if isinstance(rows, np.ndarray):
            return rows
        if len(set(rows.lengths.tolist())) > 1:
            raise SourceError(path, f"column '{name}' holds lists of different lengths inside lists.")
        width = int(rows.lengths[0]) if len(rows) else 0
        return rows.values.reshape(len(rows), width, *rows.values.shape[1:])
    if array.null_count or not (types.is_integer(array.type) or types.is_floating(array.type)):
        problem = "with some that have no value" if array.null_count else "which are no numbers"
        raise SourceError(path, f"column '{name}' holds lists of {array.type}, {problem}.")
    return np.asarray(array.to_numpy(zero_copy_only=False))


def _texts(path: Path, start: int, name: str, values: Ragged) -> Array:
    """Ragged bytes as text, one for each row. Raises SourceError."""
    what = f"values of column '{name}'"
    texts = [decoded(path, what, start + row, values[row].tobytes()) for row in range(len(values))]
    return np.array(texts, np.str_)
