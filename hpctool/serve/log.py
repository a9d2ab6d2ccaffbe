"""What a server says in its log, which may lie on a full disk: then it is not said, and the server goes on."""

from __future__ import annotations

import contextlib
import sys


def say(text: str) -> None:
    """One message for stdout; it is lost where the log cannot be written."""
    # ValueError: the stream was closed.
    with contextlib.suppress(OSError, ValueError):
        print(text, flush=True)


def say_error(text: str) -> None:
    """One message for stderr; it is lost where the log cannot be written."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)
