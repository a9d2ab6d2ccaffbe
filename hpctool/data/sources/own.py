"""A reader of the user's own, by `_target_`: an iterable of rows {"key": …, "label": …, column: array or number, …}.

`label` is a class's name or number, or None; a reader may have an attribute `classes`. The rows are held in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from omegaconf import DictConfig

from hpctool import config, files
from hpctool.data.manifest import Column
from hpctool.data.sources.table import Table, encode_labels
from hpctool.errors import SourceError, TargetError
from hpctool.world import Array

_SPECIAL = {"key", "label"}


def pin(cfg: DictConfig) -> str:
    """The reader's arguments: what it will yield cannot be known before it runs."""
    config.check_target("source", cfg)
    return f"arguments:{files.sha256_bytes(files.canonical_json(config.to_plain(cfg)))}"


def load(cfg: DictConfig) -> Table:
    """One column for each further entry of the rows; every row has the same, with the same shape and dtype."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    name = str(cfg["_target_"])
    try:
        reader = instantiate(cfg)
    except InstantiationException as error:
        raise TargetError("source", name, f"it could not be made: {error}") from error
    if not isinstance(reader, Iterable):
        raise SourceError(name, f"it is no iterable of rows but {type(reader).__name__}.")
    rows = [_row(name, number, row) for number, row in enumerate(reader)]
    if not rows:
        raise SourceError(name, "it yields no rows.")
    features = {column: _stacked(name, column, rows) for column in rows[0] if column not in _SPECIAL}
    labels, classes = None, list(getattr(reader, "classes", None) or [])
    if "label" in rows[0]:
        found = ["" if row["label"] is None else str(row["label"]) for row in rows]
        labels, classes = encode_labels(
            found, classes or None, lambda row, problem: SourceError(name, f"row {row}: {problem}")
        )
    return Table(
        keys=[str(row["key"]) for row in rows],
        columns={column: Column(column, array.dtype, array.shape[1:]) for column, array in features.items()},
        labels=labels,
        classes=classes,
        read=lambda chosen: {column: array[chosen] for column, array in features.items()},
        notes=["What a reader of your own yields cannot be pinned: when its data change, say code=rerun."],
    )


def _row(name: str, number: int, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, Mapping) or "key" not in row or not row.keys() - _SPECIAL:
        raise SourceError(name, f"row {number} is not a mapping with 'key' and at least one column.")
    return row


def _stacked(name: str, column: str, rows: list[Mapping[str, Any]]) -> Array:
    first = np.asarray(rows[0][column])
    values = []
    for number, row in enumerate(rows):
        if row.keys() != rows[0].keys():
            raise SourceError(name, f"row {number} has {sorted(row)} where row 0 has {sorted(rows[0])}.")
        value = np.asarray(row[column])
        if (value.shape, value.dtype) != (first.shape, first.dtype):
            problem = f"column '{column}' of row {number} is {value.dtype} {value.shape}"
            raise SourceError(name, f"{problem} where row 0 has {first.dtype} {first.shape}.")
        values.append(value)
    return np.stack(values)
