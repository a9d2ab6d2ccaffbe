"""A place on this host that only its user can enter: for locks, and for answers that all shells of a user share."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from hpctool.errors import OperationError


def private_folder() -> Path:
    """`/tmp/hpctool-<uid>`: not on a network file system, where locks may mean nothing. Raises OperationError.

    Not XDG_RUNTIME_DIR: it is set in one session and not in the next, and is removed at logout.
    """
    folder = Path(f"/tmp/hpctool-{os.getuid()}")  # noqa: S108 - checked below
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise OperationError(
            f"{folder} is not a folder that only you can enter, so locks in it prove nothing. Move it."
        )
    return folder
