"""Manifest: the table of contents of a version. What columns there are, which object holds which rows, the splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hpctool.data.layout import FORMAT
from hpctool.data.objects import StoredObject, offsets_of
from hpctool.errors import CorruptError, NewerFormat

Role = Literal["feature", "label", "identity"]

#: The column that holds the class index of each row, int64, -1 where there is no label.
LABEL = "label"
#: The column of each row's immutable name, uint8 (16,): the first half of the SHA-256 of the source's stable key.
UID = "uid"
#: The column of the SHA-256 of each row's features, uint8 (16,): finds rows that stand twice and rows that changed.
CONTENT = "content"
#: The column of the digest of whose a row is (writer, patient), uint8 (16,), where splits follow groups.
GROUP = "group"
NO_LABEL = -1
#: What a source, or a csv of labels, says for none.
MISSING = ("", str(NO_LABEL))
#: The folder of images without a label, which an export writes and a source reads.
UNLABELLED = "_unlabelled"


@dataclass(frozen=True)
class Column:
    """One column: `shape` is that of one row, (H, W, C) for images; of one item of a row, if the column is ragged."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    #: the classes' names by index, for the label column
    classes: list[str] | None = None
    #: the names of the parts of a row, where they have names (the columns of a csv file)
    names: list[str] | None = None
    role: Role = "feature"
    #: rows have different lengths: () for a text of bytes, (3,) for a cloud of points (n, 3)
    ragged: bool = False
    #: rows are files that are yet to be decoded: uint8, ragged. "image" is what Pillow reads
    encoding: Literal["image"] | None = None
    #: NaN and infinity are forbidden, in what is appended, too
    finite: bool = False

    @property
    def form(self) -> str:
        """What a row is, for people: `8×8×1`, `n×3` for rows of different lengths, `encoded image`."""
        if self.encoding is not None:
            return f"encoded {self.encoding}"
        return "×".join(["n"] * self.ragged + [str(size) for size in self.shape])

    def to_json(self) -> dict[str, Any]:
        value: dict[str, Any] = {"dtype": self.dtype.str, "shape": list(self.shape), "role": self.role}
        optional = {
            "classes": self.classes,
            "names": self.names,
            "ragged": self.ragged or None,
            "encoding": self.encoding,
            "finite": self.finite or None,
        }
        return value | {key: v for key, v in optional.items() if v is not None}

    @classmethod
    def from_json(cls, name: str, value: dict[str, Any]) -> Column:
        """Raises KeyError, TypeError, ValueError where the value is none of ours."""
        shape = tuple(int(n) for n in value["shape"])
        dtype, encoding = np.dtype(value["dtype"]), value.get("encoding")
        if encoding not in (None, "image"):
            raise ValueError(f"column '{name}' is encoded as {encoding!r}")
        return cls(
            name,
            dtype,
            shape,
            value.get("classes"),
            value.get("names"),
            value["role"],
            ragged=bool(value.get("ragged")),
            encoding=encoding,
            finite=bool(value.get("finite")),
        )


GROUP_COLUMN = Column(GROUP, np.dtype(np.uint8), (16,), role="identity")
IDENTITY_COLUMNS = [Column(name, np.dtype(np.uint8), (16,), role="identity") for name in (UID, CONTENT)]


@dataclass(frozen=True)
class RowGroup:
    """Consecutive rows, and the objects that hold their columns."""

    num_rows: int
    objects: list[StoredObject]

    def holder(self, column: str) -> StoredObject:
        """The object that holds a column."""
        for stored in self.objects:
            if column in stored.extents:
                return stored
        raise KeyError(column)

    def with_object(self, new: StoredObject) -> RowGroup:
        """The same rows with other values for the columns of one object."""
        objects = [new if o.extents.keys() == new.extents.keys() else o for o in self.objects]
        return replace(self, objects=objects)


