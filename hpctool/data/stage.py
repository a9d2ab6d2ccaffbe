"""Stage: copies of a version's objects on the node's own disk, from which training then reads.

One rank of each node copies, the others wait. Objects keep their names, which are their checksums, so a copy is
verified while it is made, shared by all versions and runs of a user on the node, and found again after a requeue. A
killed copier leaves a file under a temporary name. What cannot be staged is read from where it lies: that costs time
and nothing else, so it is said in one sentence and never an error.

    <folder>/hpctool-stage-<uid>/     0700: others of the node's users could put other data there
      objects/ab/<sha256>.h5          copies
      lists/<name>.json               what a version needs; locked (shared) while a process reads from it
      tmp/                            copies that are being made
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hpctool import files
from hpctool.data.access import access_of, in_memory, is_local
from hpctool.data.layout import Layout
from hpctool.data.objects import StoredObject, damage, open_object
from hpctool.data.version import Version
from hpctool.errors import ConfigError, CorruptError
from hpctool.world import World

OFF, AUTO = "off", "auto"

_GB = 1 << 30
_PIECE_BYTES = 4 << 20
#: Files copied at once: one stream rarely fills a parallel file system's bandwidth.
_THREADS = 4
#: The disk is other people's too: so much stays free, or 5 % of what is copied if that is more.
_MARGIN_BYTES = 1 << 30
#: What nobody has read from for so long goes when somebody stages next.
_KEEP_S = 2 * 86400.0
#: A copy that has not grown for so long has lost its copier.
_STALE_S = 600.0
_REPORT_EVERY_S = 10.0


@dataclass(frozen=True)
class Outcome:
    """What came of staging on one node."""

    host: str
    leads: bool
    #: where the copies are; None where the node reads from the dataset itself, for this `reason`
    folder: str | None
    reason: str = ""
    copied_bytes: int = 0
    total_bytes: int = 0
    seconds: float = 0.0


class NotStaged(Exception):
    """Why this node reads from the dataset's own folder."""


def check_choice(choice: str) -> None:
    """Raises ConfigError where data.stage is neither off, auto nor a folder."""
    if choice not in (OFF, AUTO) and not choice.startswith(("/", "$", "~")):
        problem = f"'{choice}' is neither \"off\" (in quotes, where it stands in a file) nor auto nor a whole path."
        raise ConfigError("data.stage", problem)


