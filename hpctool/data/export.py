"""Export: a version as others know it. One HDF5 or npz file, a parquet file, WebDataset tars, or a folder of images.

Row group by row group, so memory stays that of one. The name appears when everything is there, and nothing is written
over. uid and split come along as columns of text; the label as the class's index, or its name where a format has one.
"""

from __future__ import annotations

import contextlib
import shutil
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool import files
from hpctool.data.manifest import LABEL, UID, Column
from hpctool.data.objects import offsets_of, read_column
from hpctool.data.ragged import Ragged, Values, take
from hpctool.data.usage import held
from hpctool.data.version import Version
from hpctool.errors import InputError, UnknownName

SPLIT = "split"
_ADDED = (UID, SPLIT)
_MOST_TEXTS = 4000  # in an attribute of HDF5: 64 KiB, of which each takes 16 bytes


@dataclass(frozen=True)
class Block:
    """Consecutive chosen rows of one row group: column → values, their uids (32 hex digits) and splits."""

    columns: dict[str, Values]
    uids: list[str]
    splits: list[str]

    def __len__(self) -> int:
        return len(self.uids)


@dataclass(frozen=True)
class Job:
    """What is exported: some columns of the rows of some splits, and what it says of itself."""

    version: Version
    columns: dict[str, Column]
    splits: list[str]

    @property
    def num_rows(self) -> int:
        return sum(self.version.splits[split] for split in self.splits)

    @property
    def about(self) -> dict[str, Any]:
        """Where it comes from, for the file itself."""
        return {
            "dataset": self.version.name,
            "revision": self.version.revision,
            "commit": self.version.commit,
            "splits": self.splits,
            "classes": self.version.classes,
        }

    def blocks(self, columns: Sequence[str] | None = None) -> Iterator[Block]:
        """The chosen rows in order of row, a row group at a time. Raises CorruptError."""
        version, store = self.version, self.version.store
        names = list(self.columns) if columns is None else list(columns)
        split_of_row = np.array(version.split_of_rows(), object)
        chosen, first = np.isin(split_of_row, self.splits), 0
        for group in version.contents.row_groups:
            stop = first + group.num_rows
            rows = np.flatnonzero(chosen[first:stop])
            if rows.size:
                uids = store.get(group.holder(UID), UID)[rows]
                yield Block(
                    {name: take(read_column(store.layout, group.holder(name), name), rows) for name in names},
                    [uid.tobytes().hex() for uid in uids],
                    [str(split) for split in split_of_row[first:stop][rows]],
                )
            first = stop


def export(version: Version, path: Path, kind: str, *, splits: Sequence[str] = (), columns: Sequence[str] = ()) -> int:
    """Write a version to a file or folder that is not there yet; the number of rows.

    Raises InputError where something is there or the format cannot hold it, UnknownName, CorruptError, OSError; nothing
    is left behind then.
    """
    if kind not in FORMATS:
        raise UnknownName("format of export", kind, FORMATS)
    if path.exists() or path.is_symlink():
        raise InputError(f"{path} is there already, and an export writes over nothing; choose another name.")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be made: there is no folder {path.parent}.")
    job = _job(version, splits, columns)
    temporary = path.parent / files.temporary_name(".export")
    try:
        with held(version, "export", path):
            FORMATS[kind](job, temporary)
        if path.exists():
            raise InputError(f"{path} is there since a moment ago, and an export writes over nothing.")
        temporary.rename(path)
    finally:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            shutil.rmtree(temporary) if temporary.is_dir() else temporary.unlink(missing_ok=True)
    files.fsync_dir(path.parent)
    return job.num_rows


def _job(version: Version, splits: Sequence[str], columns: Sequence[str]) -> Job:
    for split in splits:
        if split not in version.splits:
            raise UnknownName(f"split of {version.ref} called", split, version.splits)
    for column in columns:
        if column not in version.columns:
            raise UnknownName(f"column of {version.ref} called", column, version.columns)
    chosen = {name: column for name, column in version.columns.items() if not columns or name in columns}
    if clash := [name for name in _ADDED if name in chosen]:
        raise InputError(f"Column '{clash[0]}' of {version.ref} has the name of what an export adds; leave it out.")
    return Job(version, chosen, list(splits) or list(version.splits))


