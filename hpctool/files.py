"""Files that are whole or absent: atomic durable writes, create-if-absent, checksums, and the log.

Everything that several processes may change is a `Log`: a folder of numbered entries, each complete before it
gets its name, each name created only if absent. No lock is ever taken. Everything else on disk is immutable or
has one writer, and goes through `write_atomic`.

An entry is two lines, readable with `cat`: the JSON body, and `#crc32 xxxxxxxx` of the first line.
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
from typing import Any, Literal

from hpctool.errors import CorruptError, OperationError

Primitive = Literal["link", "symlink"]

# What file systems answer where hard links are missing or refused (FUSE, some object gateways, project quotas).
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES}
_DAY_S = 86_400.0
_CHUNK_BYTES = 1 << 20


# ---------------------------------------------------------------------------------------------- bytes and digests


def canonical_json(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII. Raises ValueError on NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def sha256_bytes(data: bytes | memoryview) -> str:
    """The SHA-256 of bytes, 64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's bytes, 64 hex digits: what `sha256sum` prints. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def crc32_hex(data: bytes | memoryview) -> str:
    """The CRC-32 (zlib) of bytes, 8 hex digits."""
    return f"{zlib.crc32(data):08x}"


# ---------------------------------------------------------------------------------------------- whole or absent