def stage(
    version: Version,
    columns: Iterable[str],
    splits: Iterable[str],
    choice: str,
    world: World,
    *,
    checksums: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> str:
    """Copy what some columns of some splits need to the nodes' disks; `version` then reads from there where it worked.

    The answer is a sentence for people, empty where nothing was to be done. `checksums` compares the copies that are
    there already, too. Gives up when `stopped` says so. Collective: all ranks must call it. Raises CorruptError on
    all ranks where an object of the dataset is not what was written.
    """
    if choice == OFF or (choice == AUTO and access_of(version.store.root, version.access) == "memmap"):
        return ""
    needed = needed_objects(version, columns, splits)

    def attempt() -> dict[str, Any]:
        if world.local_rank != 0:
            return asdict(Outcome(os.uname().nodename, False, None))
        return asdict(_on_this_node(version, needed, choice, world, checksums, stopped))

    outcomes = [Outcome(**found) for found in world.together(attempt)]
    leaders = {one.host: one for one in outcomes if one.leads}
    mine = leaders.get(os.uname().nodename)
    if mine is not None and mine.folder is not None:
        version.stage = Path(mine.folder)
    return _said(list(leaders.values()), version)


def needed_objects(version: Version, columns: Iterable[str], splits: Iterable[str]) -> list[StoredObject]:
    """The objects that hold some columns of the row groups in which some splits have rows, each once."""
    ends = np.cumsum([group.num_rows for group in version.contents.row_groups])
    used = np.zeros(len(ends), np.bool_)
    for split in splits:
        used[np.unique(np.searchsorted(ends, version.split_rows(split), side="right"))] = True
    groups = [version.contents.row_groups[number] for number in np.flatnonzero(used).tolist()]
    found = [group.holder(name) for group in groups for name in columns]
    return list({stored.id: stored for stored in found}.values())


def _on_this_node(
    version: Version,
    needed: list[StoredObject],
    choice: str,
    world: World,
    checksums: bool,
    stopped: Callable[[], bool],
) -> Outcome:
    begun, total_bytes = time.monotonic(), sum(stored.size_bytes for stored in needed)
    outcome = Outcome(os.uname().nodename, True, None, total_bytes=total_bytes)
    try:
        home = open_home(choice)
        held = hold(home, version, needed)
        clean(home)
        there = {s.id for s in needed if not damage(Layout(home).object(s.id), s.id, s.size_bytes, checksum=checksums)}
        missing = [stored for stored in needed if stored.id not in there]
        copied_bytes = sum(stored.size_bytes for stored in missing)
        make_room(home, copied_bytes)
        _copy_all(version, missing, home, stopped, speak=world.is_main)
    except NotStaged as error:
        return Outcome(**{**asdict(outcome), "reason": str(error)})
    except OSError as error:
        return Outcome(**{**asdict(outcome), "reason": f"{error.filename or choice}: {error.strerror}"})
    # The lock ends with this process, however it ends.
    version.stage_lock = held
    seconds = time.monotonic() - begun
    return Outcome(outcome.host, True, str(home), "", copied_bytes, total_bytes, seconds)


def open_home(choice: str) -> Path:
    """This user's stage on this node, made if it is not there. Raises NotStaged, OSError."""
    base = _local_folder() if choice == AUTO else Path(os.path.expanduser(os.path.expandvars(choice)))
    if not base.is_absolute():
        raise NotStaged(f"{choice} is not set on this node")
    home = base / f"hpctool-stage-{os.getuid()}"
    base.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        home.mkdir(mode=0o700)
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise NotStaged(f"{home} can be written by others")
    for folder in ("objects", "lists", "tmp"):
        (home / folder).mkdir(exist_ok=True)
    return home


def _local_folder() -> Path:
    """The first of the usual folders that lies on a disk of this node. Raises NotStaged."""
    for name in (os.environ.get("SLURM_TMPDIR"), os.environ.get("TMPDIR"), tempfile.gettempdir()):
        folder = Path(name or "")
        if name and folder.is_dir() and is_local(folder) and not in_memory(folder) and os.access(folder, os.W_OK):
            return folder
    raise NotStaged("neither $SLURM_TMPDIR, $TMPDIR nor /tmp is a disk of this node (memory is taken if it is named)")


def hold(home: Path, version: Version, needed: list[StoredObject]) -> int:
    """Write down what is needed and lock that for as long as this process lives; the open list. Raises OSError."""
    ids = sorted(stored.id for stored in needed)
    path = home / "lists" / f"{version.name}-{files.sha256_bytes(' '.join(ids).encode())[:16]}.json"
    if not path.exists():
        files.write_json(path, {"format": 1, "dataset": version.pinned, "objects": ids})
    os.utime(path)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return handle


def clean(home: Path, *, keep_s: float = _KEEP_S) -> None:
    """Remove lists that nobody has used for `keep_s` and nobody reads by now, copies on no list, and dead copies.

    If another process needs such a copy at this very moment, it reads the original.
    """
    now = time.time()
    for path in _listed(home / "tmp"):
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > _STALE_S:
                path.unlink()
    wanted: set[str] = set()
    for path in _listed(home / "lists"):
        with contextlib.suppress(FileNotFoundError):
            if now - path.stat().st_mtime > keep_s and not _in_use(path):
                path.unlink()
                continue
            with contextlib.suppress(CorruptError, KeyError, TypeError):
                wanted |= set(files.read_json(path)["objects"])
    for folder in _listed(home / "objects"):
        for path in _listed(folder):
            if path.stem not in wanted:
                path.unlink(missing_ok=True)


def make_room(home: Path, size_bytes: int) -> None:
    """See that `size_bytes` fit, giving up what nobody reads if need be. Raises NotStaged."""
    if size_bytes == 0:
        return
    needed_bytes = size_bytes + max(_MARGIN_BYTES, size_bytes // 20)
    if _free_bytes(home) < needed_bytes:
        clean(home, keep_s=0.0)
    free_bytes = _free_bytes(home)
    if free_bytes < needed_bytes:
        raise NotStaged(
            f"{home.parent} has {free_bytes / _GB:.1f} GB free and {needed_bytes / _GB:.1f} are needed, "
            "with what must stay free"
        )


def _copy_all(
    version: Version, missing: list[StoredObject], home: Path, stopped: Callable[[], bool], speak: bool
) -> None:
    """Copy objects, several at once. Raises NotStaged, CorruptError, OSError."""
    done_bytes, total_bytes = 0, sum(stored.size_bytes for stored in missing)
    begun = said = time.monotonic()
    failed: list[BaseException] = []

    def count(size_bytes: int) -> None:
        nonlocal done_bytes
        done_bytes += size_bytes
        if failed or stopped():
            raise NotStaged("it was asked to stop")

    def one(stored: StoredObject) -> None:
        try:
            copy_object(version.store.layout, stored, home, count)
        except BaseException as error:
            failed.append(error)
            raise

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="hpctool-stage") as threads:
        jobs = [threads.submit(one, stored) for stored in missing]
        while speak and not all(job.done() for job in jobs):
            time.sleep(0.05)
            if (now := time.monotonic()) - said > _REPORT_EVERY_S:
                said, rate = now, max(done_bytes, 1) / (now - begun)
                left_s = (total_bytes - done_bytes) / rate
                print(
                    f"staging: {done_bytes / _GB:.1f} of {total_bytes / _GB:.1f} GB, {rate / _GB:.2f} GB/s, "
                    f"{left_s:,.0f} s left",
                    flush=True,
                )
    if failed:
        # The first one; the others gave up because of it.
        raise failed[0]


def copy_object(layout: Layout, stored: StoredObject, home: Path, count: Callable[[int], None]) -> None:
    """Copy one object, and see on the way that its bytes are what was written. Raises CorruptError, OSError.

    `count` is told of every piece, and ends the copy by raising.
    """
    target = Layout(home).object(stored.id)
    target.parent.mkdir(exist_ok=True)
    temporary = home / "tmp" / files.temporary_name("copy")
    digest = hashlib.sha256()
    try:
        with open(open_object(layout, stored), "rb", buffering=0) as source, open(temporary, "xb", 0) as copy:
            while piece := source.read(_PIECE_BYTES):
                digest.update(piece)
                view = memoryview(piece)
                while view:
                    view = view[copy.write(view) :]
                count(len(piece))
            os.fsync(copy.fileno())
            os.fchmod(copy.fileno(), 0o444)
        if digest.hexdigest() != stored.id:
            raise CorruptError(layout.object(stored.id), "its bytes do not fit its checksum")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _said(leaders: list[Outcome], version: Version) -> str:
    staged = [one for one in leaders if one.folder is not None]
    if not staged:
        more = f" (and so on {len(leaders) - 1} more nodes)" if len(leaders) > 1 else ""
        return f"not staged: {leaders[0].reason}; {version.ref} is read from where it lies{more}"
    first, slowest = staged[0], max(one.seconds for one in staged)
    copied = sum(one.copied_bytes for one in staged) / len(staged)
    nodes = f" on {len(staged)} nodes" if len(leaders) > 1 else ""
    said = (
        f"staged {first.total_bytes / _GB:.2f} GB of {version.ref} in {first.folder}{nodes}: "
        f"{copied / _GB:.2f} GB copied in {slowest:.1f} s, the rest was there"
    )
    for one in leaders:
        if one.folder is None:
            return f"{said}; not on {one.host}: {one.reason}"
    return said


def _in_use(path: Path) -> bool:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except OSError:
        return True
    finally:
        os.close(handle)


def _free_bytes(folder: Path) -> int:
    return shutil.disk_usage(folder).free


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
