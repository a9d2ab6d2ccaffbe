"""Files that are whole or absent: atomic durable writes, create-if-absent, checksums.

What has one writer goes through `write_atomic`; what several processes may change is a log (log.py).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import socket
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

from hpctool.errors import CorruptError, OperationError

Primitive = Literal["link", "symlink"]

#: what `write_atomic` writes under before the file has its name
_TEMPORARY = re.compile(r"\.t-.+-\d+-[0-9a-f]{12}")

#: what `read_small` asks for at once
_SMALL_BYTES = 1 << 18

#: what a disk, a quota and a limit on file sizes say when they are full
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

# What file systems answer where hard links are missing or refused (FUSE, some object gateways, project quotas).
_NO_LINK = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


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


def is_temporary(name: str) -> bool:
    """Whether a file's name is one under which `write_atomic` writes, so that it belongs to a writer or to nobody."""
    return bool(_TEMPORARY.fullmatch(name))


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers have left in a folder in which nobody may write any more."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as items:
        for item in items:
            if is_temporary(item.name):
                with contextlib.suppress(OSError):  # only untidy
                    os.unlink(item.path)


def write_durably(path: Path, data: bytes | memoryview, *, mode: int = 0o644, exact: bool = False) -> None:
    """Write a new file and sync it. Raises FileExistsError, and OSError where the disk is full (at close, too).

    `exact` gives it this mode whatever the umask says: what a group shares must not depend on who wrote it.
    After an error the half-written file is gone: on a full disk every leftover makes the next failure likelier.
    """
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        if exact:
            os.fchmod(handle, mode)
        with open(handle, "wb", buffering=0) as file:
            view = memoryview(data).cast("B")
            while view:
                view = view[file.write(view) :]
            os.fsync(handle)
    except BaseException as error:
        with contextlib.suppress(OSError):  # at the end of a quota not even that may be allowed
            path.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644) -> None:
    """Replace a file as a whole: readers see the old bytes or the new ones, also after a crash.

    For files with one writer; what several processes change is a log. Raises OSError; nothing is left behind then.
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
    return parse_json(path, read_small(path))


def read_small(path: Path) -> bytes:
    """A small file's bytes in three calls; Python's own reading makes eight. Raises OSError.

    A table reads hundreds, and each call may cost a millisecond on a network file system.
    """
    with _handle_of(path) as handle:
        parts = [os.read(handle, _SMALL_BYTES)]
        while len(parts[-1]) == _SMALL_BYTES:  # a regular file gives less than was asked for at its end only
            parts.append(os.read(handle, _SMALL_BYTES))
    return b"".join(parts)


def read_tail(path: Path, num_bytes: int) -> tuple[bytes, bool]:
    """The last bytes of a file, and whether they are all of it. Raises OSError."""
    with _handle_of(path) as handle:
        start = max(0, os.fstat(handle).st_size - num_bytes)
        return os.pread(handle, num_bytes, start), start == 0


@contextlib.contextmanager
def _handle_of(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    finally:
        os.close(handle)


def parse_json(path: Path, data: bytes) -> Any:
    """What the bytes of a JSON file say. Raises CorruptError where they are not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CorruptError(path, f"it is not JSON ({error})") from error


def create(
    path: Path, data: bytes, *, mode: int = 0o644, exact: bool = False, primitive: Primitive | None = None
) -> bool:
    """Give complete bytes a name, if the name is free: True when the name is now ours, False when it was taken.

    With `primitive=None` a hard link is tried first and a symbolic link where the file system has none. Both fail
    on a name that exists in either form, so writers that use different ones still exclude each other.
    """
    temporary = path.parent / temporary_name(".e")
    write_durably(temporary, data, mode=mode, exact=exact)
    try:
        won = place(temporary, path, primitive)
        if won:
            fsync_dir(path.parent)
        return won
    finally:
        discard(temporary, path)


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


def discard(temporary: Path, final: Path) -> None:
    """Remove the temporary file of a `place`, however that ended."""
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
