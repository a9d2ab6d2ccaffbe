"""Gc: what nothing needs is put into the trash, and deleted when nobody has missed it. Safe while others write.

Needed is what a branch, a tag, the lease of a run, a run in retention or whoever calls names, and all that it leads to.
Three things keep what others are about to need:
- what is young is left alone, and a writer who uses a file again makes it young, or puts the same bytes there anew
  where it belongs to another user;
- after moving files gc looks at the refs again and takes back what has become needed; a writer who has moved a branch
  looks whether its files are there and takes them back from the trash (Store.commit). Whichever comes second sees it;
- the trash is kept for a while, and each gc begins by taking back what is needed after all.
Ages are told by the file system's own clock. Nothing is done unless it is asked for.
"""

from __future__ import annotations

import calendar
import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool.data.layout import fresh
from hpctool.data.reach import Reach
from hpctool.data.store import Store
from hpctool.data.usage import pins, recent_uses
from hpctool.errors import OperationError

DAY_S = 86_400.0
_TIME = "%Y%m%dT%H%M%SZ"
_TRASH = re.compile(r"(\d{8}T\d{6}Z)-[0-9a-f]{8}")


@dataclass(frozen=True)
class Keep:
    """For how long things are left alone, in seconds by the file system's clock."""

    #: files that nothing needs, since they were written or used again: longer than any `prepare` takes, and well above
    #: layout.YOUNG_S while others write
    young_s: float = 14 * DAY_S
    #: what lies in the trash
    trash_s: float = 14 * DAY_S
    #: versions that a run has used, since its last attempt began
    run_s: float = 90 * DAY_S


@dataclass
class Collected:
    """What gc did, or would do."""

    done: bool
    num_needed: int = 0
    num_young: int = 0
    #: kind (objects, manifests, commits, leftovers) → files, bytes
    moved: dict[str, list[int]] = field(default_factory=dict)
    num_taken_back: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    expired_pins: int = 0
    #: what others own and this user may not touch
    refused: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    def add(self, kind: str, size_bytes: int) -> None:
        """Count a file."""
        entry = self.moved.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += size_bytes


def gc(store: Store, *, delete: bool = False, keep: Keep | None = None, more: Iterable[str] = ()) -> Collected:
    """Put what nothing needs into the trash, and empty it of what lies there long enough; without `delete` only count.

    `more` are commits that the caller needs. Raises OperationError where a part of the history cannot be read: what it
    needs is unknown then, and nothing is touched.
    """
    keep = keep or Keep()
    layout, extra = store.layout, list(more)
    now_s = layout.now_s()
    collected = Collected(delete)
    needed = _needed(store, now_s, keep, extra, collected)
    collected.num_needed = len(needed)
    found = list(_unneeded(store, needed, now_s - keep.young_s, collected))
    old = [trash for trash, since_s in _trashes(store) if since_s < now_s - keep.trash_s]
    if delete:
        _take_back(store, needed, collected)
        _move(store, found, now_s, keep, collected)
        _take_back(store, _needed(store, now_s, keep, extra, collected), collected)
    else:
        for kind, path in found:
            collected.add(kind, _size(path))
    for trash in old:
        _empty(trash, collected)
    _drop_pins(store, now_s, collected)
    return collected


def _needed(store: Store, now_s: float, keep: Keep, more: list[str], collected: Collected) -> set[Path]:
    """Every file that is needed. Raises OperationError where that cannot be known."""
    reach = Reach(store)
    roots = [use.commit for use in recent_uses(store, now_s - keep.run_s) if _is_there(store, use.commit, collected)]
    roots += [use.commit for _, use, alive in pins(store, now_s) if alive]
    roots += more
    needed = {path for reached in reach.walk(roots) for path in reached.paths(store)}
    if reach.damaged:
        # A writer is taking it back from the trash, or is about to.
        if back := sum(store.layout.take_back(Path(damage.path)) for damage in reach.damaged if damage.path):
            collected.num_taken_back += back
            return _needed(store, now_s, keep, more, collected)
        first = reach.damaged[0]
        raise OperationError(
            f"{first.path} is damaged: {first.problem}. What it needs is unknown, so nothing is collected. "
            f"Mend it first: hpctool data verify {store.name}; hpctool data restore {store.name} --from <second root>."
        )
    return needed


def _is_there(store: Store, commit_id: str, collected: Collected) -> bool:
    """Whether a run's commit is there, or comes back from the trash; else it was collected, and needs nothing more."""
    path = fresh(store.layout.commit(commit_id))
    if path.exists():
        return True
    back = store.layout.take_back(path)
    collected.num_taken_back += back
    return back


def _unneeded(store: Store, needed: set[Path], before_s: float, collected: Collected) -> Iterator[tuple[str, Path]]:
    """Files that nothing needs and that are old enough, each with its kind; the younger ones are counted."""
    candidates = [(path.parent.parent.name, path) for path in store.layout.addressed() if path not in needed]
    candidates += [("leftovers", path) for path in store.layout.leftovers()]
    for kind, path in candidates:
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime < before_s:
                yield kind, path
            else:
                collected.num_young += 1


def _move(store: Store, found: list[tuple[str, Path]], now_s: float, keep: Keep, collected: Collected) -> None:
    """Move files into a new folder of the trash; leftovers of killed writers, which nobody can need, are deleted."""
    layout = store.layout
    trash = layout.trash / f"{time.strftime(_TIME, time.gmtime(now_s))}-{uuid.uuid4().hex[:8]}"
    for kind, path in found:
        try:
            size_bytes = path.lstat().st_size
            if kind == "leftovers":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            elif path.stat().st_mtime < now_s - keep.young_s:  # it may have been used again since it was found
                thrown = trash / path.relative_to(layout.root)
                layout.make(thrown.parent)
                os.rename(path, thrown)
            else:
                collected.num_young += 1
                continue
        except FileNotFoundError:  # another gc was quicker
            continue
        except PermissionError:
            collected.refused.append(str(path))
            continue
        collected.add(kind, size_bytes)


def _take_back(store: Store, needed: set[Path], collected: Collected) -> None:
    """Bring back from the trash what is needed after all."""
    root = store.root
    for trash, _ in _trashes(store):
        for thrown in _files_under(trash):
            path = root / thrown.relative_to(trash)
            if path in needed and not path.exists() and store.layout.take_back(path):
                collected.num_taken_back += 1


def _empty(trash: Path, collected: Collected) -> None:
    for path in _files_under(trash):
        size_bytes = _size(path)
        try:
            if collected.done:
                path.unlink(missing_ok=True)
        except PermissionError:
            collected.refused.append(str(path))
            continue
        collected.deleted_files += 1
        collected.deleted_bytes += size_bytes
    if collected.done:
        shutil.rmtree(trash, ignore_errors=True)


def _drop_pins(store: Store, now_s: float, collected: Collected) -> None:
    for path, _, alive in pins(store, now_s):
        if not alive:
            collected.expired_pins += 1
            if collected.done:
                with contextlib.suppress(FileNotFoundError, PermissionError):
                    path.unlink()


def _trashes(store: Store) -> Iterator[tuple[Path, float]]:
    """The folders of the trash, and since when each lies there."""
    with contextlib.suppress(FileNotFoundError):
        for name in sorted(os.listdir(store.layout.trash)):
            if match := _TRASH.fullmatch(name):
                yield store.layout.trash / name, calendar.timegm(time.strptime(match[1], _TIME))


def _files_under(folder: Path) -> list[Path]:
    return [Path(parent, name) for parent, _, names in os.walk(folder) for name in names]


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.lstat().st_size
    return 0
