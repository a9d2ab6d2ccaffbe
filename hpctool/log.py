"""The log: the only thing on disk that several processes may change. No lock is ever taken.

A log is a folder of numbered entries, each complete before it gets its name, each name created only if absent.

An entry is two lines, readable with `cat`: the JSON body, and `#crc32 xxxxxxxx` of the first line. This is format 1.
What a later hpctool writes otherwise will end with the line `#format <number> …`: it is refused, and not set aside as
broken. A pack, `pack-<first>-<last>`, repeats a range of entries in one file: a shortcut for readers, nothing else.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import re
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpctool.errors import CorruptError, NewerFormat
from hpctool.files import (
    Primitive,
    canonical_json,
    crc32_hex,
    create,
    discard,
    fsync_dir,
    place,
    read_small,
    temporary_name,
    write_durably,
)

LOG_FORMAT = 1
_OTHER_FORMAT = re.compile(rb"^#format (\d+)\b.*\n\Z", re.MULTILINE)

# What is the matter with one entry and not with this process (too many open files, no memory) or the whole mount.
_ENTRY_BROKEN = {errno.ENOENT, errno.ESTALE, errno.EISDIR, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EIO}
_PATIENCE_S = 2.0
_DAY_S = 86_400.0


@dataclass(frozen=True)
class Entry:
    """One numbered entry of a log."""

    number: int
    body: dict[str, Any]


def encode_entry(body: Mapping[str, Any]) -> bytes:
    """An entry's bytes: the body as one line of canonical JSON, then its CRC-32. Raises ValueError on NaN."""
    return _sealed(canonical_json(body) + b"\n")


def decode_entry(path: Path, data: bytes) -> dict[str, Any]:
    """The body of an entry's bytes. Raises NewerFormat, CorruptError."""
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
    """The lines before the checksum line. Raises NewerFormat, CorruptError where it is missing or does not fit."""
    if other := _OTHER_FORMAT.search(data):
        raise NewerFormat(path, "log entry", int(other[1]), LOG_FORMAT)
    lines, mark, _ = data.rpartition(b"#crc32 ")
    if not mark or _sealed(lines) != data:
        raise CorruptError(path, f"its checksum line is missing or does not fit its {len(data)} bytes")
    return lines


