"""HDF5 files by dataset path: each dataset of equal length is a column, `images/left` becomes `images.left`.

A file from outside is hostile until shown otherwise. External links, virtual datasets and external storage would read
other files of whoever prepares, so they are refused; soft links are followed by us, step by step. What a file declares
is held against its size before anything is allocated, and another process has read what may be a trap (hdf5try.py).
"""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.schema import Source
from hpctool.data.sources.arrays import array_block, block_rows, common_length, decoded, special_names
from hpctool.data.sources.base import Block, Piece, RowSource, file_piece, piece_file, pin_of_files, source_files
from hpctool.data.sources.hdf5try import try_apart
from hpctool.data.sources.images import ImageColumns
from hpctool.errors import SourceError, UnknownName

_MOST_LINKS = 32
#: deflate packs no better than 1032 to 1
_MOST_PACKED = 1100
_MOST_ROW_BYTES = 1 << 30
_PIECE_BLOCKS = 8
_LIBRARY_BYTES = 512 << 20
_TRIED_ROWS = 4096


class Hdf5Files(RowSource):
    """A column for each dataset that source.columns names, or for all that are as long as the first."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes
        self.images = ImageColumns(source)

    def pin(self) -> str:
        """The checksum of the file, after a look at its datasets."""
        paths = self._files()
        try_apart(paths, self.source)
        for path in paths:
            with _opened(path) as file:
                self._datasets(path, file)
        return pin_of_files(paths)

    def try_to_read(self, path: Path) -> None:
        """Read what the HDF5 library may stumble over (hdf5try.py). Raises SourceError, UnknownName."""
        with _opened(path) as file:
            for name, dataset in self._datasets(path, file).items():
                num_rows, step = len(dataset), _TRIED_ROWS if dataset.dtype.kind == "O" else 1
                starts = range(0, num_rows, step if step > 1 else max(num_rows - 1, 1))
                for start in starts:
                    _read(path, name, dataset, start, min(start + step, num_rows))

    def pieces(self) -> list[Piece]:
        found: list[Piece] = []
        for path in self._files():
            with _opened(path) as file:
                datasets = self._datasets(path, file)
                self.shared.setdefault("paths", list(datasets))
                num_rows = common_length(path, {name: d.shape for name, d in datasets.items()})
                # Whole chunks: a chunk that two blocks share is unpacked twice.
                chunk = max((d.chunks[0] for d in datasets.values() if d.chunks), default=1)
                step = -(-block_rows(sum(_row_bytes(d) for d in datasets.values())) // chunk) * chunk
            for start in range(0, num_rows, step * _PIECE_BLOCKS):
                stop = min(start + step * _PIECE_BLOCKS, num_rows)
                found.append(file_piece(path, start=start, stop=stop, step=step))
        self.shared["images"] = self._survey(found) if self.source.image and found else {}
        return found

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path = piece_file(piece)
        with _opened(path) as file:
            datasets = {name: _dataset(path, file, name) for name in self.shared["paths"]}
            for start in range(piece["start"], piece["stop"], piece["step"]):
                stop = min(start + piece["step"], piece["stop"])
                arrays = {name: _read(path, name, d, start, stop) for name, d in datasets.items()}
                special = special_names(self.source)
                named = {name if name in special else column_name(name): a for name, a in arrays.items()}
                yield array_block(self.source, path, start, named)

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        return self.images.schema(self.shared["images"], columns)

    def features(self, columns: Mapping[str, Values], name_of: Callable[[int], str]) -> dict[str, Values]:
        return self.images.features(self.shared["images"], columns, name_of)

    def _files(self) -> list[Path]:
        return source_files(self.source.path, "datasets", [".h5", ".hdf5"])

    def _datasets(self, path: Path, file: Any) -> dict[str, Any]:
        """The chosen datasets by path. Raises SourceError, UnknownName."""
        special = special_names(self.source)
        if self.source.columns is not None:
            chosen = [*self.source.columns, *special]
            return {name: _dataset(path, file, name) for name in dict.fromkeys(chosen)}
        there = list(_walk(path, file))
        for name in special:
            if name not in there:
                raise UnknownName(f"dataset in {path} called", name, there, "See source.label, .key and .columns.")
        found = {name: _dataset(path, file, name) for name in there}
        found = {name: d for name, d in found.items() if d.shape} | {name: found[name] for name in special}
        if not found.keys() - set(special):
            raise SourceError(path, "it holds no dataset of features.")
        return found

    def _survey(self, pieces: list[Piece]) -> dict[str, Any]:
        self.shared["images"] = {}
        name = column_name(self.source.image or "")
        block = next(self.blocks(pieces[0]))
        encoded = block.columns.get(name)
        if not isinstance(encoded, Ragged):
            raise SourceError(
                pieces[0]["name"], f"'{self.source.image}' (source.image) is no dataset of encoded images."
            )
        return self.images.survey([name], lambda _: encoded[0].tobytes(), f"row '{block.keys[0]}'")


def column_name(path: str) -> str:
    """The column that a dataset becomes: `/images/left` is `images.left`."""
    return path.strip("/").replace("/", ".")


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import h5py

    try:
        # Locks are what fails on shared file systems, and nobody writes here.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        # What h5py makes of a damaged file is any of these.
        raise SourceError(path, f"it cannot be read as HDF5 ({error}).") from error


def _walk(path: Path, group: Any, prefix: str = "", depth: int = 0) -> Iterator[str]:
    """The paths of all datasets; links are not followed, so nothing is seen twice. SourceError."""
    import h5py

    if depth > _MOST_LINKS:
        raise SourceError(path, f"its groups lie more than {_MOST_LINKS} deep.")
    for name in group:
        link = group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(path, _refused(f"{prefix}{name}", f"a link into another file, '{link.filename}'"))
        if not isinstance(link, h5py.HardLink):
            continue
        # Groups that hold themselves are cut off by their depth.
        kind = group.get(name, getclass=True)
        if kind is h5py.Group:
            yield from _walk(path, group[name], f"{prefix}{name}/", depth + 1)
        elif kind is h5py.Dataset:
            yield f"{prefix}{name}"


def _dataset(path: Path, file: Any, name: str) -> Any:
    """A dataset that lies in this file as a whole. Raises SourceError, UnknownName."""
    import h5py

    found = _followed(path, file, name)
    if not isinstance(found, h5py.Dataset):
        raise SourceError(path, f"'{name}' is no dataset.")
    if found.is_virtual:
        raise SourceError(path, _refused(name, "a virtual dataset, made of other files"))
    if found.id.get_create_plist().get_external_count():
        raise SourceError(path, _refused(name, "a dataset whose values lie in other files"))
    size_bytes = path.stat().st_size
    if found.size is None or found.size * found.dtype.itemsize > _MOST_PACKED * size_bytes:
        raise SourceError(path, f"'{name}' declares {found.shape} of {found.dtype} in a file of {size_bytes:,} bytes.")
    if _row_bytes(found) > _MOST_ROW_BYTES:
        raise SourceError(path, f"a row of '{name}' has {_row_bytes(found):,} bytes; 1 GiB is the most.")
    return found


def _followed(path: Path, file: Any, name: str) -> Any:
    """What stands at a path, one step after the other, through groups and soft links of this file only."""
    import h5py

    waiting, here, done, links = name.strip("/").split("/"), file, "", 0
    while waiting:
        step = waiting.pop(0)
        link = here.get(step, getlink=True) if isinstance(here, h5py.Group) and step in here else None
        if isinstance(link, h5py.ExternalLink):
            raise SourceError(path, _refused(f"{done}{step}", f"a link into another file, '{link.filename}'"))
        if isinstance(link, h5py.SoftLink):
            if (links := links + 1) > _MOST_LINKS:
                raise SourceError(path, f"'{name}' leads through more than {_MOST_LINKS} links.")
            if link.path.startswith("/"):
                here, done = file, ""
            waiting = [part for part in link.path.split("/") if part not in ("", ".")] + waiting
            continue
        if link is None:
            raise UnknownName(f"dataset in {path} called", name, list(_walk(path, file)), "See source.columns.")
        here, done = here[step], f"{done}{step}/"
    return here


def _refused(name: str, what: str) -> str:
    return f"'{name}' is {what}. Such are refused: who made the file would choose what is read here."


@contextmanager
def _memory_for(size_bytes: int) -> Iterator[None]:
    """So much more than there is now, and some for the library.

    HDF5 asks for what a damaged list or chunk says of its length, 16 GB for four wrong bytes; this is refused then.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + size_bytes + _LIBRARY_BYTES
    if soft == resource.RLIM_INFINITY or most < soft:
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _row_bytes(dataset: Any) -> int:
    shape: tuple[int, ...] = dataset.shape
    return math.prod(shape[1:]) * int(dataset.dtype.itemsize)


def _read(path: Path, name: str, dataset: Any, start: int, stop: int) -> Values:
    import h5py

    text = h5py.check_string_dtype(dataset.dtype)
    inner = h5py.check_vlen_dtype(dataset.dtype)
    if dataset.dtype.kind not in "biufSO" or (dataset.dtype.kind == "O" and text is None and inner is None):
        raise SourceError(
            path, f"'{name}' is {dataset.dtype}, neither numbers nor text; choose others: source.columns."
        )
    with _memory_for(3 * (stop - start) * _row_bytes(dataset) + 3 * path.stat().st_size):
        values = dataset[start:stop]
    if text is not None and text.length is None:
        what = f"values of '{name}'"
        texts = [decoded(path, what, start + row, value) for row, value in enumerate(values.tolist())]
        return np.array(texts, np.str_)
    if inner is not None:
        if values.ndim != 1:
            raise SourceError(
                path, f"'{name}' has rows of several lists; one list of numbers for each row can be taken."
            )
        return Ragged.of(list(values), np.dtype(inner))
    return np.asarray(values)
