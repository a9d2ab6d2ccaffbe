"""Tars as WebDataset has them: members of one sample stand together and share the name up to the first dot.

`cat/0012.jpg`, `cat/0012.cls`, `cat/0012.json` are one row with the key `cat/0012`. Ranks index the tars, which reads
headers only; members are read where they lie when their row group is written.
"""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np

from hpctool.data.manifest import Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.schema import Source
from hpctool.data.sources.base import Block, Piece, RowSource, file_piece, piece_file, pin_of_files, source_files
from hpctool.data.sources.images import SUFFIXES, ImageColumns
from hpctool.errors import ConfigError, SourceError, UnknownName
from hpctool.world import Array

#: extension → (offset, bytes) of each member of a sample
Sample = dict[str, tuple[int, int]]

_BLOCK_SAMPLES = 4096
_MOST_TEXT_BYTES = 1 << 20


class TarFiles(RowSource):
    """Column `image` from images, one named by its extension from .npy (numbers) and everything else (bytes)."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes
        self.images = ImageColumns(source)
        if source.key not in (None, "file"):
            raise ConfigError("source.key", f"'{source.key}': for tars it is 'file' (the tar's name, too) or null.")
        #: number and handle of the tar that is read
        self._open: tuple[int, int] | None = None

    def pin(self) -> str:
        """Names, sizes and times of the tars, after a look at the first sample."""
        paths = self._files()
        self.pieces()
        return pin_of_files(paths)

    def pieces(self) -> list[Piece]:
        paths = self._files()
        key, sample = next(_samples(paths[0]), ("", {}))
        if not sample:
            raise SourceError(paths[0], "it holds no sample.")
        extensions = self._chosen(paths[0], sample)
        with open(paths[0], "rb") as file:
            data = {extension: _bytes(file.fileno(), sample[extension]) for extension in extensions}
        self.shared = {"paths": [str(path) for path in paths], "extensions": extensions, "arrays": {}, "images": {}}
        pictures = [extension for extension in extensions if f".{extension}" in SUFFIXES]
        where = f"{paths[0]}: {key}"
        if pictures:
            self.shared["images"] = self.images.survey(["image"], lambda _: data[pictures[0]], where)
        for extension in extensions:
            if extension.split(".")[-1] == "npy":
                array = _array(data[extension], f"{where}.{extension}")
                self.shared["arrays"][extension] = [array.dtype.str, list(array.shape)]
        return [file_piece(path, number=number) for number, path in enumerate(paths)]

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path = piece_file(piece)
        with open(path, "rb") as file:
            waiting: list[tuple[str, Sample]] = []
            for key, sample in _samples(path):
                waiting.append((key, sample))
                if len(waiting) == _BLOCK_SAMPLES:
                    yield self._block(path, piece["number"], file, waiting)
                    waiting = []
            if waiting:
                yield self._block(path, piece["number"], file, waiting)

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        found = {}
        for extension in self.shared["extensions"]:
            name = self._column(extension)
            if extension in self.shared["arrays"]:
                dtype, shape = self.shared["arrays"][extension]
                found[name] = Column(name, np.dtype(dtype).newbyteorder("<"), tuple(shape))
            else:
                found[name] = Column(name, np.dtype(np.uint8), (), ragged=True)
        return self.images.schema(self.shared["images"], found)

    def features(self, columns: Mapping[str, Values], name_of: Callable[[int], str]) -> dict[str, Values]:
        numbers, at = (np.asarray(columns[name]) for name in ("tar", "at"))
        # In the order in which they lie, tar after tar.
        order = np.lexsort((at[:, 0, 0], numbers))
        found: dict[str, list[Any]] = {extension: [None] * len(at) for extension in self.shared["extensions"]}
        for row in order.tolist():
            file = self._tar(int(numbers[row]))
            for place, extension in enumerate(self.shared["extensions"]):
                data = _bytes(file, (int(at[row, place, 0]), int(at[row, place, 1])))
                found[extension][row] = self._parsed(extension, data, name_of, row)
        named = {
            self._column(extension): np.stack(rows) if extension in self.shared["arrays"] else Ragged.of(rows)
            for extension, rows in found.items()
        }
        return self.images.features(self.shared["images"], named, name_of)

    def _parsed(self, extension: str, data: bytes, name_of: Callable[[int], str], row: int) -> bytes | Array:
        if extension not in self.shared["arrays"]:
            return data
        where = f"{name_of(row)}.{extension}"
        array = _array(data, where)
        dtype, shape = self.shared["arrays"][extension]
        if (array.dtype.str, list(array.shape)) != (dtype, shape):
            raise SourceError(
                where, f"it is {array.dtype} {array.shape} where the first is {np.dtype(dtype)} {tuple(shape)}."
            )
        if not self.allow_nan and array.dtype.kind == "f" and not np.isfinite(array).all():
            raise SourceError(where, "it holds NaN or infinity; data.allow_nan=true takes such values as they are.")
        return array

    def _block(self, path: Path, number: int, file: BinaryIO, samples: list[tuple[str, Sample]]) -> Block:
        extensions = self.shared["extensions"]
        for key, sample in samples:
            if missing := [extension for extension in extensions if extension not in sample]:
                raise SourceError(path, f"sample '{key}' has no .{missing[0]}, as the first one has.")
        names = [key for key, _ in samples]

        def texts(field: str | None) -> list[str] | None:
            return [_text(path, file, key, sample, field) for key, sample in samples] if field else None

        splits = [self._folder(path)] * len(samples) if self.source.split == "folder" else texts(self.source.split)
        at = np.array([[sample[extension] for extension in extensions] for _, sample in samples], np.int64)
        ragged = [place for place, extension in enumerate(extensions) if extension not in self.shared["arrays"]]
        return Block(
            keys=[f"{path.name}/{key}" for key in names] if self.source.key == "file" else names,
            labels=texts(self.source.label),
            columns={"tar": np.full(len(samples), number), "at": at},
            groups=self._groups(path, names, texts),
            splits=splits,
            wrong=lambda row, problem: SourceError(path, f"sample '{names[row]}': {problem}"),
            ragged_bytes=int(at[:, ragged, 1].sum()),
        )

    def _groups(
        self, path: Path, names: list[str], texts: Callable[[str | None], list[str] | None]
    ) -> list[str] | None:
        wanted = self.source.group
        if wanted is None or "(" not in wanted:
            return texts(wanted)
        found = []
        for name in names:
            match = re.search(wanted, name)
            if match is None or not match.groups():
                raise SourceError(path, f"sample '{name}' does not match source.group='{wanted}'.")
            found.append(match[1])
        return found

    def _folder(self, path: Path) -> str:
        parts = path.relative_to(Path(self.source.path or "")).parts
        if len(parts) < 2:
            raise SourceError(path, "it lies in no folder that could say its split (source.split=folder).")
        return parts[0]

    def _chosen(self, path: Path, sample: Sample) -> list[str]:
        """The extensions that become columns. Raises UnknownName, SourceError."""
        fields = [
            f for f in (self.source.label, self.source.group, self.source.split) if f and "(" not in f and f != "folder"
        ]
        special = [field.split(":")[0] for field in fields]
        names = (
            self.source.columns if self.source.columns is not None else [e for e in sorted(sample) if e not in special]
        )
        for name in [*special, *names]:
            if name not in sample:
                raise UnknownName(f"member of samples in {path} called", name, sample, "See source.label and .columns.")
        if not names:
            raise SourceError(path, "its samples hold nothing but labels.")
        if len(pictures := [name for name in names if f".{name}" in SUFFIXES]) > 1:
            raise SourceError(
                path, f"a sample has several images ({', '.join(pictures)}); choose one with source.columns."
            )
        return list(names)

    def _column(self, extension: str) -> str:
        return "image" if f".{extension}" in SUFFIXES else extension.removesuffix(".npy").replace(".", "_")

    def _tar(self, number: int) -> int:
        if self._open is None or self._open[0] != number:
            if self._open is not None:
                os.close(self._open[1])
            self._open = number, os.open(self.shared["paths"][number], os.O_RDONLY | os.O_CLOEXEC)
        return self._open[1]

    def _files(self) -> list[Path]:
        return source_files(self.source.path, "tars", [".tar"])


def _samples(path: Path) -> Iterator[tuple[str, Sample]]:
    """Key and members of each sample. Raises SourceError on a hostile name and on a member that is out of place."""
    seen: set[str] = set()
    key, sample = "", Sample()
    for name, member in _members(path):
        folder, base = str(PurePosixPath(name).parent), PurePosixPath(name).name
        stem, dot, extension = base.partition(".")
        if not dot or not stem:
            continue  # no sample has such members: notes, and what some systems hide in tars
        here = stem if folder == "." else f"{folder}/{stem}"
        if here != key:
            if sample:
                yield key, sample
            if here in seen:
                raise SourceError(
                    path, f"member '{name}' is out of place: sample '{here}' ended before; sort the tar by name."
                )
            seen.add(here)
            key, sample = here, Sample()
        if extension.lower() in sample:
            raise SourceError(path, f"member '{name}' stands twice.")
        sample[extension.lower()] = (member.offset_data, member.size)
    if sample:
        yield key, sample


def _members(path: Path) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """The files in a tar with their names. Raises SourceError on names that lead out of it, and on what is no file."""
    size_bytes = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else a tar of a million members is held in memory
                name = member.name
                if name.startswith("/") or ".." in name.split("/") or "\0" in name or "\\" in name:
                    raise SourceError(path, f"member '{name}' has a name that leads out of the tar.")
                if member.isdir():
                    continue
                if not member.isreg() or member.sparse is not None:
                    raise SourceError(path, f"member '{name}' is no plain file but a link, a device or sparse.")
                if member.offset_data + member.size > size_bytes:
                    raise SourceError(path, f"it is cut off in member '{name}'.")
                yield name.removeprefix("./"), member
        with open(path, "rb") as file:
            file.seek(max(0, size_bytes - tarfile.BLOCKSIZE))
            if any(file.read()):
                raise SourceError(path, "it has no end; it was cut off, or is still being written.")
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise SourceError(
            path, f"it cannot be read as a tar ({error}); a compressed one must be unpacked first."
        ) from error


def _bytes(handle: int, place: tuple[int, int]) -> bytes:
    data = os.pread(handle, place[1], place[0])
    if len(data) != place[1]:
        raise SourceError("source", f"a tar was cut off or has a member of more than 2 GiB, at byte {place[0]:,}.")
    return data


def _text(path: Path, file: BinaryIO, key: str, sample: Sample, field: str) -> str:
    """The text of a small member (`cls`), or one value of a JSON one (`json:label`). SourceError."""
    extension, colon, name = field.partition(":")
    if extension not in sample:
        if not colon:
            return ""  # a sample without a label
        raise SourceError(path, f"sample '{key}' has no .{extension}.")
    if sample[extension][1] > _MOST_TEXT_BYTES:
        raise SourceError(
            path, f"sample '{key}': .{extension} has {sample[extension][1]:,} bytes, too many for a name."
        )
    try:
        text = _bytes(file.fileno(), sample[extension]).decode().strip()
        value = json.loads(text).get(name) if colon else text
    except (ValueError, AttributeError) as error:
        raise SourceError(path, f"sample '{key}': .{extension} cannot be read ({error}).") from error
    return "" if value is None else str(value)


def _array(data: bytes, where: str) -> Array:
    try:
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise SourceError(where, f"it cannot be read as .npy ({error}).") from error
