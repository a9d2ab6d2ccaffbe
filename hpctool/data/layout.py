"""Layout: the one owner of every path in a dataset, and the rules for the names that people give.

<datasets>/<name>/
  FORMAT                          version, hash, which create-if-absent primitive this file system has
  objects/ab/<sha256>.h5          immutable arrays, mode 0444 (objects.py)
  manifests/ab/<sha256>.json      the table of contents of a version (manifest.py)
  commits/ab/<sha256>.json        parents, manifest, message, author, time, operation (commit.py)
  refs/heads/<branch>/0000000012  a log; the highest number is the tip
  refs/tags/<tag>                 created if absent, never moved
  runs/<run>.<16 hex>.json        which run used which version, and in which order (usage.py)
  pins/<run>-<16 hex>             leases of runs and exports that are at it (usage.py)
  trash/<time>-<8 hex>/           what gc took out and will delete (gc.py)
  tmp/                            what a killed writer leaves behind; prepare-<run>/ is spool.py's
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from hpctool import files
from hpctool.errors import CorruptError, InputError

T = TypeVar("T")

#: The newest format of FORMAT, manifests and commits that this code reads, and the one that it writes; a manifest says
#: the lowest that can hold it. 2 came with ragged and compressed columns; nothing of 1 has changed its meaning.
FORMAT = 2

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_ID = re.compile(r"[0-9a-f]{64}")
_ADDRESSED_NAME = re.compile(r"[0-9a-f]{64}\.(h5|json)")
_LIKE_A_COMMIT = re.compile(r"[0-9a-f]{7,64}")

DEFAULT_BRANCH = "main"

#: Files younger than this are not made young again when they are used again.
YOUNG_S = 3600.0

_MOST_STALE = 10  # times in a row

#: The folders whose files are named by their checksum.
ADDRESSED = ("objects", "manifests", "commits")


@dataclass(frozen=True)
class Layout:
    """Where everything of one dataset lies; `root` is `<datasets>/<name>`."""

    root: Path

    @property
    def format_file(self) -> Path:
        return self.root / "FORMAT"

    @property
    def heads(self) -> Path:
        return self.root / "refs" / "heads"

    @property
    def tags(self) -> Path:
        return self.root / "refs" / "tags"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def runs(self) -> Path:
        return self.root / "runs"

    @property
    def pins(self) -> Path:
        return self.root / "pins"

    @property
    def trash(self) -> Path:
        return self.root / "trash"

    def object(self, object_id: str) -> Path:
        return self._addressed("objects", object_id, ".h5")

    def manifest(self, manifest_id: str) -> Path:
        return self._addressed("manifests", manifest_id, ".json")

    def commit(self, commit_id: str) -> Path:
        return self._addressed("commits", commit_id, ".json")

    def commits_like(self, prefix: str) -> list[str]:
        """The ids of the commits that begin with two or more hex digits, in order."""
        folder = self.root / "commits" / prefix[:2]
        return sorted(path.stem for path in folder.glob(f"{prefix}*.json"))

    def addressed(self) -> Iterator[Path]:
        """Every file that is named by its checksum: objects, manifests and commits, in no order."""
        for kind in ADDRESSED:
            for folder in _folders(self.root / kind):
                yield from (Path(item.path) for item in _scan(folder) if _ADDRESSED_NAME.fullmatch(item.name))

    def leftovers(self) -> Iterator[Path]:
        """What writers that were killed may have left behind: in tmp/, and hidden beside what they wrote."""
        yield from (Path(item.path) for item in _scan(self.tmp))
        folders = [self.root, *(f for kind in ADDRESSED for f in [self.root / kind, *_folders(self.root / kind)])]
        for folder in [*folders, self.runs, self.pins]:
            items = _scan(folder)
            # Where a name is a symbolic link, its content has such a name.
            used = {os.readlink(item.path) for item in items if item.is_symlink()}
            yield from (Path(item.path) for item in items if item.name.startswith(".") and item.name not in used)

    def make(self, folder: Path) -> None:
        """Make a folder of the dataset if it is missing, with the rights of the dataset's own folder. Raises OSError.

        So whoever may write into that may write everywhere, and what several people write has one group (setgid).
        """
        if folder.is_dir():
            return
        if folder == self.root:
            folder.parent.mkdir(parents=True, exist_ok=True)
            mode = _shared_mode(folder.parent)
        else:
            self.make(folder.parent)
            mode = _shared_mode(self.root)
        # Under its name it has its rights already: another user may be waiting for it.
        temporary = folder.parent / files.temporary_name(".d")
        temporary.mkdir(exist_ok=True)  # nobody else has this name: that it exists is the answer to a lost reply
        try:
            if mode is not None:
                temporary.chmod(mode)
            os.rename(temporary, folder)
        except OSError:
            if not fresh(folder).is_dir():
                raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                temporary.rmdir()

    def write(self, path: Path, data: bytes | memoryview) -> None:
        """Put an immutable file in its place, replacing one of the same name. Raises OSError; nothing is left then.

        It is written in tmp/, where what a killed writer leaves behind does no harm.
        """
        self.make(self.tmp)
        self.make(path.parent)
        temporary = self.tmp / files.temporary_name(path.suffix[1:])
        try:
            files.write_durably(temporary, data, mode=0o444, exact=True)
            self.rename(temporary, path)
        finally:
            with contextlib.suppress(OSError):  # at the end of a quota not even that may be allowed
                temporary.unlink()
        files.fsync_dir(path.parent)

    def renew(self, path: Path) -> bool:
        """Make a file that is used again as young as a new one, so that `gc` lets it be; False where that is not ours.

        Only a file's owner may do that: whoever else needs it puts the same bytes there again. What is younger than
        an hour is left alone: a file that is replaced is lost to readers on NFS who have it open.
        """
        try:
            if abs(time.time() - path.stat().st_mtime) > YOUNG_S:
                os.utime(path)
        except OSError:
            return False
        return True

    def rename(self, temporary: Path, path: Path) -> None:
        """`os.replace` that knows NFS's lost reply: the repeated call then finds nothing left to rename."""
        mine = temporary.stat()
        try:
            os.replace(temporary, path)
        except FileNotFoundError:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(mine, fresh(path).stat()):
                    return
            raise

    def has_trash(self) -> bool:
        """Whether gc has ever taken something that is not deleted yet."""
        return next(_folders(self.trash), None) is not None

    def take_back(self, path: Path) -> bool:
        """Bring a file back from the trash; whether it was there."""
        if path.exists():
            return False
        for trash in _folders(self.trash):
            thrown = trash / path.relative_to(self.root)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                thrown.stat()
                self.make(path.parent)
                os.replace(thrown, path)
                return True
            if path.exists():
                return True
        return False

    def now_s(self) -> float:
        """The time by this file system's clock, which is the one that files' ages are told by. Raises OSError."""
        self.make(self.tmp)
        temporary = self.tmp / files.temporary_name("clock")
        temporary.touch()
        try:
            return temporary.stat().st_mtime
        finally:
            temporary.unlink(missing_ok=True)

    def _addressed(self, kind: str, digest: str, suffix: str) -> Path:
        # An id read from a file is not trusted to stay inside the folder.
        if not _ID.fullmatch(digest):
            raise CorruptError(self.root, f"it refers to '{digest[:80]}', which is not a SHA-256")
        return self.root / kind / digest[:2] / f"{digest}{suffix}"


