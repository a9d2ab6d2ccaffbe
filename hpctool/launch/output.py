"""Where a rank's words go: into its log, and for inline runs on the terminal as well."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO


class _Both:
    """A text stream that writes to the terminal and to a log."""

    def __init__(self, terminal: TextIO, log: TextIO) -> None:
        self._terminal = terminal
        self._log = log

    def write(self, text: str) -> int:
        self._log.write(text)
        self._to_terminal(lambda: self._terminal.write(text))
        return len(text)

    def flush(self) -> None:
        self._log.flush()
        self._to_terminal(self._terminal.flush)

    def _to_terminal(self, action: Callable[[], object]) -> None:
        """A terminal that was closed, or a pipe whose reader has left, must not end the work: the log has it all."""
        try:
            action()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):
                # From now on nobody reads it, nor what Python still has to write there as it ends.
                with contextlib.suppress(OSError), open(os.devnull, "wb") as nowhere:
                    os.dup2(nowhere.fileno(), self._terminal.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self._terminal, name)


def is_doubled() -> bool:
    """Whether what is written here goes to a terminal and a log; a child's words must then be passed on by hand."""
    return isinstance(sys.stdout, _Both) or isinstance(sys.stderr, _Both)


def last_lines(log: Path, num_lines: int = 1) -> str:
    """The last words in a log. It may be huge, so only the last 16 KB are looked at; empty where there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 14)))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    # mpirun ends its words with a zero byte.
    return "\n".join(text.replace("\0", "").strip().splitlines()[-num_lines:])


@contextlib.contextmanager
def to_log(path: Path, *, keep_terminal: bool) -> Iterator[None]:
    """Write stdout and stderr into a rank's log; without a terminal to keep, the words of C libraries too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", buffering=1, encoding="utf-8") as log:
        if keep_terminal:
            before = sys.stdout, sys.stderr
            sys.stdout, sys.stderr = _Both(before[0], log), _Both(before[1], log)
            try:
                yield
            finally:
                sys.stdout, sys.stderr = before
            return
        sys.stdout.flush()
        sys.stderr.flush()
        kept = [os.dup(number) for number in (1, 2)]
        for number in (1, 2):
            os.dup2(log.fileno(), number)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, old in zip((1, 2), kept, strict=True):
                os.dup2(old, number)
                os.close(old)
