"""Running programs, waiting and writing: what every part of the cluster's script does."""

from __future__ import annotations

import contextlib
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


class RefusedError(Exception):
    """It cannot or must not run here: one sentence, exit code 2."""


class FailedError(Exception):
    """It should have worked: what failed and what it said, exit code 1."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def run(
    *command: str | Path, env: Mapping[str, str] | None = None, text: str | None = None, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end with `text` as its input; raises FailedError with what it said."""
    done = subprocess.run(list(map(str, command)), input=text or "", capture_output=True, text=True, env=env)
    if check and done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
        raise FailedError(f"`{' '.join(map(str, command))}` ended with {done.returncode}: {said}")
    return done


def until(true: Callable[[], bool], timeout_s: float, every_s: float = 0.05) -> bool:
    """Wait until something is so; False if it was not within the time."""
    end = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(every_s)
    return True


@contextlib.contextmanager
def machine() -> Iterator[None]:
    """Take from the machine what clusters share, and give it back, one cluster after the other."""
    # Any folder that is there on every machine: its lock leaves nothing behind.
    folder = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def write(path: Path, text: str, mode: int = 0o644) -> None:
    """A whole file at once: others read it while it changes."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.touch(mode)
    new.chmod(mode)
    new.write_text(text)
    new.replace(path)
