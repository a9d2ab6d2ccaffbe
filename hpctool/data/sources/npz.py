"""Arrays of equal length: in .npz files, or in a folder with one .npy for each array.

Grey images, uint8 (N, H, W), get their channel: (N, H, W, 1). Arrays that are not compressed are read where they lie;
compressed ones in sequence, by one rank, a block at a time.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO

import numpy as np

from hpctool.data.schema import Source
from hpctool.data.sources.arrays import array_block, block_rows, choose_arrays, common_length
from hpctool.data.sources.base import Block, Piece, RowSource, file_piece, piece_file, pin_of_files, source_files
from hpctool.errors import SourceError
from hpctool.world import Array

#: gives the next n rows of an array
Next = Callable[[int], Array]

_WRONG = (OSError, ValueError, EOFError, zipfile.BadZipFile, KeyError, struct.error)


class Arrays(RowSource):
    """Every array of numbers as a column."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes

    def pin(self) -> str:
        """The checksum of the files, after a look at their arrays."""
        paths = [path for files in self._bundles() for path in files.values()]
        for bundle in self._bundles():
            self._headers(bundle)
        return pin_of_files(sorted(set(paths)))

    def pieces(self) -> list[Piece]:
        found = []
        for bundle in self._bundles():
            headers = self._headers(bundle)
            num_rows = common_length(_where(bundle), {name: shape for name, (shape, _, _) in headers.items()})
            per_row = sum(dtype.itemsize * int(np.prod(shape[1:])) for shape, dtype, _ in headers.values())
            # Only what is not compressed can be begun in the middle.
            step = block_rows(per_row) * 8 if all(direct for _, _, direct in headers.values()) else max(num_rows, 1)
            for start in range(0, num_rows, step):
                rows = {"start": start, "stop": min(start + step, num_rows), "step": block_rows(per_row)}
                arrays = {name: file_piece(path) for name, path in bundle.items() if name in headers}
                found.append({"name": str(_where(bundle)), "arrays": arrays, **rows})
        return found

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path = Path(piece["name"])
        with ExitStack() as stack:
            readers = {
                name: _reader(stack, piece_file(file), name, piece["start"]) for name, file in piece["arrays"].items()
            }
            for start in range(piece["start"], piece["stop"], piece["step"]):
                count = min(piece["step"], piece["stop"] - start)
                arrays = {name: _read(path, name, read, count) for name, read in readers.items()}
                features = {n: a[..., np.newaxis] if _is_grey(a) else a for n, a in arrays.items()}
                yield array_block(self.source, path, start, features)

    def _bundles(self) -> list[dict[str, Path]]:
        """Array → file, for each set of arrays that belong together."""
        root = Path(self.source.path or "")
        if self.source.path and root.is_dir() and (arrays := sorted(root.glob("*.npy"))):
            return [{path.stem: path for path in arrays}]
        return [_names(path) for path in source_files(self.source.path, "arrays", [".npz"])]

    def _headers(self, bundle: dict[str, Path]) -> dict[str, tuple[tuple[int, ...], np.dtype, bool]]:
        where = _where(bundle)
        chosen = choose_arrays(self.source, where, list(bundle))
        headers = {}
        for name in chosen:
            with ExitStack() as stack:
                try:
                    headers[name] = _opened(stack, bundle[name], name)[1:]
                except _WRONG as error:
                    raise SourceError(where, f"array '{name}' cannot be read ({error}).") from error
        return headers


def _where(bundle: dict[str, Path]) -> Path:
    path = next(iter(bundle.values()))
    return path if path.suffix == ".npz" else path.parent


def _names(path: Path) -> dict[str, Path]:
    if path.suffix == ".npy":
        raise SourceError(
            path, "it holds one array (.npy), not several with names (.npz); give the folder of .npy files."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): path for name in archive.namelist()}
    except _WRONG as error:
        raise SourceError(path, f"it cannot be read as .npz ({error}).") from error


def _opened(stack: ExitStack, path: Path, name: str) -> tuple[IO[bytes], tuple[int, ...], np.dtype, bool]:
    """An array's bytes from its first value on, its shape and dtype, and whether one may begin in the middle."""
    if path.suffix == ".npy":
        file: IO[bytes] = stack.enter_context(path.open("rb"))
        direct = True
    else:
        archive = stack.enter_context(zipfile.ZipFile(path))
        info = archive.getinfo(f"{name}.npy")
        file = stack.enter_context(archive.open(info))
        direct = info.compress_type == zipfile.ZIP_STORED
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = read(file)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are never loaded")
    if by_columns and len(shape) > 1:
        raise ValueError("it is stored by columns (Fortran order); store np.ascontiguousarray of it")
    return file, shape, dtype, direct


def _reader(stack: ExitStack, path: Path, name: str, start: int) -> Next:
    file, shape, dtype, _ = _opened(stack, path, name)
    row_bytes = dtype.itemsize * int(np.prod(shape[1:]))
    if start:
        file.seek(start * row_bytes, 1)

    def read(count: int) -> Array:
        data = file.read(count * row_bytes)
        return np.frombuffer(data, dtype).reshape(count, *shape[1:])

    return read


def _read(path: Path, name: str, read: Next, count: int) -> Array:
    try:
        return read(count)
    except _WRONG as error:
        raise SourceError(path, f"array '{name}' cannot be read ({error}).") from error


def _is_grey(array: Array) -> bool:
    return array.dtype == np.uint8 and array.ndim == 3
