"""A version as one parquet file, for pandas, DuckDB and everybody who reads tables. Needs the extra `[arrow]`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpctool.data.manifest import LABEL, UID, Column
from hpctool.data.ragged import Ragged, Values
from hpctool.errors import InputError

if TYPE_CHECKING:
    from hpctool.data.export import Job


def write_parquet(job: Job, path: Path) -> None:
    """A row group for each row group: numbers as numbers, arrays as lists of a fixed size, encoded images as binary.

    The label is a text, the class's name, null where there is none. The shapes of arrays stand in the file's metadata.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError("Parquet needs pyarrow, which is not installed: pip install 'hpctool[arrow]'.") from error

    fields = [pa.field(name, _type(pa, job, column)) for name, column in job.columns.items()]
    fields += [pa.field(UID, pa.string()), pa.field("split", pa.string())]
    shapes = {name: list(column.shape) for name, column in job.columns.items() if column.shape}
    about = json.dumps(job.about | {"shapes": shapes})
    schema = pa.schema(fields, metadata={"hpctool": about})
    with pq.ParquetWriter(path, schema) as writer:
        for block in job.blocks():
            arrays = [_array(pa, job, name, values) for name, values in block.columns.items()]
            arrays += [pa.array(block.uids, pa.string()), pa.array(block.splits, pa.string())]
            writer.write_table(pa.Table.from_arrays(arrays, schema=schema))


def _type(pa: Any, job: Job, column: Column) -> Any:
    if column.name == LABEL and job.version.classes:
        return pa.string()
    if column.encoding or (column.ragged and column.dtype == np.uint8 and not column.shape):
        return pa.binary()
    kind = pa.binary() if column.dtype.kind == "S" else pa.from_numpy_dtype(column.dtype)
    if column.shape:
        kind = pa.list_(kind, int(np.prod(column.shape)))
    return pa.list_(kind) if column.ragged else kind


def _array(pa: Any, job: Job, name: str, values: Values) -> Any:
    kind = _type(pa, job, job.columns[name])
    if isinstance(values, Ragged):
        if kind == pa.binary():
            return pa.array([values[row].tobytes() for row in range(len(values))], kind)
        offsets = pa.array(values.offsets.astype(np.int32))
        return pa.ListArray.from_arrays(offsets, _plain(pa, values.values, kind.value_type))
    if name == LABEL and job.version.classes:
        names = np.array([*job.version.classes, None], object)
        return pa.array(names[values], kind)
    return _plain(pa, values, kind)


def _plain(pa: Any, values: Any, kind: Any) -> Any:
    if pa.types.is_fixed_size_list(kind):
        return pa.FixedSizeListArray.from_arrays(_plain(pa, values.reshape(-1), kind.value_type), kind.list_size)
    return pa.array(values.tolist() if values.dtype.kind == "S" else values, kind)
