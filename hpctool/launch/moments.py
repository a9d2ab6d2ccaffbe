"""Moments of a rank: the points between which something may go wrong, told to whoever rehearses that (chaos/).

HPCTOOL_CHAOS names the socket of a rehearsal. At each moment the rank tells it (JSON, a line) and waits for a byte:
until it comes, the rank stands exactly there, and can be killed there. Without the variable nothing happens. A
rehearsal that is gone is forgotten, and the rank goes on.
"""

from __future__ import annotations

import json
import os
import socket
import threading
from typing import Literal

from hpctool.place import place_from_environment

#: Environment variable: where a rehearsal listens.
CHAOS = "HPCTOOL_CHAOS"

#: A rehearsal's two answers.
GO, SAVE = b".", b"s"

Moment = Literal["start", "resume", "step", "evaluate", "save", "written", "commit", "committed"]

# A rehearsal starts its ranks with it. To ask the environment at every step would cost a tiny one a hundredth.
_address = os.environ.get(CHAOS)
# A writer thread saves while the main thread takes steps: each has a line of its own.
_own = threading.local()


def reached(moment: Moment, step: int = 0, attempt: int = 0) -> bool:
    """Tell a rehearsal, where one listens, that this rank stands here; go on when it says so.

    The answer is whether it wants the step that begins now to be saved, whatever is due.

    `start`: the process runs · `resume`: a checkpoint is looked for · `step`, `evaluate`, `save`: begin now, after
    `step` steps · `written`: this rank's files are · `commit`: all of it is, but the ledger does not say so yet ·
    `committed`: now it does.
    """
    global _address
    if not _address:
        return False
    place = place_from_environment()
    said = {"moment": moment, "step": step, "attempt": attempt, "rank": place.rank, "pid": os.getpid()}
    try:
        if getattr(_own, "pid", 0) != os.getpid():
            _own.link, _own.pid = socket.socket(socket.AF_UNIX), os.getpid()
            _own.link.connect(_address)
        _own.link.sendall(json.dumps(said).encode() + b"\n")
        answer: bytes = _own.link.recv(1)
        if not answer:
            raise ConnectionResetError
    except OSError:
        _own.link.close()
        _address = None
        return False
    return answer == SAVE
