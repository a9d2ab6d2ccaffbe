"""Table: the rows of a source before they are stored, and how labels become class indices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from hpctool.data.manifest import NO_LABEL, Column
from hpctool.data.reader import Rows
from hpctool.errors import SourceError, listing
from hpctool.world import Array

#: Files up to this size are read on the login node already, so that a bad cell is found before the queue.
EARLY_BYTES = 16 << 20


@dataclass
class Table:
    """Rows that can be read in any order. Keys, labels and columns are the same on every rank."""

    #: what names each row for ever
    keys: list[str]
    #: the features
    columns: dict[str, Column]
    #: class index of each row, int64 (n,), -1 where there is none; None where the source has no labels at all
    labels: npt.NDArray[np.int64] | None
    classes: list[str]
    #: rows int64 (m,) → the features of those rows, (m, *shape) each. Raises SourceError
    read: Callable[[Rows], dict[str, Array]]
    #: what the user should hear
    notes: list[str] = field(default_factory=list)


def source_file(path: str | None, kind: str) -> Path:
    """The file that a source reads. Raises SourceError where there is none."""
    file = Path(path or "")
    if not path or not file.is_file():
        raise SourceError(path or "source.path", f"there is no such file to read {kind} from.")
    return file


def encode_labels(
    names: Sequence[str], classes: Sequence[str] | None, wrong: Callable[[int, str], SourceError]
) -> tuple[npt.NDArray[np.int64], list[str]]:
    """Class index of each label, int64 (n,), and the classes; "" and "-1" mean that a row has no label.

    Without `classes` those that occur are taken, numbers in order of number. `wrong(row, problem)` makes the error.
    """
    missing = ("", str(NO_LABEL))
    if classes is None:
        occurring = sorted({name for name in names if name not in missing})
        classes = sorted(occurring, key=int) if all(name.isdecimal() for name in occurring) else occurring
    index = {name: number for number, name in enumerate(classes)} | dict.fromkeys(missing, NO_LABEL)
    for row, name in enumerate(names):
        if name not in index:
            raise wrong(row, f"label '{name}' is none of the classes {listing(classes)} (source.classes).")
    return np.array([index[name] for name in names], np.int64), list(classes)


def row_keys(path: Path, num_rows: int, given: Sequence[str] | None) -> list[str]:
    """The stable keys of a file's rows: those given, or the file's name and the number of the row."""
    return list(given) if given is not None else [f"{path.name}#{row}" for row in range(num_rows)]
