"""The listener: hears every moment of every rank (launch/moments.py), and can let a rank stand where it is."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field

from hpctool.launch.moments import GO, SAVE
from hpctool.launch.private import private_folder


@dataclass(frozen=True)
class Stand:
    """A rank at a moment."""

    moment: str
    step: int
    attempt: int
    rank: int
    pid: int
    seen_s: float
    #: whether it is this process's first step
    is_first: bool


@dataclass
class Held:
    """A rank that stands at a moment until it is let go; it may be dead by then."""

    stand: Stand
    link: socket.socket
    answer: bytes = GO

    def release(self) -> None:
        """Let it go on."""
        with contextlib.suppress(OSError):
            self.link.sendall(self.answer)


@dataclass
class Heard:
    """What was heard so far."""

    #: the process of each rank, as it last spoke
    pids: dict[int, int] = field(default_factory=dict)
    #: the most steps that a rank has begun in this attempt
    step: int = 0
    #: the moments that were reached, each with the ranks that said so: `mpirun` starts as one, and goes on as many
    moments: dict[str, set[int]] = field(default_factory=dict)
    newest: Stand | None = None


class Listener:
    """A socket and a thread that answers ranks at once, unless a trap is set for one. A context manager."""

    def __init__(self, save_each_step: bool = False) -> None:
        self.save_each_step = save_each_step
        #: The limit for a socket's name is 107 bytes, and run folders may be deep.
        self.address = str(private_folder() / f"chaos-{uuid.uuid4().hex[:12]}.sock")
        self.heard = Heard()
        #: how long each phase took, by moment (seconds)
        self.lasted: dict[str, list[float]] = {}
        self._trap: Callable[[Stand], bool] | None = None
        self._caught: Held | None = None
        self._changed = threading.Condition()
        self._server = socket.socket(socket.AF_UNIX)
        self._server.bind(self.address)
        self._server.listen(128)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._rests: dict[socket.socket, bytes] = {}
        self._stepped: set[int] = set()
        self._before: dict[int, Stand] = {}
        self._over = False
        self._thread = threading.Thread(target=self._listen, name="listener", daemon=True)
        self._thread.start()

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, *_: object) -> None:
        self._over = True
        self._thread.join(5.0)
        os.unlink(self.address)
        for link in (self._server, *self._rests):
            link.close()

    def trap(self, wanted: Callable[[Stand], bool]) -> None:
        """Hold the first rank that `wanted` is true of."""
        with self._changed:
            self._trap, self._caught = wanted, None

    def caught(self, timeout_s: float) -> Held | None:
        """Who was held, or None while nobody is; the trap is gone once somebody is."""
        with self._changed:
            self._changed.wait_for(lambda: self._caught is not None, timeout_s)
            found, self._caught = self._caught, None
            return found

    def clear(self) -> None:
        """Forget the trap, and let go whoever is in it."""
        with self._changed:
            self._trap = None
            if self._caught is not None:
                self._caught.release()
                self._caught = None

    def forget(self) -> None:
        """A new attempt begins: whatever was heard of processes was of the one before."""
        with self._changed:
            self.heard.pids, self.heard.step = {}, 0

    def typical_s(self, moment: str) -> float:
        """How long the phase that begins with a moment took, in the middle (seconds)."""
        found = sorted(self.lasted.get(moment, []))
        return found[len(found) // 2] if found else 0.05

    def _listen(self) -> None:
        while not self._over:
            for key, _ in self._selector.select(0.1):
                if key.fileobj is self._server:
                    link = self._server.accept()[0]
                    self._rests[link] = b""
                    self._selector.register(link, selectors.EVENT_READ)
                else:
                    assert isinstance(key.fileobj, socket.socket)
                    self._read(key.fileobj)

    def _read(self, link: socket.socket) -> None:
        try:
            data = link.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(link)
            del self._rests[link]
            link.close()
            return
        *lines, self._rests[link] = (self._rests[link] + data).split(b"\n")
        for line in lines:
            self._hear(link, json.loads(line))

    def _hear(self, link: socket.socket, said: dict[str, int | str]) -> None:
        pid, moment = int(said["pid"]), str(said["moment"])
        first = moment == "step" and pid not in self._stepped
        numbers = {key: int(said[key]) for key in ("step", "attempt", "rank")}
        stand = Stand(moment, pid=pid, seen_s=time.monotonic(), is_first=first, **numbers)
        if moment == "step":
            self._stepped.add(pid)
        before = self._before.get(pid)
        if before is not None:
            self.lasted.setdefault(before.moment, []).append(stand.seen_s - before.seen_s)
        self._before[pid] = stand
        held = Held(stand, link, SAVE if self.save_each_step else GO)
        with self._changed:
            heard = self.heard
            heard.pids[stand.rank], heard.newest = pid, stand
            heard.step = max(heard.step, stand.step)
            heard.moments.setdefault(moment, set()).add(stand.rank)
            if self._trap is None or not self._trap(stand):
                held.release()
                return
            self._trap, self._caught = None, held
            self._changed.notify_all()
