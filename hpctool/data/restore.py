"""Restore: what is damaged or was purged comes back from a second copy of the dataset, if that has it whole.

Files that are named by their checksum are taken from anywhere, because nothing else can have that checksum; they are
read in pieces and checked while they are copied. Entries of branches and tags carry a checksum of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from hpctool import files
from hpctool.data.layout import ADDRESSED, Layout
from hpctool.data.reach import Damage
from hpctool.data.store import Store, commit_in, short
from hpctool.data.verify import verify
from hpctool.errors import HpctoolError, InputError
from hpctool.log import decode_entry

_PIECE_BYTES = 1 << 22
_LARGEST_ENTRY_BYTES = 1 << 20


@dataclass
class Restored:
    """What came back, and what is still damaged, with why."""

    mended: list[str] = field(default_factory=list)
    left: list[tuple[Damage, str]] = field(default_factory=list)


def second_root(source: Path, name: str) -> Layout:
    """The copy of a dataset: `source` is its folder, or the folder that holds it by its name. Raises InputError."""
    for root in (source / name, source):
        if any((root / kind).is_dir() for kind in ADDRESSED):
            return Layout(root)
    raise InputError(f"There is no copy of dataset '{name}' in {source}: no {' and no '.join(ADDRESSED)} in it.")


def restore(store: Store, source: Path) -> Restored:
    """Bring back what `verify --deep` misses. What came back may show what else is missing, so it looks again.

    Raises InputError where there is no copy, OSError where the dataset cannot be written.
    """
    other, done = second_root(source, store.name), Restored()
    if other.root.samefile(store.root):
        raise InputError(f"{source} is the dataset itself; name a second copy of it.")
    while True:
        tried: list[tuple[Damage, str]] = []
        before = len(done.mended)
        for damage in verify(store, deep=True).damaged:
            why = _mend(store, other, Path(damage.path)) if damage.path else damage.problem
            if why:
                tried.append((damage, why))
            else:
                done.mended.append(damage.path)
        if len(done.mended) == before:
            done.left = tried
            return done


def _mend(store: Store, other: Layout, path: Path) -> str:
    """Put a file of the other copy in the place of a damaged one; why it could not be, empty if it was."""
    relative = path.relative_to(store.root)
    copy = other.root / relative
    try:
        with open(os.open(copy, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            # A pipe or device would never end.
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                return f"{copy} is no file"
            if relative.parts[0] in ADDRESSED:
                return _copy_addressed(store.layout, _pieces(file), path, copy)
            if relative.parts[0] == "refs":
                return _copy_entry(store, other, file.read(_LARGEST_ENTRY_BYTES), path)
            return "no copy can mend it"
    except FileNotFoundError:
        return f"{other.root} does not have it"
    except HpctoolError as error:
        return str(error)


def _pieces(file: BinaryIO) -> Iterator[bytes]:
    while piece := file.read(_PIECE_BYTES):
        yield piece


def _copy_addressed(layout: Layout, pieces: Iterator[bytes], path: Path, copy: Path) -> str:
    digest = hashlib.sha256()
    layout.make(layout.tmp)
    layout.make(path.parent)
    temporary = layout.tmp / files.temporary_name("restored")
    try:
        with open(temporary, "xb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            if digest.hexdigest() != path.stem:
                return f"{copy} is damaged, too: its bytes do not fit its checksum"
            os.fchmod(file.fileno(), 0o444)
            file.flush()
            os.fsync(file.fileno())
        layout.rename(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    files.fsync_dir(path.parent)
    return ""


def _copy_entry(store: Store, other: Layout, data: bytes, path: Path) -> str:
    """An entry of a branch, or a tag: it never changes, so the whole one stands where the broken one stood.

    A copy that has gone another way since is refused: a branch's commits descend from each other.
    """
    copy = other.root / path.relative_to(store.root)
    body = decode_entry(copy, data)
    commit_id = commit_in(copy, body)
    if path.parent.parent == store.layout.heads:
        before = "" if body.get("anew") else _neighbour(path, int(path.name) - 1, unless="deleted")
        after = _neighbour(path, int(path.name) + 1, unless="anew")
        line = [one for one in (before, commit_id, after) if one]
        if not all(_descends(store, other, newer, older) for older, newer in itertools.pairwise(line)):
            return f"{copy} names {short(commit_id)}, which is not of this branch"
    store.layout.write(path, data)
    return ""


def _neighbour(path: Path, number: int, unless: str) -> str:
    """The commit of another entry of the same branch, empty where that is not there, broken, or `unless`."""
    entry = path.with_name(f"{number:010d}")
    with contextlib.suppress(OSError, HpctoolError):
        body = decode_entry(entry, entry.read_bytes())
        return "" if body.get(unless) else commit_in(entry, body)
    return ""


def _descends(store: Store, other: Layout, newer: str, older: str) -> bool:
    """Whether a commit is another or descends from it, as either copy says."""
    both = (store, Store(other.root, store.primitive))
    waiting, seen = [newer], {newer}
    while waiting:
        commit_id = waiting.pop()
        if commit_id == older:
            return True
        for copy in both:
            with contextlib.suppress(HpctoolError):
                fresh = set(copy.commit_of(commit_id).parents) - seen
                seen |= fresh
                waiting += fresh
                break
    return False