@dataclass(frozen=True)
class Manifest:
    """The contents of a version. Equal contents have equal manifests, whoever made them and with how many ranks.

    Only the last digits of statistics may be others on another kind of processor, and an older hpctool kept nine.
    """

    columns: dict[str, Column]
    row_groups: list[RowGroup]
    #: one int64 array of row indices for each split
    splits: StoredObject
    #: {"by": "uid", "fractions": [["train", 0.6], …]}: how rows find their split, so that new ones can (splits.py)
    rule: dict[str, Any]
    #: what stats.py found: counts of rows and classes, moments of features, for each split
    stats: dict[str, Any]

    @property
    def num_rows(self) -> int:
        return sum(group.num_rows for group in self.row_groups)

    def same_contents(self, other: Manifest) -> bool:
        """Whether both say the same of every row; statistics follow from that."""
        return replace(self, stats={}) == replace(other, stats={})

    @property
    def objects(self) -> list[StoredObject]:
        """Every object of this version."""
        return [self.splits, *(o for group in self.row_groups for o in group.objects)]

    @property
    def split_names(self) -> list[str]:
        """The splits in the order in which they were asked for."""
        return rule_splits(self.rule)

    @property
    def format(self) -> int:
        """The lowest format that can say it, so that equal contents have equal manifests whichever came since.

        2 has ragged and compressed columns, and splits that do not follow from the uid alone.
        """
        ragged = any(column.ragged for column in self.columns.values())
        packed = any(extent.chunks for stored in self.objects for extent in stored.extents.values())
        return 2 if ragged or packed or self.rule["by"] != "uid" else 1

    def to_json(self) -> dict[str, Any]:
        return {
            "format": self.format,
            "num_rows": self.num_rows,
            "columns": {name: column.to_json() for name, column in self.columns.items()},
            "row_groups": [
                {"num_rows": g.num_rows, "objects": [o.to_json() for o in g.objects]} for g in self.row_groups
            ],
            "splits": self.splits.to_json(),
            "rule": self.rule,
            "stats": self.stats,
        }

    @classmethod
    def from_json(cls, path: Path, value: Any) -> Manifest:
        """Parse and check what a manifest file holds. Raises NewerFormat, CorruptError."""
        check_format(path, "manifest", value)
        try:
            manifest = cls(
                columns={str(name): Column.from_json(name, v) for name, v in value["columns"].items()},
                row_groups=[
                    RowGroup(int(g["num_rows"]), [StoredObject.from_json(o) for o in g["objects"]])
                    for g in value["row_groups"]
                ],
                splits=StoredObject.from_json(value["splits"]),
                rule=dict(value["rule"]),
                stats=dict(value["stats"]),
            )
            _check_shapes(manifest)
        except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as error:
            raise CorruptError(path, f"it is no manifest ({type(error).__name__}: {error})") from error
        return manifest


def rule_splits(rule: Mapping[str, Any]) -> list[str]:
    """The splits of a rule in their order. Raises KeyError, TypeError where it is none of ours."""
    return list(rule["splits"]) if rule["by"] == "given" else [name for name, _ in rule["fractions"]]


def check_format(path: Path, kind: str, value: Any, known: int = FORMAT) -> None:
    """Refuse what a newer hpctool wrote. Raises NewerFormat, CorruptError where it says no format at all."""
    found = value.get("format") if isinstance(value, dict) else None
    if not isinstance(found, int):
        raise CorruptError(path, f"it is no {kind}: it says no format")
    if found > known:
        raise NewerFormat(path, kind, found, known)


def _check_shapes(manifest: Manifest) -> None:
    """Every row group holds every column with its dtype and shape; the splits are row indices. Raises ValueError."""
    for number, group in enumerate(manifest.row_groups):
        for name, column in manifest.columns.items():
            extents = group.holder(name).extents
            extent = extents[name]
            offsets = extents[offsets_of(name)] if column.ragged else None
            num_items = extent.shape[0] if offsets else group.num_rows
            if extent.dtype != column.dtype or extent.shape != (num_items, *column.shape):
                raise ValueError(f"column '{name}' of row group {number} is {extent.dtype} {extent.shape}")
            if offsets and (offsets.dtype != np.int64 or offsets.shape != (group.num_rows + 1,)):
                raise ValueError(f"the offsets of '{name}' in row group {number} are {offsets.dtype} {offsets.shape}")
    for name in manifest.split_names:
        extent = manifest.splits.extents[name]
        if extent.dtype != np.int64 or len(extent.shape) != 1:
            raise ValueError(f"split '{name}' is {extent.dtype} {extent.shape}")
