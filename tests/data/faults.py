"""A network file system on a bad day, for a process of its own: what works is said to have failed, listings are old.

An NFS client repeats a call whose reply was lost; the server has done it, so the repeated call fails: EEXIST for link,
symlink and mkdir, ENOENT for rename and unlink. A listing, or that a name is missing, is remembered for a while. A file
that somebody has replaced is stale (ESTALE) for whoever has it open.
"""

from __future__ import annotations

import atexit
import errno
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

_OLD_S = 0.3


def install(seed: int, share: float = 0.15) -> None:
    """From now on this share of calls goes wrong; how many did, by kind, is the last line on stderr."""
    dice, count = random.Random(seed), Counter[str]()

    def faulty(name: str, number: int) -> None:
        call: Callable[..., Any] = getattr(os, name)

        def repeated(*arguments: Any, **options: Any) -> Any:
            found = call(*arguments, **options)
            if dice.random() < share:
                count[name] += 1
                raise OSError(number, os.strerror(number), arguments[0], None, arguments[-1])
            return found

        setattr(os, name, repeated)

    for name in ("link", "symlink", "mkdir"):
        faulty(name, errno.EEXIST)
    for name in ("replace", "rename", "unlink"):
        faulty(name, errno.ENOENT)
    _old_names(dice, count, share)
    _stale_files(dice, count, share)
    atexit.register(lambda: print(json.dumps(count), file=sys.stderr))


def _old_names(dice: random.Random, count: Counter[str], share: float) -> None:
    """Listings that are remembered, and names that are remembered as missing until their folder is listed."""
    listdir, stat = os.listdir, os.stat
    known: dict[str, tuple[float, list[str]]] = {}
    missing: dict[str, float] = {}

    def remembered(path: Any = ".") -> list[str]:
        key = os.fspath(path)
        for name in [name for name in missing if os.path.dirname(name) == key]:
            del missing[name]
        since, names = known.get(key, (0.0, []))
        if time.monotonic() - since < _OLD_S and dice.random() < 2 * share:
            count["old listing"] += 1
            return list(names)
        names = listdir(path)
        known[key] = (time.monotonic(), names)
        return list(names)

    def looked_up(path: Any, **options: Any) -> os.stat_result:
        name = os.fspath(path) if not isinstance(path, int) else ""
        if time.monotonic() - missing.get(name, 0.0) < _OLD_S:
            count["remembered as missing"] += 1
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        try:
            return stat(path, **options)
        except FileNotFoundError:
            missing[name] = time.monotonic()
            raise

    os.listdir = remembered  # type: ignore[assignment]
    os.stat = looked_up


def _stale_files(dice: random.Random, count: Counter[str], share: float) -> None:
    preadv, close, read_bytes = os.preadv, os.close, Path.read_bytes
    stale: set[int] = set()

    def read(handle: int, *arguments: Any) -> int:
        # Once stale, always stale: only opening it anew helps.
        if handle in stale or dice.random() < share / 3:
            stale.add(handle)
            count["stale"] += 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return preadv(handle, *arguments)

    def closed(handle: int) -> None:
        stale.discard(handle)
        close(handle)

    def whole(path: Path) -> bytes:
        if dice.random() < share / 3:
            count["stale"] += 1
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return read_bytes(path)

    os.preadv, os.close, Path.read_bytes = read, closed, whole  # type: ignore[assignment,method-assign]
