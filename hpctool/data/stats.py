"""Statistics of a version: for each split its rows, the classes' counts and every feature's moments.

Moments are computed where a row group is written and merged in order of row group, so they do not depend, to the last
bit, on how many ranks there were. They are kept to the last bit, because rows are added to them: of seconds since 1970
nine digits know nothing within ten seconds. A feature with named parts (the columns of a csv file) has moments for each
part.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import frexp, hypot, ldexp, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.identity import Digests, words
from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.world import Array

_CHUNK_ROWS = 1024  # converted to float64 at a time
_FAR = 400  # powers of two from 1 where squares and sums of many numbers may leave float64


@dataclass
class Moments:
    """Count, mean, standard deviation (of the population), least and greatest of the finite values seen."""

    count: int = 0
    mean: float = 0.0
    std: float = 0.0
    least: float = 0.0
    greatest: float = 0.0

    def add(self, other: Moments) -> None:
        """Take in another sample (Chan's formula, in standard deviations: squares of them may be infinite)."""
        if other.count == 0:
            return
        if self.count == 0:
            self.__dict__.update(asdict(other))
            return
        total = self.count + other.count
        ours, theirs = self.count / total, other.count / total
        half = other.mean / 2 - self.mean / 2  # the difference itself may be infinite
        apart = 2 * sqrt(ours * theirs) * half
        std = hypot(sqrt(ours) * self.std, sqrt(theirs) * other.std, apart)
        self.mean = self.mean + theirs * half + theirs * half
        self.least, self.greatest = min(self.least, other.least), max(self.greatest, other.greatest)
        self.std = min(std, self.greatest / 2 - self.least / 2)
        self.count = total

    @classmethod
    def of(cls, values: Array) -> Moments:
        """The moments of all finite values of an array."""
        flat = values.reshape(-1).astype(np.float64)
        flat = flat[np.isfinite(flat)]
        if not flat.size:
            return cls()
        least, greatest = float(flat.min()), float(flat.max())
        power = frexp(max(-least, greatest))[1]
        if abs(power) < _FAR:
            power = 0
        else:
            flat = np.ldexp(flat, -power)  # this changes no digit
        low, high = ldexp(least, -power), ldexp(greatest, -power)
        # Rounding may lead a little out of the range.
        mean = min(max(float(flat.mean()), low), high)
        std = min(sqrt(((flat - mean) ** 2).mean()), high / 2 - low / 2)
        return cls(flat.size, ldexp(mean, power), ldexp(std, power), least, greatest)

    def to_json(self) -> dict[str, float]:
        """As a manifest holds them."""
        return {"count": self.count, "min": self.least, "max": self.greatest, "mean": self.mean, "std": self.std}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Moments:
        """What `to_json` said, so that rows can be added without reading the old ones."""
        return cls(value["count"], value["mean"], value["std"], value["min"], value["max"])


#: split → feature (or `feature.part`) → moments
SplitMoments = dict[str, dict[str, Moments]]


def group_moments(
    features: Mapping[str, Values], columns: Mapping[str, Column], splits: Mapping[str, npt.NDArray[np.int64]]
) -> SplitMoments:
    """The moments of one row group's features (n, …), by split; `splits` are rows of the group."""
    found: SplitMoments = {}
    for split, rows in splits.items():
        found[split] = {}
        for start in range(0, len(rows), _CHUNK_ROWS):
            for name, values in features.items():
                for part, part_values in _parts(columns[name], values, rows[start : start + _CHUNK_ROWS]):
                    found[split].setdefault(part, Moments()).add(Moments.of(part_values))
    return found


def merge_moments(groups: Iterable[SplitMoments]) -> SplitMoments:
    """The moments of several row groups together, taken in the order given."""
    merged: SplitMoments = {}
    for group in groups:
        for split, named in group.items():
            of_split = merged.setdefault(split, {})  # also where it has no rows yet
            for name, moments in named.items():
                of_split.setdefault(name, Moments()).add(moments)
    return merged


def described_moments(stats: Mapping[str, Any]) -> SplitMoments:
    """The moments of all rows that a manifest's statistics describe."""
    return {
        split: {name: Moments.from_json(said) for name, said in described["features"].items()}
        for split, described in stats["splits"].items()
    }


def label_counts(labels: Array, splits: Mapping[str, npt.NDArray[np.int64]], classes: Sequence[str]) -> dict[str, Any]:
    """Split → {"classes": count of each class by index, "unlabelled": count}, from labels int64 (n,)."""
    counts = {}
    for split, rows in splits.items():
        of_split = np.bincount(labels[rows] + 1, minlength=len(classes) + 1).tolist()
        counts[split] = {"classes": of_split[1:], "unlabelled": of_split[0]}
    return counts


def duplicates(content: Digests, split_index: npt.NDArray[np.int64]) -> dict[str, int]:
    """Rows whose features stand in the version before ("repeated"), and contents in several splits ("leaked")."""
    _, which = np.unique(words(content), return_inverse=True)
    num_contents = int(which.max(initial=-1)) + 1
    pairs = np.unique(which * (int(split_index.max(initial=0)) + 1) + split_index)
    splits_of_content = np.bincount(pairs // (int(split_index.max(initial=0)) + 1), minlength=num_contents)
    return {"repeated": len(content) - num_contents, "leaked": int((splits_of_content > 1).sum())}


def _parts(column: Column, values: Values, rows: npt.NDArray[np.int64]) -> Iterator[tuple[str, Array]]:
    """What of some rows has moments: of ragged columns the lengths, and the numbers unless they are encoded."""
    if values.dtype.kind == "S":
        return
    if isinstance(values, Ragged):
        yield f"{column.name}.length", values.lengths[rows]
        if column.encoding is None and values.values.ndim == 1 and values.dtype != np.uint8:
            yield column.name, values.take(rows).values
        return
    if column.names is None:
        yield column.name, values[rows]
        return
    for number, name in enumerate(column.names):
        yield f"{column.name}.{name}", values[rows, number]
