"""Ragged: rows of different lengths as one array and the places where rows begin. Texts, series, encoded images.

In an object these are two arrays, `<column>` (items, …) and `<column>.offsets` int64 (rows + 1,), so row r is
items offsets[r] to offsets[r + 1]. HDF5's own variable length lies in a heap that only HDF5 can read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.world import Array

Offsets = npt.NDArray[np.int64]

#: Rows of more items than this are copied one by one: an index of all items would be 8 bytes for each.
_LONG_ROW_ITEMS = 64


@dataclass(frozen=True)
class Ragged:
    """Rows of different lengths: `values` (items, *shape) and `offsets` int64 (rows + 1,), ascending from 0."""

    values: Array
    offsets: Offsets

    @classmethod
    def of(cls, rows: Sequence[Array | bytes], dtype: np.dtype[Any] | None = None) -> Ragged:
        """From one array (items, *shape) or one bytes per row; `dtype` is needed where there are no rows."""
        arrays = [np.frombuffer(row, np.uint8) if isinstance(row, bytes) else row for row in rows]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return cls(np.concatenate(arrays) if arrays else np.zeros(0, dtype or np.uint8), offsets)

    @classmethod
    def concatenate(cls, parts: Iterable[Ragged]) -> Ragged:
        """The rows of one after those of the other."""
        found = list(parts)
        lengths = np.concatenate([part.lengths for part in found])
        return cls(np.concatenate([part.values for part in found]), np.concatenate([[0], np.cumsum(lengths)]))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Array:
        """One row: (its length, *shape), a view."""
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.values.dtype

    @property
    def lengths(self) -> Offsets:
        """Each row's number of items, int64 (rows,)."""
        return np.diff(self.offsets)

    def take(self, rows: npt.NDArray[np.int64]) -> Ragged:
        """Some rows in the order asked for, freshly made."""
        starts, lengths = self.offsets[rows], self.lengths[rows]
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(lengths, out=offsets[1:])
        if offsets[-1] <= len(rows) * _LONG_ROW_ITEMS:
            index = np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], lengths)
            return Ragged(self.values[index], offsets)
        values = np.empty((int(offsets[-1]), *self.values.shape[1:]), self.dtype)
        for place, start, length in zip(offsets.tolist(), starts.tolist(), lengths.tolist(), strict=False):
            values[place : place + length] = self.values[start : start + length]
        return Ragged(values, offsets)


#: A column's values in memory: (rows, *shape), or rows of different lengths.
Values = Array | Ragged


def take(values: Values, rows: npt.NDArray[np.int64]) -> Values:
    """Some rows of a column, freshly made."""
    return values.take(rows) if isinstance(values, Ragged) else values[rows]


def concatenate(parts: Sequence[Values]) -> Values:
    """Rows of one column after each other. All parts are ragged, or none is."""
    ragged = [part for part in parts if isinstance(part, Ragged)]
    return Ragged.concatenate(ragged) if ragged else np.concatenate([np.asarray(part) for part in parts])


def not_finite(values: Values) -> int | None:
    """The first row with a number that is NaN or infinite."""
    array = values.values if isinstance(values, Ragged) else values
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return None
    item = int(np.argmin(np.isfinite(array).reshape(len(array), -1).all(axis=1)))
    return int(np.searchsorted(values.offsets, item, side="right")) - 1 if isinstance(values, Ragged) else item
