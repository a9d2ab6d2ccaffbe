"""Files that are whole or absent: atomic durable writes, create-if-absent, checksums, and the log.

Everything that several processes may change is a `Log`: a folder of numbered entries, each complete before it
gets its name, each name created only if absent. No lock is ever taken. Everything else on disk is immutable or
has one writer, and goes through `write_atomic`.

An entry is two lines, readable with `cat`: the JSON body, and `#crc32 xxxxxxxx` of the first line. A pack,
`pack-<first>-<last>`, repeats a range of entries in one file; it is a shortcut for readers and nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import socket
import time
import uuid
import warnings
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from hpctool.errors import CorruptError, OperationError

Primitive = Literal["link", "symlink"]

# What file systems answer where hard links are missing or refused (FUSE, some object gateways, project quotas).
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
# What is the matter with one entry and not with this process (too many open files, no memory) or the whole mount.
_ENTRY_BROKEN = {errno.ENOENT, errno.ESTALE, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO}
_PATIENCE_S = 2.0
_DAY_S = 86_400.0


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII. Raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_bytes(data: bytes | memoryview) -> str:
    """The SHA-256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits: what `sha256sum` prints. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32_hex(data: bytes | memoryview) -> str:
    """The CRC-32 (zlib) of bytes, 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable. File systems that cannot sync a folder are left in peace."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
            raise
    finally:
        os.close(handle)


def temporary_name(prefix: str = ".t") -> str:
    """A file name that nobody else uses: host, process and a random part, so that leftovers tell whose they were."""
    return f"{prefix}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def write_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write a new file and sync it. Raises FileExistsError, and OSError where the disk is full (at close, too).

    After an error the half-written file is gone: on a full disk every leftover makes the next failure likelier.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with open(handle, "wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]
            os.fsync(handle)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace a file as a whole: readers see the old bytes or the new ones, also after a crash.

    For files with one writer; what several processes change is a `Log`. Raises OSError; nothing is left behind then.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.parent / temporary_name()
    try:
        write_durably(temporary, raw, mode=mode)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def write_json(path: Path, value: Any, *, mode: int = 0o644) -> None:
    """Replace a JSON file as a whole, indented for people. Raises ValueError on NaN, OSError."""
    write_atomic(path, json.dumps(value, indent=1, sort_keys=False, allow_nan=False) + "\n", mode=mode)


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises FileNotFoundError, CorruptError where it is not JSON."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise CorruptError(path, f"it is not JSON ({error})") from error


def create(path: Path, data: bytes, *, mode: int = 0o644, primitive: Primitive | None = None) -> bool:
    """Give complete bytes a name, if the name is free: True when the name is now ours, False when it was taken.

    With `primitive=None` a hard link is tried first and a symbolic link where the file system has none. Both fail
    on a name that exists in either form, so writers that use different ones still exclude each other.
    """
    temporary = path.parent / temporary_name(".e")
    write_durably(temporary, data, mode=mode)
    try:
        won = place(temporary, path, primitive)
        if won:
            fsync_dir(path.parent)
        return won
    finally:
        _discard(temporary, path)


def place(temporary: Path, final: Path, primitive: Primitive | None = None) -> bool:
    """Name a finished file `final` if that name is free. With a symbolic link the temporary file must stay.

    On NFS a reply may be lost: the repeated call then says EEXIST, or the call times out, although it had worked.
    Whether the name is mine (the same file, or the link's own target) tells this from a lost race.
    """
    if primitive != "symlink":
        try:
            os.link(temporary, final)
            return True
        except OSError as error:
            if _same_file(temporary, final):
                return True
            if error.errno == errno.EEXIST:
                return False
            if error.errno not in _NO_LINK or primitive == "link":
                raise
    try:
        os.symlink(temporary.name, final)
        return True
    except OSError as error:
        if _points_at(final, temporary):
            return True
        if error.errno == errno.EEXIST:
            return False
        raise


def _same_file(temporary: Path, final: Path) -> bool:
    mine = os.stat(temporary)
    try:
        return os.path.samestat(mine, os.lstat(final))
    except OSError:  # the client still believes that the name is free: the count of names is all there is to see
        return mine.st_nlink >= 2


def _points_at(final: Path, temporary: Path) -> bool:
    try:
        return os.readlink(final) == temporary.name
    except OSError:
        return False


def _discard(temporary: Path, final: Path) -> None:
    # Where the name is a symbolic link to it, the temporary file is the content; also after an error that came late.
    if not _points_at(final, temporary):
        temporary.unlink(missing_ok=True)


def probe(folder: Path) -> Primitive:
    """Which way of create-if-absent this file system has. Raises OperationError where it has neither, OSError."""
    for primitive in get_args(Primitive):
        if _excludes(folder, primitive):
            return primitive  # type: ignore[no-any-return]
    raise OperationError(
        f"{folder} can create neither a hard link nor a symbolic link, so two writers could not be told apart. "
        "Choose a folder on another file system."
    )


def _excludes(folder: Path, primitive: Primitive) -> bool:
    """Whether of two files placed at one name the first wins and the second is told so."""
    target = folder / temporary_name(".probe")
    first, second = (folder / temporary_name(".probe-data") for _ in range(2))
    try:
        write_durably(first, b"first")
        write_durably(second, b"second")
        won, lost = place(first, target, primitive), not place(second, target, primitive)
        return won and lost and target.read_bytes() == b"first"
    except OSError as error:
        if error.errno not in _NO_LINK:
            raise
        return False
    finally:
        for path in (target, first, second):
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Entry:
    """One numbered entry of a log."""

    number: int
    body: dict[str, Any]


def encode_entry(body: Mapping[str, Any]) -> bytes:
    """An entry's bytes: the body as one line of canonical JSON, then its CRC-32. Raises ValueError on NaN."""
    return _sealed(canonical_json(body) + b"\n")


def decode_entry(path: Path, data: bytes) -> dict[str, Any]:
    """The body of an entry's bytes. Raises CorruptError."""
    try:
        body = json.loads(_unsealed(path, data))
    except ValueError as error:
        raise CorruptError(path, f"it is not JSON ({error})") from error
    if not isinstance(body, dict):
        raise CorruptError(path, "it holds no JSON object")
    return body


def _sealed(lines: bytes) -> bytes:
    return lines + b"#crc32 " + crc32_hex(lines.removesuffix(b"\n")).encode() + b"\n"


def _unsealed(path: Path, data: bytes) -> bytes:
    """The lines before the checksum line. Raises CorruptError where that is missing or does not fit."""
    lines, mark, _ = data.rpartition(b"#crc32 ")
    if not mark or _sealed(lines) != data:
        raise CorruptError(path, f"its checksum line is missing or does not fit its {len(data)} bytes")
    return lines


class Log:
    """Numbered entries in a folder, created if absent: the only thing that several processes may change.

    *Facts* are appended; *decisions* are made with `cas`, from a state that nobody changed meanwhile. A broken entry
    is skipped, warned of once and kept in `broken`; its number stays taken.
    """

    #: sizes of packs, in entries: whoever writes entry 1024 packs 961..1024 and 1..1024. Everything is thus written
    #: at most five times, and whoever reads a long log opens at most 63 entries and some 15 packs of each size.
    PACKS: tuple[int, ...] = (64, 1_024, 16_384, 262_144)
    _NAME = re.compile(r"\d{10}")
    _PACK_NAME = re.compile(r"pack-(\d{10})-(\d{10})")

    def __init__(self, folder: Path, primitive: Primitive | None = None) -> None:
        self.folder = folder
        self.primitive = primitive
        self.broken: dict[str, str] = {}
        self._cache: dict[int, dict[str, Any]] = {}

    def last(self) -> int:
        """The highest number in use, 0 for an empty or missing log."""
        return max(self._listing()[0], default=0)

    def newest(self) -> Entry | None:
        """The newest readable entry, or None."""
        for number in reversed(self._listing()[0]):
            if (body := self._read(number)) is not None:
                return Entry(number, body)
        return None

    def entries(self, after: int = 0) -> list[Entry]:
        """All readable entries with a number above `after`, in order."""
        numbers, packs = self._listing()
        numbers = [n for n in numbers if n > after]
        self._load_packs(packs, {n for n in numbers if n not in self._cache})
        found = ((n, self._read(n)) for n in numbers)
        return [Entry(n, body) for n, body in found if body is not None]

    def append(self, body: Mapping[str, Any]) -> int:
        """Add a fact at the next free number, which is returned. Raises OSError where the disk is full."""
        return self._add(body, self.last() + 1, insist=True)

    def cas(self, body: Mapping[str, Any], after: int) -> bool:
        """Create entry `after + 1` unless somebody has; `after` is what `last` said *before* the state was read."""
        return self.last() == after and self._add(body, after + 1, insist=False) > after

    def path(self, number: int) -> Path:
        """Where entry `number` lies."""
        return self.folder / f"{number:010d}"

    def _add(self, body: Mapping[str, Any], number: int, *, insist: bool) -> int:
        """Create entry `number`, or if that is taken the next free one (`insist`); 0 where it was taken."""
        data = encode_entry(body)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / temporary_name(".e")
        write_durably(temporary, data)
        try:
            while not place(temporary, self.path(number), self.primitive):
                if not insist:
                    return 0
                # Losers that try again at the same moment would lose again together.
                time.sleep(random.uniform(0.0, 0.002))
                number = max(number + 1, self.last() + 1)
            fsync_dir(self.folder)
        finally:
            _discard(temporary, self.path(number))
        self._cache[number] = decode_entry(self.path(number), data)
        self._write_packs(number)
        return number

    def _listing(self) -> tuple[list[int], list[tuple[int, int, str]]]:
        """The numbers in use, sorted, and the packs (first, last, name), the largest first."""
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return [], []
        packs = [(int(m[1]), int(m[2]), m[0]) for m in map(self._PACK_NAME.fullmatch, names) if m]
        return sorted(int(n) for n in names if self._NAME.fullmatch(n)), sorted(packs, key=lambda p: p[0] - p[1])

    def _read(self, number: int) -> dict[str, Any] | None:
        if number not in self._cache:
            path = self.path(number)
            # Patience once: what was broken a moment ago is looked at again, but not waited for.
            patience_s = 0.0 if path.name in self.broken else _PATIENCE_S
            try:
                self._cache[number] = decode_entry(path, _read_patiently(path, patience_s))
            except (CorruptError, OSError) as error:
                if isinstance(error, OSError) and error.errno not in _ENTRY_BROKEN:
                    raise
                if path.name not in self.broken:
                    self.broken[path.name] = str(error)
                    warnings.warn(f"A log entry was set aside and the others are used: {error}", stacklevel=3)
                return None
            self.broken.pop(path.name, None)
        return self._cache[number]

    def _write_packs(self, number: int) -> None:
        # A pack is only a shortcut: whoever fails to write it has still written the entry.
        with contextlib.suppress(OSError):
            for size in (size for size in self.PACKS if number % size == 0):
                first = number - size + 1
                items = [{"n": e.number, "body": e.body} for e in self.entries(first - 1) if e.number <= number]
                lines = b"".join(canonical_json(item) + b"\n" for item in items)
                create(self.folder / f"pack-{first:010d}-{number:010d}", _sealed(lines), primitive=self.primitive)
                self._sweep()

    def _load_packs(self, packs: list[tuple[int, int, str]], missing: set[int]) -> None:
        """Fill the cache from packs, as long as a pack saves more reading than it costs."""
        for first, last, name in packs:
            if len(missing.intersection(range(first, last + 1))) * 8 <= last - first:
                continue
            path = self.folder / name
            with contextlib.suppress(OSError, CorruptError):
                for line in _unsealed(path, path.read_bytes()).splitlines():
                    item = json.loads(line)
                    self._cache.setdefault(item["n"], item["body"])
                    missing.discard(item["n"])

    def _sweep(self) -> None:
        """Remove temporary files of writers that died more than a day ago."""
        with os.scandir(self.folder) as found:
            items = list(found)
        used = {os.readlink(item.path) for item in items if item.is_symlink()}
        for item in items:
            if item.name.startswith(".e-") and item.name not in used:
                with contextlib.suppress(OSError):
                    if time.time() - item.stat(follow_symlinks=False).st_mtime > _DAY_S:
                        os.unlink(item.path)


def _read_patiently(path: Path, patience_s: float = _PATIENCE_S) -> bytes:
    """Read a file that was just listed; a network file system may deny for a moment what it has already shown."""
    deadline, wait_s = time.monotonic() + patience_s, 0.05
    while True:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or time.monotonic() + wait_s > deadline:
                raise
            os.listdir(path.parent)
            time.sleep(wait_s)
            wait_s *= 2
