"""A network file system on a bad day, for a process of its own: what works is said to have failed, listings are old.

An NFS client repeats a call whose reply was lost; the server has done it, so the repeated call fails: EEXIST for link,
symlink and mkdir, ENOENT for rename and unlink. A listing, or that a name is missing, is remembered for a while.
"""

from __future__ import annotations

import atexit
import errno
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

_OLD_S = 0.3


def install(seed: int, share: float = 0.15) -> None:
    """From now on this share of calls goes wrong; how many did is the last word on stderr."""
    dice, count = random.Random(seed), [0]

    def faulty(name: str, number: int) -> None:
        call: Callable[..., Any] = getattr(os, name)

        def repeated(*arguments: Any, **options: Any) -> Any:
            found = call(*arguments, **options)
            if dice.random() < share:
                count[0] += 1
                raise OSError(number, os.strerror(number), arguments[0], None, arguments[-1])
            return found

        setattr(os, name, repeated)

    for name in ("link", "symlink", "mkdir"):
        faulty(name, errno.EEXIST)
    for name in ("replace", "rename", "unlink"):
        faulty(name, errno.ENOENT)
    _old_listings(dice, count, share)
    atexit.register(lambda: print("faults:", count[0], file=sys.stderr))


def _old_listings(dice: random.Random, count: list[int], share: float) -> None:
    listdir = os.listdir
    known: dict[str, tuple[float, list[str]]] = {}

    def remembered(path: Any = ".") -> list[str]:
        key = os.fspath(path)
        since, names = known.get(key, (0.0, []))
        if time.monotonic() - since < _OLD_S and dice.random() < 2 * share:
            count[0] += 1
            return list(names)
        names = listdir(path)
        known[key] = (time.monotonic(), names)
        return list(names)

    os.listdir = remembered  # type: ignore[assignment]