def _hdf5(job: Job, path: Path) -> None:
    """A dataset for each column; of ragged ones also `<column>.offsets`; `label.classes` where these are many."""
    import h5py

    with h5py.File(path, "x") as file:
        file.attrs.update({key: value for key, value in job.about.items() if value and _fits(value)})
        made: dict[str, Any] = {}
        for name, column in job.columns.items():
            shape = (0, *column.shape) if column.ragged else (job.num_rows, *column.shape)
            made[name] = file.create_dataset(name, shape, column.dtype, maxshape=(None, *column.shape))
            if column.ragged:
                made[offsets_of(name)] = file.create_dataset(offsets_of(name), (job.num_rows + 1,), np.int64)
        for name, length in ((UID, 32), (SPLIT, max(map(len, job.splits)))):
            made[name] = file.create_dataset(name, (job.num_rows,), f"S{length}")
        if LABEL in made and _fits(job.version.classes):
            made[LABEL].attrs["classes"] = job.version.classes
        elif LABEL in made:
            file.create_dataset(f"{LABEL}.classes", data=job.version.classes, dtype=h5py.string_dtype())
        row = 0
        for block in job.blocks():
            stop = row + len(block)
            for name, values in block.columns.items():
                if isinstance(values, Ragged):
                    start = made[name].shape[0]
                    made[name].resize(start + len(values.values), axis=0)
                    made[name][start:] = values.values
                    made[offsets_of(name)][row + 1 : stop + 1] = start + values.offsets[1:]
                else:
                    made[name][row:stop] = values
            made[UID][row:stop] = [uid.encode() for uid in block.uids]
            made[SPLIT][row:stop] = [split.encode() for split in block.splits]
            row = stop


def _fits(value: str | list[str]) -> bool:
    """Whether an attribute of HDF5 has room for it."""
    return isinstance(value, str) or len(value) <= _MOST_TEXTS


def _npz(job: Job, path: Path) -> None:
    """An array for each column, read back by `np.load`; of ragged ones also `<column>.offsets`."""
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, column in job.columns.items():
            lengths = [b.columns[name].lengths for b in job.blocks([name])] if column.ragged else []  # type: ignore[union-attr]
            num_items = int(sum(length.sum() for length in lengths)) if column.ragged else job.num_rows
            parts = (_items(block.columns[name]) for block in job.blocks([name]))
            _npy(archive, name, column.dtype, (num_items, *column.shape), parts)
            if column.ragged:
                offsets = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
                _npy(archive, offsets_of(name), offsets.dtype, offsets.shape, [offsets])
        for name, attribute in ((UID, "uids"), (SPLIT, "splits")):
            width = 32 if name == UID else max(map(len, job.splits))
            dtype = np.dtype(f"U{width}")
            parts = (np.array(getattr(block, attribute), dtype) for block in job.blocks([]))
            _npy(archive, name, dtype, (job.num_rows,), parts)
        if LABEL in job.columns:
            classes = np.array(job.version.classes, str)
            _npy(archive, "classes", classes.dtype, classes.shape, [classes])


def _items(values: Values) -> npt.NDArray[Any]:
    return values.values if isinstance(values, Ragged) else values


def _npy(archive: zipfile.ZipFile, name: str, dtype: np.dtype[Any], shape: tuple[int, ...], parts: Any) -> None:
    with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            file.write(np.ascontiguousarray(part, dtype).reshape(-1).view(np.uint8).data)


def _parquet(job: Job, path: Path) -> None:
    from hpctool.data.export_table import write_parquet

    write_parquet(job, path)


def _webdataset(job: Job, path: Path) -> None:
    from hpctool.data.export_files import write_tars

    write_tars(job, path)


def _imagefolder(job: Job, path: Path) -> None:
    from hpctool.data.export_files import write_images

    write_images(job, path)


#: What a version can be written as.
FORMATS: dict[str, Callable[[Job, Path], None]] = {
    "hdf5": _hdf5,
    "npz": _npz,
    "parquet": _parquet,
    "webdataset": _webdataset,
    "imagefolder": _imagefolder,
}
