"""What one node of the doctor's probe finds: python -m hpctool.launch.slurm.probe_node <folder>, under srun.

Every rank tells what it is and what it can import; then the ranks look at each other's files, race for names, and
compare their clocks. found-<rank>.json is what came of it.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import socket
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.place import Place, place_from_environment
from hpctool.rendezvous import addresses

#: What jobs import; the same names are looked up where the doctor runs.
IMPORTS = ("hpctool", "numpy", "torch", "safetensors")
PRIMITIVES: tuple[files.Primitive, ...] = ("link", "symlink")
ROUNDS = 20
#: Attribute caches of network file systems hold what they have seen for up to a minute.
PATIENCE_S = 90.0
_PING_PONGS = 5


def versions() -> dict[str, str]:
    """The versions of what jobs import, as installed here; nothing is imported."""
    found = {}
    for name in IMPORTS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(folder: Path) -> int:
    """Look, and write down what was found; 0 unless the folder itself fails."""
    place = place_from_environment()
    found: dict[str, Any] = {
        "rank": place.rank,
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "executable": sys.executable,
        "scontrol": shutil.which("scontrol") is not None,
        "interfaces": {name: address for name, address in addresses().items() if name != "lo"},
        "versions": versions(),
        "not_importable": _imports(),
        "token": _read(folder / "token.json", timeout_s=PATIENCE_S),
    }
    files.write_json(folder / f"here-{place.rank}.json", found["host"])
    others = [rank for rank in range(place.size) if rank != place.rank]
    found["unseen"] = [r for r in others if _read(folder / f"here-{r}.json", timeout_s=PATIENCE_S) is None]
    if not found["unseen"]:
        found["won"] = {primitive: _race(folder, place, primitive) for primitive in PRIMITIVES}
        if place.size > 1:
            found["clock"] = _clock(folder, place)
    files.write_json(folder / f"found-{place.rank}.json", found)
    return 0


def _imports() -> dict[str, str]:
    """What cannot be imported here, and why."""
    found = {}
    for name in IMPORTS:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a broken installation raises
            found[name] = f"{type(error).__name__}: {error}".splitlines()[0]
    return found


def _read(path: Path, timeout_s: float) -> Any:
    """A JSON file that somebody else writes, as soon as it can be seen; None if it never comes."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        try:
            return files.read_json(path)
        except FileNotFoundError:
            if time.monotonic() > deadline_s:
                return None
        # Looking at the folder makes a network file system ask its server once more.
        os.listdir(path.parent)
        time.sleep(0.002)


def _race(folder: Path, place: Place, primitive: files.Primitive) -> list[bool] | str:
    """Which of some names were this rank's; all ranks try to create each at the same time. A text: why that fails."""
    start = folder / f"start-{primitive}.json"
    if place.rank == 0:
        files.write_json(start, time.time() + 0.5)
    begin_s = _read(start, PATIENCE_S)
    won = []
    for number in range(ROUNDS):
        time.sleep(max(0.0, min(1.0, begin_s + 0.02 * number - time.time())))
        try:
            won.append(files.create(folder / f"race-{primitive}-{number}", b"%d" % place.rank, primitive=primitive))
        except OSError as error:
            return error.strerror or str(error)
    return won


def _clock(folder: Path, place: Place) -> dict[str, float]:
    """How far rank 1's clock is ahead of rank 0's, by letters to and fro; the quickest exchange counts."""
    best = {"ahead_s": 0.0, "uncertain_s": float("inf")}
    for number in range(_PING_PONGS):
        ping, pong = folder / f"ping-{number}.json", folder / f"pong-{number}.json"
        if place.rank == 0:
            sent_s = time.time()
            files.write_json(ping, sent_s)
            answer = _read(pong, PATIENCE_S)
            back_s = time.time()
            if answer is None:
                return {}
            uncertain_s = ((back_s - sent_s) - (answer[1] - answer[0])) / 2
            if uncertain_s < best["uncertain_s"]:
                ahead_s = ((answer[0] - sent_s) + (answer[1] - back_s)) / 2
                best = {"ahead_s": round(ahead_s, 4), "uncertain_s": round(uncertain_s, 4)}
        elif place.rank == 1:
            if _read(ping, PATIENCE_S) is None:
                return {}
            received_s = time.time()
            files.write_json(pong, [received_s, time.time()])
    return best if place.rank == 0 else {}


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
