"""Somebody's own program as a process that cannot get lost: started, told to stop once, and ended with all it left."""

from __future__ import annotations

import codecs
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from hpctool.errors import OperationError
from hpctool.launch import keeper, output

#: A keeper that was told to end everything has this long for it.
_END_S = 30.0
#: How long the rest of a line is waited for before its beginning is shown.
_LINE_S = 0.1
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Ending:
    """How a program ended: its exit code, negative for a signal."""

    code: int
    #: whether it ignored the signal that it was told to stop with, and so ended for reasons of its own
    ignored: bool = False


class Program:
    """A program under its keeper (keeper.py). Leaving the `with` block ends it and whatever it has started."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], cwd: Path, stop_signal: signal.Signals
    ) -> None:
        """Start it; what it says goes where this process's words go. Raises OperationError where it cannot start."""
        self._link, theirs = socket.socketpair()
        streams, self._pumps = _streams()
        number = theirs.fileno()
        own = [sys.executable, "-I", "-S", keeper.__file__, str(number), str(int(stop_signal))]
        try:
            with theirs:
                self._keeper = subprocess.Popen(
                    [*own, *command],
                    env=environ,
                    cwd=cwd,
                    pass_fds=[number],
                    stdin=subprocess.DEVNULL,
                    # Out of reach of Ctrl-C and of signals to our group: it is told once, through its keeper.
                    start_new_session=True,
                    stdout=streams[0] if streams else None,
                    stderr=streams[1] if streams else None,
                )
        except OSError as error:
            raise OperationError(f"The program cannot be started in {cwd}: {error.strerror}.") from error
        finally:
            for stream in streams:
                os.close(stream)
        words = self._read()
        if words[:1] == ["cannot"]:
            self.close()
            raise OperationError(f"{command[0]} cannot be started: {' '.join(words[2:])}.")
        self.pid = int(words[1]) if words else 0

    def wait(self, timeout_s: float) -> Ending | None:
        """How it ended, or None if it runs on after this time."""
        if not select.select([self._link], [], [], timeout_s)[0]:
            return None
        words = self._read()
        if words:
            return Ending(int(words[1]), words[2] == "1")
        # Somebody killed the keeper, and the kernel the program with it; what that had started is in its group.
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        return Ending(-signal.SIGKILL)

    def tell(self, number: signal.Signals) -> None:
        """Send it a signal, unless that has reached it already. Only the first call does anything."""
        self._write(f"tell {int(number)}")

    def kill(self) -> None:
        """End it and all it has started, now."""
        self._write("kill")

    def close(self) -> None:
        """End what still runs, and wait for that and for its last words."""
        self._link.close()
        self._keeper.wait(_END_S)
        for pump in self._pumps:
            pump.join(_END_S)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> list[str]:
        """The keeper's next words; none if it is gone."""
        line = bytearray()
        while not line.endswith(b"\n"):
            part = self._link.recv(1)
            if not part:
                return []
            line += part
        return line.decode(errors="replace").split()

    def _write(self, line: str) -> None:
        with contextlib.suppress(OSError):
            self._link.sendall(f"{line}\n".encode())


def _streams() -> tuple[list[int], list[threading.Thread]]:
    """The program's stdout and stderr, and the threads that pass on what comes there.

    In a job the log is file 1 and 2, and the program writes into it itself. At a terminal, where everything is written
    twice, that is done here.
    """
    if not output.is_doubled():
        return [], []
    streams, pumps = [], []
    for target in (sys.stdout, sys.stderr):
        readable, writable = os.pipe()
        streams.append(writable)
        pumps.append(threading.Thread(target=_pump, args=(readable, target), daemon=True))
        pumps[-1].start()
    return streams, pumps


def _pump(readable: int, target: TextIO) -> None:
    """Pass on whole lines, so that those of stdout and stderr do not mix; what is no line yet, after a moment."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pending, data = "", b"-"
    while data:
        if pending and not select.select([readable], [], [], _LINE_S)[0]:
            cut = len(pending)
        else:
            data = os.read(readable, _CHUNK_BYTES)
            pending += decoder.decode(data, final=not data)
            is_long = not data or len(pending) > _CHUNK_BYTES
            cut = len(pending) if is_long else 1 + max(pending.rfind("\n"), pending.rfind("\r"))
        # A closed terminal must not end the program: the log has it all the same.
        with contextlib.suppress(OSError, ValueError):
            target.write(pending[:cut])
            target.flush()
        pending = pending[cut:]
    os.close(readable)
