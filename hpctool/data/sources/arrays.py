"""Blocks from arrays by name: which are features, and what the labels, keys, groups and splits of rows are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hpctool.data.ragged import Values
from hpctool.data.schema import Source
from hpctool.data.sources.base import BLOCK_BYTES, BLOCK_ROWS, Block, key_of_row
from hpctool.errors import SourceError, UnknownName

_SHOWN_BYTES = 40


def special_names(source: Source) -> list[str]:
    """The columns of the source that are no features."""
    split = source.split if source.split != "folder" else None
    return [name for name in (source.label, source.key, source.group, split) if name]


def choose_arrays(source: Source, path: Path, there: Sequence[str], kind: str = "array") -> list[str]:
    """All that is to be read: features and the others. Raises UnknownName, SourceError where there is no feature."""
    special = special_names(source)
    names = list(source.columns) if source.columns is not None else [n for n in there if n not in special]
    for name in [*special, *names]:
        if name not in there:
            raise UnknownName(f"{kind} in {path} called", name, there, "See source.label, .key and .columns.")
    if not names:
        raise SourceError(path, f"it holds no {kind} of features.")
    return list(dict.fromkeys([*names, *special]))


def common_length(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The number of rows of all arrays. Raises SourceError where they differ."""
    lengths = {name: shape[0] if shape else 0 for name, shape in shapes.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SourceError(path, f"its arrays have different lengths: {found}. Choose with source.columns.")
    return next(iter(lengths.values()))


def block_rows(row_bytes: int) -> int:
    """How many rows of this size make a block."""
    return max(1, min(BLOCK_ROWS, BLOCK_BYTES // max(row_bytes, 1)))


def array_block(source: Source, path: Path, start: int, arrays: Mapping[str, Values]) -> Block:
    """The block of rows `start` and following of a file, from all arrays that `choose_arrays` named."""
    special = special_names(source)
    features = {name: values for name, values in arrays.items() if name not in special}
    num_rows = len(next(iter(arrays.values())))
    keys = names_of(path, "keys", start, arrays[source.key]) if source.key else None
    return Block(
        keys=keys or [key_of_row(path, start + row) for row in range(num_rows)],
        labels=label_names(path, start, arrays[source.label], source.classes) if source.label else None,
        columns=features,
        groups=names_of(path, "groups", start, arrays[source.group]) if source.group else None,
        splits=names_of(path, "splits", start, arrays[source.split]) if source.split in special else None,
        wrong=lambda row, problem: SourceError(path, f"row {start + row}: {problem}"),
    )


def names_of(path: Path, what: str, start: int, values: Values) -> list[str]:
    """Integers or texts of the rows `start` and following as texts. Raises SourceError."""
    array = values if isinstance(values, np.ndarray) else None
    if array is None or array.ndim != 1 or array.dtype.kind not in "iuUS":
        found = f"{array.dtype} {array.shape}" if array is not None else "rows of different lengths"
        raise SourceError(path, f"{what} are one integer or name for each row, not {found}.")
    if array.dtype.kind == "S":
        return [decoded(path, what, start + row, text) for row, text in enumerate(array.tolist())]
    return [str(name) for name in array.tolist()]


def decoded(path: Path, what: str, row: int, text: bytes) -> str:
    """Bytes as text. Raises SourceError."""
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        shown = f"{text[:_SHOWN_BYTES]!r}{'…' if len(text) > _SHOWN_BYTES else ''}"
        problem = f"row {row}: {shown} among the {what} is no text in UTF-8, as names must be."
        raise SourceError(path, problem) from error


def label_names(path: Path, start: int, values: Values, classes: Sequence[str] | None) -> list[str]:
    """Each row's class by name; numbers under given names are indices. Raises SourceError."""
    names = names_of(path, "labels", start, values)
    if classes is None or not isinstance(values, np.ndarray) or values.dtype.kind not in "iu":
        return names
    return [classes[label] if 0 <= label < len(classes) else str(label) for label in values.tolist()]