def check_name(kind: str, name: str) -> str:
    """The name itself, if a dataset, branch or tag may be called so. Raises InputError."""
    if not _NAME.fullmatch(name):
        raise InputError(
            f"'{name}' cannot be the name of a {kind}: it begins with a letter or digit, and goes on with letters, "
            "digits, '.', '_' and '-' (at most 100)."
        )
    if kind != "dataset" and _LIKE_A_COMMIT.fullmatch(name):
        raise InputError(f"'{name}' cannot be the name of a {kind}: it looks like the beginning of a commit.")
    return name


def split_ref(ref: str) -> tuple[str, str]:
    """`name@revision` as (name, revision); the name alone means its main branch. Raises InputError."""
    name, at, revision = ref.partition("@")
    if at and not revision:
        raise InputError(f"'{ref}' has no revision after the @: a branch, a tag or the beginning of a commit.")
    return check_name("dataset", name), revision or DEFAULT_BRANCH


def _shared_mode(folder: Path) -> int | None:
    """The mode of folders in one that a group shares: its own with setgid; None where it is one person's."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    return mode & 0o777 | stat.S_ISGID if mode & stat.S_IWGRP else None


def _folders(parent: Path) -> Iterator[Path]:
    yield from (Path(item.path) for item in _scan(parent) if item.is_dir(follow_symlinks=False))


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def fresh(path: Path) -> Path:
    """The same path; where it seems to be missing, its folder is listed: NFS then forgets that it was not there."""
    if not path.exists():
        with contextlib.suppress(OSError):
            os.listdir(path.parent)
    return path


def again_if_stale(action: Callable[[], T]) -> T:
    """What reading gives; again where NFS says ESTALE: what was open is no more.

    So it is for whoever has a file open that another user puts there anew (Layout.renew), with the same bytes. Raises
    OSError where it stays so.
    """
    for _ in range(_MOST_STALE):
        try:
            return action()
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return action()
