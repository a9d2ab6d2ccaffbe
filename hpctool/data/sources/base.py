"""RowSource: what brings rows in. It names its pieces, which ranks share out, and gives the rows of a piece in blocks.

Blocks are small enough to hold in memory. What they carry may be the features, or what these are made from when their
row group is written: the path of an image instead of its pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hpctool.data.manifest import CONTENT, GROUP, LABEL, MISSING, NO_LABEL, UID, Column
from hpctool.data.ragged import Values, not_finite
from hpctool.errors import SourceError, listing

#: Sources up to this size are read on the login node already, so that a bad cell is found before the queue.
EARLY_BYTES = 16 << 20
#: What a block holds at most, in bytes and rows, where a source can choose.
BLOCK_BYTES = 32 << 20
BLOCK_ROWS = 65536

#: One share of a source's rows, as JSON: `name` is what people call it; a file's `size_bytes` and `mtime_ns` say
#: whether it is still the same.
Piece = dict[str, Any]


@dataclass
class Block:
    """Consecutive rows of a piece, as their source has them."""

    #: what names each row for ever
    keys: list[str]
    #: each row's class by name, "" or "-1" for none; None where the source has no labels at all
    labels: list[str] | None
    columns: dict[str, Values]
    #: whose rows they are: rows of one group come into one split
    groups: list[str] | None = None
    #: the split that the source gives each row
    splits: list[str] | None = None
    #: makes the error that names a row of this block and what is wrong with it
    wrong: Callable[[int, str], SourceError] | None = None
    #: bytes that the ragged features of these rows will have, where `columns` does not hold them yet
    ragged_bytes: int | None = None

    def error(self, row: int, problem: str) -> SourceError:
        """What is wrong with a row, said with where it stands."""
        return self.wrong(row, problem) if self.wrong else SourceError("source", f"row '{self.keys[row]}': {problem}")


class RowSource:
    """A source, as each kind of it fills it in. Only rank 0 calls `pieces`; `shared` is what the others get of it."""

    def __init__(self) -> None:
        #: what rank 0 found out and all ranks need, as JSON
        self.shared: dict[str, Any] = {}
        #: what the user should hear
        self.notes: list[str] = []
        #: the classes in the order of their index; None takes those that occur
        self.classes: list[str] | None = None
        #: whether numbers may be NaN or infinite
        self.allow_nan = False

    def pin(self) -> str:
        """Check that the source is there and name its content in few words. SourceError. Imports no torch."""
        raise NotImplementedError

    def pieces(self) -> list[Piece]:
        """The pieces in order. SourceError."""
        raise NotImplementedError

    def blocks(self, piece: Piece) -> Iterator[Block]:
        """The rows of a piece in order, the same whoever asks. SourceError with the file, line or row."""
        raise NotImplementedError

    def schema(self, columns: dict[str, Column]) -> dict[str, Column]:
        """The features, from what the columns of blocks are."""
        return columns

    def features(self, columns: Mapping[str, Values], name_of: Callable[[int], str]) -> dict[str, Values]:
        """The features of some rows, from their columns in blocks; `name_of` gives a row's key. SourceError."""
        return dict(columns)


def rehearse(source: RowSource) -> None:
    """Read everything once and keep nothing, to find on the login node what is wrong. SourceError."""
    num_rows, pieces = 0, source.pieces()
    for piece in pieces:
        for block in source.blocks(piece):
            check_names(block.columns)
            check_block(source, block)
            num_rows += len(block.keys)
    if not num_rows:
        raise SourceError(pieces[0]["name"] if pieces else "source", "it has no rows.")


def check_names(features: Iterable[str]) -> None:
    """Raises SourceError on a feature with a name that is ours."""
    for name in features:
        if name in (LABEL, UID, CONTENT, GROUP):
            raise SourceError("source", f"a feature cannot be called '{name}'; that column is hpctool's own.")
        if name.endswith((".offsets", ".chunks")):
            raise SourceError("source", f"a feature cannot be called '{name}'; hpctool keeps where rows lie there.")


def check_block(source: RowSource, block: Block) -> None:
    """Raises SourceError on a label that is none of the classes and on a number that is not finite."""
    if (classes := source.classes) is not None and block.labels is not None:
        known = {*classes, *MISSING}
        for row, label in enumerate(block.labels):
            if label not in known:
                raise block.error(row, f"label '{label}' is none of the classes {listing(classes)} (source.classes).")
    for name, values in block.columns.items() if not source.allow_nan else ():
        place = not_finite(values)
        if place is not None:
            raise block.error(
                place, f"column '{name}' holds NaN or infinity; data.allow_nan=true takes such values as they are."
            )


def class_order(names: Sequence[str]) -> list[str]:
    """The classes that occur, in the order of their index: numbers by number, names by name."""
    occurring = sorted(set(names) - set(MISSING))
    return sorted(occurring, key=int) if all(name.isdecimal() for name in occurring) else occurring


def class_codes(names: Sequence[str], classes: Sequence[str]) -> npt.NDArray[np.int64]:
    """The index of each class in `classes`, -1 for one that means "none"."""
    index = {name: number for number, name in enumerate(classes)} | dict.fromkeys(MISSING, NO_LABEL)
    return np.array([index[name] for name in names], np.int64)


def source_files(path: str | None, kind: str, suffixes: Sequence[str]) -> list[Path]:
    """The file, the matches of a pattern (`shards/*.tar`), or the files of a folder, in order. SourceError."""
    where = Path(path or "")
    if path and where.is_file():
        return [where]
    if path and where.is_dir():
        found = sorted(p for p in where.rglob("*") if p.name.endswith(tuple(suffixes)) and p.is_file())
        if not found:
            raise SourceError(where, f"the folder holds no {' or '.join(suffixes)}.")
        return [p for p in found if not any(part.startswith(".") for part in p.relative_to(where).parts)]
    if path and any(sign in path for sign in "*?["):
        anchor = Path(where.anchor or ".")
        found = sorted(p for p in anchor.glob(str(where.relative_to(where.anchor))) if p.is_file())
        if found:
            return found
    raise SourceError(path or "source.path", f"there is no such file to read {kind} from.")


def file_piece(path: Path, **more: Any) -> Piece:
    """A piece that is a file or a part of it."""
    found = path.stat()
    return {"name": str(path), "size_bytes": found.st_size, "mtime_ns": found.st_mtime_ns, **more}


def piece_file(piece: Piece) -> Path:
    """The file of a piece. Raises SourceError where this machine does not see what rank 0 saw."""
    path = Path(piece["name"])
    try:
        found = path.stat().st_size
    except OSError as error:
        raise SourceError(path, f"it cannot be read here ({error.strerror}); is it there on all nodes?") from error
    if found != piece["size_bytes"]:
        raise SourceError(path, f"it has {found} bytes here and {piece['size_bytes']} for rank 0; is it being written?")
    return path


def key_of_row(path: Path, row: int) -> str:
    """What names a row that has no key: the file's name and the number of the row in it."""
    return f"{path.name}#{row}"


def pin_of_files(paths: Sequence[Path]) -> str:
    """What names the content of files: the checksum of one, names, sizes and times of many or of big ones."""
    from hpctool import files

    if len(paths) == 1 and paths[0].stat().st_size <= EARLY_BYTES:
        return f"sha256:{files.sha256_file(paths[0])}"
    listed = [[path.name, (found := path.stat()).st_size, found.st_mtime_ns] for path in paths]
    return f"names-sizes-times:{files.sha256_bytes(files.canonical_json(listed))}"
