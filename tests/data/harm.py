"""What happens to files: flipped, cut off, old."""

from __future__ import annotations

import os
from pathlib import Path

DAY_S = 86_400


def flip(path: Path) -> None:
    """Change one bit in the middle."""
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    """Lose the last byte."""
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 1)


def age(root: Path, days: float) -> None:
    """Make every file below so many days older than it is."""
    for parent, _, names in os.walk(root):
        for name in names:
            status = os.lstat(os.path.join(parent, name))
            then = status.st_mtime - days * DAY_S
            os.utime(os.path.join(parent, name), (then, then), follow_symlinks=False)
