"""Opened: the objects of a version as open files, a few hundred at a time however many there are.

Where the version was staged, the copy on this node is taken and, if a cleaner of /tmp has been there, the original.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from hpctool.data.layout import Layout, again_if_stale
from hpctool.data.objects import StoredObject, open_object

T = TypeVar("T")

#: Below the usual limit of 1,024 for a process, with room for its other files.
_MOST_OPEN = 256


class OpenFile:
    """A file descriptor that is closed when nobody uses it any more."""

    def __init__(self, handle: int, path: Path) -> None:
        self.handle = handle
        self.path = path

    def __del__(self) -> None:
        os.close(self.handle)


class OpenFiles:
    """Opens objects at first touch and checks their size then. Safe for threads, and in a forked child."""

    def __init__(self, layout: Layout, stage: Path | None = None) -> None:
        self._homes = [Layout(stage)] if stage is not None else []
        self._homes.append(layout)
        self._open: OrderedDict[str, OpenFile] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, stored: StoredObject) -> OpenFile:
        """The object, open for reading. Raises CorruptError where it is missing or has another size."""
        with self._lock:
            if (known := self._open.get(stored.id)) is not None:
                self._open.move_to_end(stored.id)
                return known
            opened = self._open[stored.id] = self.once(stored)
            if len(self._open) > _MOST_OPEN:
                # Not closed here: another thread may be reading from it.
                self._open.popitem(last=False)
            return opened

    def read(self, stored: StoredObject, action: Callable[[OpenFile], T]) -> T:
        """What is read from the object, opened anew where NFS says that what is open is no more. Raises CorruptError.

        `action` may be called several times.
        """

        def attempt() -> T:
            opened = self.get(stored)
            try:
                return action(opened)
            except OSError as error:
                if error.errno == errno.ESTALE:
                    with self._lock:
                        if self._open.get(stored.id) is opened:
                            del self._open[stored.id]
                raise

        return again_if_stale(attempt)

    def once(self, stored: StoredObject) -> OpenFile:
        """The same for one use. Raises CorruptError."""
        for home in self._homes[:-1]:
            path = home.object(stored.id)
            try:
                if os.stat(path).st_size == stored.size_bytes:
                    return OpenFile(open_object(home, stored), path)
            except OSError:
                continue
        return OpenFile(open_object(self._homes[-1], stored), self._homes[-1].object(stored.id))
