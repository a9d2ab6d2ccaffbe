"""Access: by which way the bytes of a folder are read. It decides how fast they come and never which."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal, get_args

from hpctool.errors import ConfigError

#: memmap: the fastest on local disks and in memory. pread: for shared file systems, where page faults wait for the
#: network one by one, and where a file that is purged or cut off under a memmap kills the process with SIGBUS. (On a
#: local disk that takes a broken disk; the attempt comes back, and its first look at the objects names the file.)
Access = Literal["memmap", "pread"]

#: What people choose: `auto` asks the file system.
Choice = Literal["auto", "memmap", "pread"]

#: Everything else (nfs4, lustre, gpfs, beegfs, ceph, wekafs, fuse.…) may be shared: there pread is never wrong.
_LOCAL = {"ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "bcachefs", "overlay", "squashfs", "rootfs"}
_IN_MEMORY = {"tmpfs", "ramfs"}

_OCTAL = re.compile(r"\\([0-7]{3})")  # mountinfo writes a space as \040
_MOUNTS = Path("/proc/self/mountinfo")


def access_of(folder: Path, choice: str = "auto") -> Access:
    """How to read what lies in a folder. Raises ConfigError on a choice that is none."""
    if choice not in get_args(Choice):
        raise ConfigError("data.read", f"'{choice}' is not one of {', '.join(get_args(Choice))}.")
    if choice == "auto":
        return "memmap" if is_local(folder) else "pread"
    return "memmap" if choice == "memmap" else "pread"


def is_local(folder: Path) -> bool:
    """Whether a folder lies on a disk or in the memory of this machine, as far as its file system's type says."""
    return file_system(folder) in _LOCAL | _IN_MEMORY


def in_memory(folder: Path) -> bool:
    """Whether what is written to a folder takes memory, which Slurm counts as the job's."""
    return file_system(folder) in _IN_MEMORY


def file_system(folder: Path) -> str:
    """The type of the file system that a folder lies on, as `mount` names it; empty where the kernel does not say."""
    try:
        lines = _MOUNTS.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(folder)
    found, longest = "", -1
    for line in lines:
        # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/vda rw
        before, _, after = line.partition(" - ")
        point = _OCTAL.sub(lambda octal: chr(int(octal[1], 8)), before.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # Of two mounts on one point the later one hides the earlier.
        if inside and len(point) >= longest:
            found, longest = after.split(" ")[0], len(point)
    return found
