"""Room on the disk: how much there is, and a reserve of real bytes for the save that must not fail.

The reserve is a file as large as the newest checkpoint. It is given up when the last save of an attempt, or the one
before a stop, would not fit otherwise; so a disk that others have filled meanwhile does not cost the work since.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from hpctool.files import FULL

#: names, JSON and the ledger's entry beside the tensors; also what a file system keeps for itself
SLACK_BYTES = 1 << 20
_RESERVE = ".reserve"
#: a quota that does not answer is not waited for
_ASK_S = 5.0


def free_bytes(folder: Path) -> int:
    """How much this user may still write there: the file system's word, and a quota's where one can be asked."""
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    quota = _lustre_quota(folder)
    return free if quota is None else min(free, quota)


def _lustre_quota(folder: Path) -> int | None:
    """What Lustre's quota leaves this user, in bytes; None where there is none."""
    program = shutil.which("lfs")
    if program is None:
        return None
    command = [program, "quota", "-q", "-u", str(os.getuid()), str(folder)]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_S, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_lustre_quota(said)


def parse_lustre_quota(text: str) -> int | None:
    """The bytes left under the hard limit that `lfs quota -q` prints in kilobytes; None where there is no limit.

    The line is: file system, kbytes used (with a `*` when over), quota, limit, grace, files, … A long name of the file
    system stands on a line of its own.
    """
    numbers = [word.rstrip("*") for word in text.split() if word.rstrip("*").isdigit()]
    if len(numbers) < 3:
        return None
    used_kb, quota_kb, limit_kb = map(int, numbers[:3])
    limit_kb = limit_kb or quota_kb
    return max(0, limit_kb - used_kb) * 1024 if limit_kb else None


def make_reserve(folder: Path, size_bytes: int) -> bool:
    """See to a reserve of `size_bytes` if there is room for it beside another save; whether it is there."""
    path = folder / _RESERVE
    there = path.stat().st_size if path.exists() else 0
    if there >= size_bytes:
        return True
    try:
        if free_bytes(folder) + there < 2 * size_bytes:
            return False
        give_up_reserve(folder)
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.posix_fallocate(handle, 0, size_bytes)
        finally:
            os.close(handle)
    except OSError:
        give_up_reserve(folder)
        return False
    return True


def give_up_reserve(folder: Path) -> bool:
    """Free the reserve's bytes; whether there was one."""
    try:
        (folder / _RESERVE).unlink()
    except OSError:
        return False
    return True


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room."""
    return isinstance(error, OSError) and error.errno in FULL
