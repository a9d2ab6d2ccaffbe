"""Stand-ins for Slurm's programs: small shell scripts on PATH that say what a test has written down, and count."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from hpctool.launch.private import private_folder
from hpctool.launch.slurm import queue

_PROGRAM = """#!/bin/sh
echo "$0 $*" >> {folder}/calls
env > {folder}/{name}.env
sleep $(cat {folder}/{name}.delay 2>/dev/null || echo 0)
if [ -e {folder}/{name}.error ]; then cat {folder}/{name}.error >&2; exit 1; fi
cat {folder}/{name}.answer 2>/dev/null
"""


class StandIns:
    """A folder of programs that stand for squeue, sacct and scontrol."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        folder.mkdir()
        for name in ("squeue", "sacct", "scontrol"):
            program = folder / name
            program.write_text(_PROGRAM.format(folder=folder, name=name))
            program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        # Another test may have asked another Slurm a moment ago.
        queue.QUEUE.forget()
        self.key = queue.cache_key()

    def says(self, *lines: str, name: str = "squeue") -> None:
        """What a program answers from now on."""
        (self.folder / f"{name}.error").unlink(missing_ok=True)
        (self.folder / f"{name}.answer").write_text("".join(f"{line}\n" for line in lines))

    def fails(self, text: str, name: str = "squeue") -> None:
        """With what a program refuses from now on."""
        (self.folder / f"{name}.error").write_text(f"{text}\n")

    def takes(self, seconds: float, name: str = "squeue") -> None:
        """How long a program takes from now on."""
        (self.folder / f"{name}.delay").write_text(str(seconds))

    def calls(self, name: str = "squeue") -> list[str]:
        """The command lines with which a program was called."""
        try:
            lines = (self.folder / "calls").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = (line.removeprefix(f"{self.folder}/") for line in lines)
        return [line for line in found if line.split(" ")[0] == name]

    def environ(self, name: str = "squeue") -> dict[str, str]:
        """The environment of a program's last call."""
        lines = (self.folder / f"{name}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def cache(self, name: str = "squeue") -> Path:
        """Where the shared answer lies."""
        return private_folder() / f"{name}-{self.key}.json"

    def forget(self) -> None:
        """Remove what the shells of this host share."""
        for path in private_folder().glob(f"*-{self.key}.*"):
            path.unlink()
        queue.QUEUE.forget()