def fsync_dir(folder: Path) -> None:
    """Make the names in a folder durable. File systems that cannot sync a folder are left in peace."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def temporary_name(prefix: str = ".t") -> str:
    """A file name that nobody else uses: host, process and a random part, so that leftovers tell whose they were."""
    return f"{prefix}-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def write_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write a new file and sync it. Raises FileExistsError, and OSError where the disk is full (at close, too)."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


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
    won = False
    try:
        won = place(temporary, path, primitive)
    finally:
        if not won or not path.is_symlink():
            temporary.unlink(missing_ok=True)
    if won:
        fsync_dir(path.parent)
    return won


def place(temporary: Path, final: Path, primitive: Primitive | None = None) -> bool:
    """Name a finished file `final` if that name is free. With a symbolic link the temporary file must stay.

    On NFS a reply may be lost and the repeated call then says EEXIST although it had worked; whether the entry is
    mine (link count 2, or the link's own target) tells this from a lost race.
    """
    if primitive != "symlink":
        try:
            os.link(temporary, final)
            return True
        except FileExistsError:
            return os.stat(temporary).st_nlink >= 2
        except OSError as error:
            if error.errno not in _NO_LINK or primitive == "link":
                raise
    try:
        os.symlink(temporary.name, final)
        return True
    except FileExistsError:
        try:
            return os.readlink(final) == temporary.name
        except OSError:
            return False


def probe(folder: Path) -> Primitive:
    """Which way of create-if-absent this file system has. Raises OperationError where it has neither, OSError."""
    choices: tuple[Primitive, Primitive] = ("link", "symlink")
    for primitive in choices:
        target = folder / temporary_name(".probe")
        source = folder / temporary_name(".probe-data")
        write_durably(source, b"probe\n")
        try:
            first = place(source, target, primitive)
            other = folder / temporary_name(".probe-data")
            write_durably(other, b"other\n")
            try:
                second = place(other, target, primitive)
            finally:
                other.unlink(missing_ok=True)
            if first and not second and target.read_bytes() == b"probe\n":
                return primitive
        except OSError:
            continue
        finally:
            target.unlink(missing_ok=True)
            source.unlink(missing_ok=True)
    raise OperationError(
        f"{folder} can create neither a hard link nor a symbolic link, so two writers could not be told apart. "
        "Choose a folder on another file system."
    )


# ---------------------------------------------------------------------------------------------- the log


@dataclass(frozen=True)
class Entry:
    """One numbered entry of a log."""

    number: int
    body: dict[str, Any]


def encode_entry(body: Mapping[str, Any]) -> bytes:
    """An entry's bytes: the body as one line of canonical JSON, then its CRC-32."""
    line = canonical_json(body)
    return line + b"\n#crc32 " + crc32_hex(line).encode() + b"\n"


def decode_entry(path: Path, data: bytes) -> dict[str, Any]:
    """The body of an entry's bytes. Raises CorruptError."""
    line, _, rest = data.partition(b"\n")
    if rest != b"#crc32 " + crc32_hex(line).encode() + b"\n":
        raise CorruptError(path, f"its checksum line does not fit its {len(line)} bytes")
    body = json.loads(line)
    if not isinstance(body, dict):
        raise CorruptError(path, "it holds no JSON object")
    return body


class Log:
    """Numbered entries in a folder, created if absent: the only thing that several processes may change.

    *Facts* are appended; *decisions* are made with `cas`, from a state that nobody changed meanwhile. Every
    `PACK`th writer also writes everything so far into one pack, so that nobody reads thousands of files.
    A broken entry is skipped, warned of once and kept in `broken`; its number stays taken.
    """

    PACK = 256
    _NAME = re.compile(r"\d{10}")
    _PACK_NAME = re.compile(r"pack-(\d{10})")

    def __init__(self, folder: Path, primitive: Primitive | None = None) -> None:
        self.folder = folder
        self.primitive = primitive
        self.broken: dict[str, str] = {}
        self._cache: dict[int, dict[str, Any]] = {}

    def last(self) -> int:
        """The highest number in use, 0 for an empty or missing log."""
        return max(self._numbers(), default=0)

    def newest(self) -> Entry | None:
        """The newest readable entry, or None."""
        for number in sorted(self._numbers(), reverse=True):
            body = self._read(number)
            if body is not None:
                return Entry(number, body)
        return None

    def entries(self, after: int = 0) -> list[Entry]:
        """All readable entries with a number above `after`, in order."""
        numbers = sorted(n for n in self._numbers() if n > after)
        missing = [n for n in numbers if n not in self._cache]
        if len(missing) > self.PACK // 8:
            self._load_newest_pack()
        found = ((n, self._read(n)) for n in numbers)
        return [Entry(n, body) for n, body in found if body is not None]

    def append(self, body: Mapping[str, Any]) -> int:
        """Add a fact at the next free number, which is returned. Raises OSError where the disk is full."""
        temporary = self._stage(body)
        try:
            number = self.last() + 1
            while not self._place(temporary, number):
                number = max(number + 1, self.last() + 1)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        self._settle(temporary, number, body)
        return number

    def cas(self, body: Mapping[str, Any], after: int) -> bool:
        """Create entry `after + 1` if nobody else has: False means the decision must be thought through again."""
        if self.last() != after:
            return False
        temporary = self._stage(body)
        won = False
        try:
            won = self._place(temporary, after + 1)
        finally:
            if not won:
                temporary.unlink(missing_ok=True)
        if won:
            self._settle(temporary, after + 1, body)
        return won

    def path(self, number: int) -> Path:
        """Where entry `number` lies."""
        return self.folder / f"{number:010d}"

    def _stage(self, body: Mapping[str, Any]) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / temporary_name(".e")
        write_durably(temporary, encode_entry(body))
        return temporary

    def _place(self, temporary: Path, number: int) -> bool:
        won = place(temporary, self.path(number), self.primitive)
        if won:
            fsync_dir(self.folder)
        else:
            # Losers that try again at the same moment would lose again together.
            time.sleep(random.uniform(0.0, 0.002))
        return won

    def _settle(self, temporary: Path, number: int, body: Mapping[str, Any]) -> None:
        # A symbolic link points at the temporary file, which then is the entry and stays.
        if not self.path(number).is_symlink():
            temporary.unlink(missing_ok=True)
        self._cache[number] = json.loads(canonical_json(body))
        if number % self.PACK == 0:
            self._write_pack(number)

    def _numbers(self) -> list[int]:
        try:
            names = os.listdir(self.folder)
        except FileNotFoundError:
            return []
        return [int(name) for name in names if self._NAME.fullmatch(name)]

    def _read(self, number: int) -> dict[str, Any] | None:
        if number not in self._cache:
            path = self.path(number)
            try:
                self._cache[number] = decode_entry(path, _read_patiently(path))
            except (CorruptError, OSError, ValueError) as error:
                if path.name not in self.broken:
                    self.broken[path.name] = str(error)
                    warnings.warn(f"A log entry was set aside and the others are used: {error}", stacklevel=3)
                return None
        return self._cache[number]

    def _write_pack(self, number: int) -> None:
        lines = b"".join(
            canonical_json({"n": e.number, "body": e.body}) + b"\n" for e in self.entries() if e.number <= number
        )
        data = lines + b"#crc32 " + crc32_hex(lines).encode() + b"\n"
        # A pack is only a shortcut: whoever fails to write it has still written the entry.
        with contextlib.suppress(OSError):
            create(self.folder / f"pack-{number:010d}", data, primitive=self.primitive)
            self._sweep()

    def _load_newest_pack(self) -> None:
        names = [m for m in map(self._PACK_NAME.fullmatch, os.listdir(self.folder)) if m]
        for match in sorted(names, key=lambda m: int(m.group(1)), reverse=True):
            try:
                data = (self.folder / match.group(0)).read_bytes()
            except OSError:
                continue
            lines, mark, crc = data.rpartition(b"#crc32 ")
            if mark and crc.strip().decode("ascii", "replace") == crc32_hex(lines):
                for line in lines.splitlines():
                    item = json.loads(line)
                    self._cache.setdefault(item["n"], item["body"])
                return

    def _sweep(self) -> None:
        """Remove temporary files of writers that died more than a day ago."""
        names = os.listdir(self.folder)
        used = {os.readlink(p) for n in names if (p := self.folder / n).is_symlink()}
        for name in names:
            path = self.folder / name
            with contextlib.suppress(OSError):
                if name.startswith(".e-") and name not in used and time.time() - path.stat().st_mtime > _DAY_S:
                    path.unlink()


def _read_patiently(path: Path, patience_s: float = 2.0) -> bytes:
    """Read a file that was just listed; a network file system may deny for a moment what it has already shown."""
    wait_s = 0.05
    while True:
        try:
            return path.read_bytes()
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or wait_s > patience_s:
                raise
            os.listdir(path.parent)
            time.sleep(wait_s)
            wait_s *= 2
