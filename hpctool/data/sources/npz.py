"""Arrays of equal length in one .npz file. Grey images, uint8 (N, H, W), get their channel: (N, H, W, 1)."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from hpctool import files
from hpctool.data.manifest import Column
from hpctool.data.schema import Source
from hpctool.data.sources.table import EARLY_BYTES, Table, encode_labels, row_keys, source_file
from hpctool.errors import SourceError, UnknownName
from hpctool.world import Array


def pin(source: Source) -> str:
    """The checksum of the file, after a look at its names."""
    path = source_file(source.path, "arrays")
    with _opened(path) as archive:
        _feature_names(source, archive.files)
    if path.stat().st_size <= EARLY_BYTES:
        load(source)
    return f"sha256:{files.sha256_file(path)}"


def load(source: Source) -> Table:
    """Every array of numbers as a column; held in memory."""
    path = source_file(source.path, "arrays")
    with _opened(path) as archive:
        names = _feature_names(source, archive.files)
        arrays = {name: _array(path, archive, name) for name in names}
        labels = _array(path, archive, source.label) if source.label else None
        keys = _array(path, archive, source.key) if source.key else None
    special = {source.label: labels, source.key: keys}
    num_rows = _common_length(path, arrays | {str(n): array for n, array in special.items() if array is not None})
    features = {name: array[..., np.newaxis] if _is_grey(array) else array for name, array in arrays.items()}
    classes: list[str] = source.classes or []
    indices = None
    if labels is not None:
        indices, classes = encode_labels(
            _label_names(path, labels, source.classes),
            source.classes,
            lambda row, problem: _row_error(path, row, problem),
        )
    return Table(
        keys=row_keys(path, num_rows, None if keys is None else [str(key) for key in keys.tolist()]),
        columns={name: Column(name, array.dtype, array.shape[1:]) for name, array in features.items()},
        labels=indices,
        classes=classes,
        read=lambda rows: {name: array[rows] for name, array in features.items()},
    )


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    try:
        archive = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(path, f"it cannot be read as .npz ({error}).") from error
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise SourceError(path, "it holds one array (.npy), not several with names (.npz).")
    return archive


def _array(path: Path, archive: np.lib.npyio.NpzFile, name: str) -> Array:
    try:
        return np.asarray(archive[name])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(path, f"array '{name}' cannot be read ({error}).") from error


def _feature_names(source: Source, there: list[str]) -> list[str]:
    special = [name for name in (source.label, source.key) if name]
    names = source.columns if source.columns is not None else [n for n in there if n not in special]
    for name in [*special, *names]:
        if name not in there:
            raise UnknownName(f"array in {source.path} called", name, there, "See source.label, .key and .columns.")
    if not names:
        raise SourceError(str(source.path), "it holds no array of features.")
    return names


def _common_length(path: Path, arrays: dict[str, Array]) -> int:
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        found = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise SourceError(path, f"its arrays have different lengths: {found}. Choose with source.columns.")
    return next(iter(lengths.values()))


def _label_names(path: Path, labels: Array, classes: list[str] | None) -> list[str]:
    if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
        raise SourceError(path, f"labels are one integer or name for each row, not {labels.dtype} {labels.shape}.")
    if labels.dtype.kind == "S":
        labels = labels.astype(str)
    if classes is None or labels.dtype.kind == "U":
        return [str(label) for label in labels.tolist()]
    # Numbers under given names are indices.
    return [classes[label] if 0 <= label < len(classes) else str(label) for label in labels.tolist()]


def _row_error(path: Path, row: int, problem: str) -> SourceError:
    return SourceError(path, f"row {row}: {problem}")


def _is_grey(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3
