"""Shuffle: how well an order mixes the classes, as one number that can be known before anything is trained.

A window of the shuffle is read quickly and mixes less: of rows that lie sorted a batch sees few classes. The total
variation distance between the labels of a batch and those of the whole split says how much: 0 where a batch is the
split in little, near 1 where it holds one class of many. Batches drawn from everywhere have some, too, since they are
small; that is the ideal to compare with.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.order import Order
from hpctool.data.reader import Reader, Rows
from hpctool.data.version import Version

_MOST_BATCHES = 64
#: Less than this much above the ideal is noise.
_NOTICEABLE = 1.25


@dataclass(frozen=True)
class ShuffleQuality:
    """The mean distance of a batch's labels from the whole split's, 0 to 1."""

    window: int
    batch_size: int
    num_batches: int
    #: in this order
    found: float
    #: if all rows were shuffled
    ideal: float

    @property
    def is_good(self) -> bool:
        """Whether nobody would notice the window."""
        return self.found <= _NOTICEABLE * self.ideal

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        verdict = "as good as a full shuffle" if self.is_good else "raise data.window, or prepare the data anew"
        return (
            f"shuffle: the labels of a batch of {self.batch_size} differ from the split's by {self.found:.3f} within "
            f"windows of {self.window:,} rows, {self.ideal:.3f} without: {verdict}"
        )


def shuffle_quality(version: Version, rows: Rows, label: str, order: Order, batch_size: int) -> ShuffleQuality | None:
    """Measure the first epoch of an order over a split's `rows`, int64 (n,), at up to 64 batches; None without classes.

    Reads labels only: those of the batches and as many from everywhere. Raises CorruptError.
    """
    column = version.columns.get(label)
    num_batches = min(_MOST_BATCHES, len(rows) // batch_size)
    if column is None or not column.classes or not num_batches:
        return None
    full = Order(order.num_rows, order.seed)
    starts = np.linspace(0, len(rows) - batch_size, num_batches).astype(np.int64).tolist()
    with Reader(version, [label]) as reader:
        counts = [
            np.stack([_counted(reader, label, rows[one.rows(0, at, at + batch_size)]) for at in starts])
            for one in (order, full)
        ]
    # Of all rows it would take a pass over the labels; a sample from everywhere differs from it by little.
    whole = counts[1].sum(axis=0) / counts[1].sum()
    found, ideal = (float(np.abs(each / batch_size - whole).sum(axis=1).mean() / 2) for each in counts)
    return ShuffleQuality(order.window, batch_size, num_batches, found, ideal)


def _counted(reader: Reader, label: str, rows: Rows) -> npt.NDArray[np.int64]:
    """How often each class stands in some rows, those without a label first."""
    classes = reader.version.columns[label].classes or []
    return np.bincount(reader.gather(rows)[label] + 1, minlength=len(classes) + 1)
