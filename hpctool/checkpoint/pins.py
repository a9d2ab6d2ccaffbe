"""Pins: a checkpoint that somebody else still needs is spared by retention, whoever they are.

A pin is an empty file `.pin-<checkpoint>--<who>` beside the checkpoint, which itself is never changed. Retention takes
a folder's name away first and then looks for pins once more; who pins looks for the folder afterwards. So of the two at
once either retention sees the pin and gives the name back, or the pin finds no folder and says so.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hpctool import files
from hpctool.errors import InputError

_PIN = ".pin-"
_BETWEEN = "--"
#: as long as retention may need to give a name back
_PATIENCE_S = 2.0


def pin(checkpoint: Path, who: str) -> Path:
    """Keep a checkpoint until `unpin`; `who` is a word that says for whom. The pin.

    Raises InputError where the checkpoint is gone or `who` cannot be part of a name, OSError.
    """
    if not who or not all(c.isalnum() or c in "-_." for c in who):
        raise InputError(f"'{who}' cannot name a pin; give letters, digits, '-', '_' and '.'.")
    mark = checkpoint.parent / f"{_PIN}{checkpoint.name}{_BETWEEN}{who}"
    files.create(mark, b"")
    deadline = time.monotonic() + _PATIENCE_S
    while not checkpoint.is_dir():
        if time.monotonic() > deadline:
            mark.unlink(missing_ok=True)
            raise InputError(f"{checkpoint} cannot be pinned: it is gone. Take a newer one.")
        time.sleep(0.05)
    return mark


def unpin(checkpoint: Path, who: str) -> None:
    """Let go of what `pin` kept for `who`; it goes when retention next comes by."""
    (checkpoint.parent / f"{_PIN}{checkpoint.name}{_BETWEEN}{who}").unlink(missing_ok=True)


@contextmanager
def kept(checkpoint: Path, who: str) -> Iterator[Path]:
    """Keep a checkpoint for the length of a block."""
    pin(checkpoint, who)
    try:
        yield checkpoint
    finally:
        unpin(checkpoint, who)


def pinned(names: Iterable[str]) -> set[str]:
    """Which checkpoints the pins among a folder's names keep."""
    return {name.removeprefix(_PIN).partition(_BETWEEN)[0] for name in names if name.startswith(_PIN)}
