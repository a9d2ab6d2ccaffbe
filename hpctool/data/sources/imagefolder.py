"""A folder of images, one folder per class: `<class>/…/<image>`, or `<split>/<class>/…` with source.split=folder."""

from __future__ import annotations

import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from hpctool import files
from hpctool.data.manifest import UNLABELLED, Column
from hpctool.data.ragged import Ragged, Values
from hpctool.data.schema import Source
from hpctool.data.sources.base import Block, Piece, RowSource
from hpctool.data.sources.images import SUFFIXES, Target, check, decode, image_column, keeps_encoded, make_target
from hpctool.errors import ConfigError, SourceError

#: how long the login node looks for images that cannot be read; the job finds the others
_LOOK_S = 2.0
_PIECE_IMAGES = 4096


class ImageFolder(RowSource):
    """Column `image`, decoded or read when its row group is written; blocks carry paths only."""

    def __init__(self, source: Source) -> None:
        super().__init__()
        self.source = source
        self.classes = source.classes
        self.root = Path(source.path or "")
        self.encoded = keeps_encoded(source)
        self._group = _pattern(source.group)
        if source.split not in (None, "folder"):
            raise ConfigError("source.split", f"'{source.split}': for a folder of images it is 'folder' or null.")

    def pin(self) -> str:
        """A digest of the images' names and sizes, after a look at as many of them as two seconds allow."""
        listed, _ = self._found()
        target, end = self._target(listed[0][0]), time.monotonic() + _LOOK_S
        for path, _ in itertools.takewhile(lambda _: time.monotonic() < end, listed):
            where = self.root / path
            if target is None:
                check(where.read_bytes(), str(where))
            else:
                decode(where, target, str(where))
        return f"names-and-sizes:{files.sha256_bytes(files.canonical_json(listed))}"

    def pieces(self) -> list[Piece]:
        listed, others = self._found()
        if others:
            self.notes = [f"{others} files in {self.root} are no images and were left out."]
        target = self._target(listed[0][0])
        self.shared = {"target": target.to_json() if target else None}
        cuts = range(0, len(listed), _PIECE_IMAGES)
        return [{"name": listed[start][0], "images": listed[start : start + _PIECE_IMAGES]} for start in cuts]

    def blocks(self, piece: Piece) -> Iterator[Block]:
        paths = [path for path, _ in piece["images"]]
        parts = [path.split("/") for path in paths]
        skip = 1 if self.source.split == "folder" else 0
        yield Block(
            keys=paths,
            labels=[part[skip] if len(part) > skip + 1 and part[skip] != UNLABELLED else "" for part in parts],
            columns={"path": Ragged.of([os.fsencode(path) for path in paths])},
            groups=[self._group_of(path) for path in paths] if self._group else None,
            splits=[part[0] if len(part) > 1 else "" for part in parts] if skip else None,
            wrong=lambda row, problem: SourceError(self.root / paths[row], problem),
            ragged_bytes=sum(size for _, size in piece["images"]),
        )

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        return {"image": image_column("image", self._shared_target())}

    def features(self, columns: Mapping[str, Values], name_of: Callable[[int], str]) -> dict[str, Values]:
        found, target = columns["path"], self._shared_target()
        assert isinstance(found, Ragged), "paths are written as ragged bytes"
        paths = [self.root / os.fsdecode(found[row].tobytes()) for row in range(len(found))]
        if target is None:
            return {"image": Ragged.of([_checked(path) for path in paths])}
        pixels = np.empty((len(paths), target.height, target.width, target.channels), np.uint8)
        for row, path in enumerate(paths):
            pixels[row] = decode(path, target, str(path))
        return {"image": pixels}

    def _found(self) -> tuple[list[tuple[str, int]], int]:
        """The images' paths below the folder with their sizes, in order, and how many other files there are."""
        if not self.source.path or not self.root.is_dir():
            raise SourceError(self.source.path or "source.path", "there is no such folder to read images from.")
        found, others = [], 0
        for folder, subfolders, names in os.walk(self.root):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                    found.append((path.relative_to(self.root).as_posix(), path.stat().st_size))
                else:
                    others += 1
        if not found:
            raise SourceError(self.root, f"it holds no image ({', '.join(sorted(SUFFIXES))}).")
        return sorted(found), others

    def _target(self, first: str) -> Target | None:
        where = self.root / first
        return None if self.encoded else make_target(self.source, where, str(where))

    def _shared_target(self) -> Target | None:
        return Target(**self.shared["target"]) if self.shared["target"] else None

    def _group_of(self, path: str) -> str:
        found = self._group.search(path) if self._group else None
        if found is None:
            raise SourceError(self.root / path, f"its path does not match source.group='{self.source.group}'.")
        return found[1]


def _checked(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise SourceError(path, f"it cannot be read as an image ({error.strerror}).") from error
    check(data, str(path))
    return data


def _pattern(text: str | None) -> re.Pattern[str] | None:
    if text is None:
        return None
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise ConfigError("source.group", f"'{text}' is no regular expression ({error}).") from error
    if pattern.groups != 1:
        raise ConfigError(
            "source.group",
            f"'{text}' must have one pair of parentheses, around the part of the path that names whose it is.",
        )
    return pattern
