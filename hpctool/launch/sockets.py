"""SocketWorld: ranks joined by plain sockets, for those who leave torch and MPI to the program that they start.

Everything is one exchange: each rank gives its bytes, all get those of all. That is enough for the little that such
ranks say to each other; nothing that is computed travels this way.
"""

from __future__ import annotations

import contextlib
import functools
import json
import secrets
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from hpctool import files
from hpctool.errors import WorldError, listing
from hpctool.place import Place
from hpctool.rendezvous import listen, own_address, read_meeting
from hpctool.world import Array, Operation, World

_LENGTH = struct.Struct("!Q")
_COMBINED = {"sum": np.add, "max": np.maximum, "min": np.minimum}


class ExchangeWorld(World):
    """Ranks that can do one thing, from which the others are made."""

    def exchange(self, mine: bytes) -> list[bytes]:
        """The bytes of all ranks, in order of rank, on every rank. Collective: all ranks must call it."""
        raise NotImplementedError

    def barrier(self) -> None:
        self.exchange(b"")

    def broadcast(self, value: Any, root: int = 0) -> Any:
        return json.loads(self.exchange(json.dumps(value).encode() if self.rank == root else b"")[root])

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(part) for part in self.exchange(json.dumps(value).encode())]

    def reduce(self, array: Array, operation: Operation = "sum") -> Array:
        mine = super().reduce(array)
        parts = [np.frombuffer(part, mine.dtype).reshape(mine.shape) for part in self.exchange(mine.tobytes())]
        return np.asarray(functools.reduce(_COMBINED[operation], parts), mine.dtype)


class SocketWorld(ExchangeWorld):
    """Ranks joined by sockets, without torch and without MPI: all others are connected to rank 0."""

    backend = "sockets"

    def __init__(self, place: Place, meeting_file: Path, timeout_s: float = 600.0) -> None:
        """Meet the others at a file that all see and no other start has. Collective. Raises WorldError."""
        super().__init__(place)
        deadline = time.monotonic() + timeout_s
        #: rank → its connection: all others on rank 0, only rank 0 elsewhere
        self._links: dict[int, socket.socket] = {}
        if self.is_main:
            self._receive_all(meeting_file, deadline, timeout_s)
        else:
            self._links[0] = self._find_main(meeting_file, deadline, timeout_s)
        for link in self._links.values():
            link.settimeout(None)
            # A machine that is gone says nothing: without this one would wait for it for ever.
            link.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 60)
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.barrier()

    def close(self) -> None:
        for link in self._links.values():
            link.close()
        self._links.clear()

    def exchange(self, mine: bytes) -> list[bytes]:
        if not self.is_main:
            self._send(0, [mine])
            return self._receive(0)
        parts = [mine, *(self._receive(rank)[0] for rank in range(1, self.size))]
        for rank in range(1, self.size):
            self._send(rank, parts)
        return parts

    def _send(self, rank: int, parts: list[bytes]) -> None:
        framed = b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        try:
            self._links[rank].sendall(_LENGTH.pack(len(parts)) + framed)
        except OSError as error:
            raise self._lost(rank, error) from error

    def _receive(self, rank: int) -> list[bytes]:
        try:
            (count,) = _LENGTH.unpack(_read(self._links[rank], _LENGTH.size))
            return [_read(self._links[rank], _LENGTH.unpack(_read(self._links[rank], 8))[0]) for _ in range(count)]
        except OSError as error:
            raise self._lost(rank, error) from error

    def _lost(self, rank: int, error: OSError) -> WorldError:
        return WorldError(
            f"Rank {self.rank} lost its peers: rank {rank} is gone ({error.strerror or error}). Their own logs say why "
            "they ended."
        )

    # -- how they meet

    def _receive_all(self, path: Path, deadline: float, timeout_s: float) -> None:
        """Rank 0: say where it is, and take in who shows the word that stands there."""
        word = secrets.token_hex(16)
        with listen(self.place) as listener:
            path.parent.mkdir(parents=True, exist_ok=True)
            meeting = {"host": own_address(self.place), "port": listener.getsockname()[1], "word": word}
            files.write_json(path, meeting, mode=0o600)
            while len(self._links) < self.size - 1:
                listener.settimeout(max(deadline - time.monotonic(), 0.001))
                try:
                    link, _ = listener.accept()
                except TimeoutError as error:
                    absent = [str(rank) for rank in range(1, self.size) if rank not in self._links]
                    raise self._waited(timeout_s, f"rank {listing(absent)}") from error
                with contextlib.suppress(OSError, ValueError):
                    link.settimeout(10.0)
                    theirs, rank = _read(link, 40).decode().split()
                    if secrets.compare_digest(theirs, word):
                        link.sendall(b"!")
                        self._links[int(rank)] = link
        path.unlink(missing_ok=True)

    def _find_main(self, path: Path, deadline: float, timeout_s: float) -> socket.socket:
        wait_s = 0.02
        while time.monotonic() < deadline:
            # OSError, too: the file may be of an earlier start, where nobody listens any more.
            with contextlib.suppress(OSError):
                meeting = read_meeting(path)
                link = socket.create_connection((meeting["host"], meeting["port"]), timeout=10.0)
                with contextlib.suppress(OSError):
                    link.sendall(f"{meeting['word']} {self.rank:7d}".encode())
                    if _read(link, 1) == b"!":
                        return link
                link.close()
            time.sleep(wait_s)
            wait_s = min(2 * wait_s, 0.5)
        raise self._waited(timeout_s, f"rank 0, which is to write {path}")

    def _waited(self, timeout_s: float, for_whom: str) -> WorldError:
        return WorldError(
            f"Rank {self.rank} of {self.size} waited {timeout_s:.0f} s for {for_whom}. Look at the log of the missing "
            "one, or whether its node can reach this one."
        )


def _read(link: socket.socket, size_bytes: int) -> bytes:
    parts = bytearray()
    while len(parts) < size_bytes:
        part = link.recv(min(size_bytes - len(parts), 1 << 20))
        if not part:
            raise ConnectionResetError("the connection was closed")
        parts += part
    return bytes(parts)