class Log:
    """Numbered entries in a folder, created if absent.

    *Facts* are appended; *decisions* are made with `cas`, from a state that nobody changed meanwhile. A broken entry
    is skipped, warned of once and kept in `broken`; its number stays taken. Whatever reads raises NewerFormat.
    """

    #: sizes of packs, in entries: whoever writes entry 1024 packs 961..1024 and 1..1024. Everything is thus written
    #: at most five times, and whoever reads a long log opens at most 63 entries and some 15 packs of each size.
    PACKS: tuple[int, ...] = (64, 1_024, 16_384, 262_144)
    _PACK_NAME = re.compile(r"pack-(\d{10})-(\d{10})")

    def __init__(self, folder: Path, primitive: Primitive | None = None, *, shared: bool = False) -> None:
        self.folder = folder
        self.primitive = primitive
        #: others read it, too, whatever the umask of whoever writes
        self.shared = shared
        self.broken: dict[str, str] = {}
        #: the highest number that was seen here; entries are never removed, so no later one is lower
        self.top = 0
        self._cache: dict[int, dict[str, Any]] = {}

    def last(self) -> int:
        """The highest number in use, 0 for an empty or missing log."""
        # Names are as long as each other, so the last of them is that of the highest number.
        self.top = int(max(_entries_of(self._all_names()), default="0"))
        return self.top

    def mark(self) -> tuple[int, int]:
        """What a new entry changes of the folder: its inode and the time of its last change. Raises OSError.

        Two entries within one tick of the file system's clock leave it as one does: ask `has`, too.
        """
        status = os.stat(self.folder)
        return status.st_ino, status.st_mtime_ns

    def has(self, number: int) -> bool:
        """Whether entry `number` is there, whole or not: one call, nothing is listed."""
        return os.path.lexists(self.path(number))

    def newest(self) -> Entry | None:
        """The newest readable entry, or None."""
        for number in reversed(self._listing()[0]):
            if (body := self._read(number)) is not None:
                return Entry(number, body)
        return None

    def entries(self, after: int = 0) -> list[Entry]:
        """All readable entries with a number above `after`, in order."""
        listed, packs = self._listing()
        self.top = max(listed, default=0)
        # Numbers have no gaps, but listings do: of a folder that grows meanwhile, one of more names than fit into one
        # answer of the kernel (about 1000) may show a name without the one before it, which was there first.
        numbers = range(after + 1, self.top + 1)
        self._load_packs(packs, {n for n in numbers if n not in self._cache})
        shown, found, patience_s = set(listed), [], _PATIENCE_S
        for number in numbers:
            body = self._read(number, _PATIENCE_S if number in shown else patience_s)
            if body is not None:
                found.append(Entry(number, body))
            elif number not in shown:
                patience_s = 0.0  # it was removed: of a thousand like it, one is waited for
        return found

    def append(self, body: Mapping[str, Any]) -> int:
        """Add a fact at the next free number, which is returned. Raises OSError where the disk is full."""
        # A folder of many thousand names is not listed for each: where nobody else has written, the next one is free.
        return self._add(body, (self.top or self.last()) + 1, insist=True)

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
        write_durably(temporary, data, exact=self.shared)
        try:
            while not place(temporary, self.path(number), self.primitive):
                if not insist:
                    return 0
                # Losers that try again at the same moment would lose again together.
                time.sleep(random.uniform(0.0, 0.002))
                number = max(number + 1, self.last() + 1)
            fsync_dir(self.folder)
        finally:
            discard(temporary, self.path(number))
        self.top = max(self.top, number)
        self._cache[number] = decode_entry(self.path(number), data)
        self._write_packs(number)
        return number

    def _all_names(self) -> list[str]:
        try:
            return os.listdir(self.folder)
        except FileNotFoundError:
            return []

    def _listing(self) -> tuple[list[int], list[tuple[int, int, str]]]:
        """The numbers in use, sorted, and the packs (first, last, name), the largest first."""
        names = self._all_names()
        packs = [(int(m[1]), int(m[2]), m[0]) for m in map(self._PACK_NAME.fullmatch, names) if m]
        return sorted(map(int, _entries_of(names))), sorted(packs, key=lambda p: p[0] - p[1])

    def _read(self, number: int, patience_s: float = _PATIENCE_S) -> dict[str, Any] | None:
        if number not in self._cache:
            path = self.path(number)
            # Patience once: what was broken a moment ago is looked at again, but not waited for.
            patience_s = 0.0 if path.name in self.broken else patience_s
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
                create(
                    self.folder / f"pack-{first:010d}-{number:010d}",
                    _sealed(lines),
                    exact=self.shared,
                    primitive=self.primitive,
                )
                self._sweep()

    def _load_packs(self, packs: list[tuple[int, int, str]], missing: set[int]) -> None:
        """Fill the cache from packs, as long as a pack saves more reading than it costs."""
        for first, last, name in packs:
            if len(missing.intersection(range(first, last + 1))) * 8 <= last - first:
                continue
            path = self.folder / name
            with contextlib.suppress(OSError, CorruptError, NewerFormat):
                for line in _unsealed(path, read_small(path)).splitlines():
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


def _entries_of(names: list[str]) -> list[str]:
    """The names of entries: ten digits. Temporary files and packs have a letter or a dot."""
    return [name for name in names if len(name) == 10 and name.isdecimal()]


def _read_patiently(path: Path, patience_s: float = _PATIENCE_S) -> bytes:
    """Read a file that was just listed; a network file system may deny for a moment what it has already shown."""
    deadline, wait_s = time.monotonic() + patience_s, 0.05
    while True:
        try:
            return read_small(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE) or time.monotonic() + wait_s > deadline:
                raise
            os.listdir(path.parent)
            time.sleep(wait_s)
            wait_s *= 2
