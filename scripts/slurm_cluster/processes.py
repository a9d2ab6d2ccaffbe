"""Every process of a cluster: how it is started, found again, and ended by its id."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from slurm_cluster.place import Place
from slurm_cluster.tools import until

#: in the environment of every daemon, so that it is found even if the script that started it was killed at once
MARK = "HPCTOOL_CLUSTER_DAEMON"


def mark(place: Place, role: str) -> str:
    return f"{place.load().name}:{role}"


def start(place: Place, role: str, command: Sequence[str | Path], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a daemon in a session of its own: Ctrl-C in the terminal is not for it."""
    with (place.logs / f"{role}.out").open("ab") as out:
        return subprocess.Popen(
            list(map(str, command)),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            cwd="/",
            env={**env, MARK: mark(place, role)},
        )


def daemons(place: Place, role: str = "") -> list[int]:
    """All of them, or those of one role."""
    wanted = f"{MARK}={mark(place, role)}".encode()
    found = []
    for pid in alive():
        variables = _read(pid, "environ").split(b"\0")
        if wanted in variables if role else any(variable.startswith(wanted) for variable in variables):
            found.append(pid)
    return found


def neighbours(place: Place) -> list[Place]:
    """The other clusters that are up on this machine."""
    folders = set()
    for pid in here():
        variables = dict(line.partition(b"=")[::2] for line in _read(pid, "environ").split(b"\0"))
        if MARK.encode() in variables and b"SLURM_CONF" in variables:
            folders.add(Path(os.fsdecode(variables[b"SLURM_CONF"])).parent.parent)
    return [Place(folder) for folder in sorted(folders - {place.folder}) if Place(folder).state_json.exists()]


def marked(pid: int) -> bool:
    """Whether a process belongs to some throwaway cluster."""
    return any(variable.startswith(f"{MARK}=".encode()) for variable in _read(pid, "environ").split(b"\0"))


def of_user(name: str) -> list[int]:
    try:
        uid = pwd.getpwnam(name).pw_uid
    except KeyError:
        return []
    return [pid for pid in here() if _owner(pid) == uid]


def within(namespaces: Iterable[Path]) -> list[int]:
    """The processes that live in one of these network namespaces, whoever started them."""
    inodes = set()
    for namespace in namespaces:
        if namespace.exists():
            inodes.add(namespace.stat().st_ino)
    return [pid for pid in alive() if _namespace(pid, "net") in inodes]


def end(pids: Iterable[int], number: signal.Signals = signal.SIGKILL, timeout_s: float = 10) -> bool:
    """Signal these and wait until they are gone; False if some are not."""
    pids = list(pids)
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
    return until(lambda: not set(pids) & set(alive()), timeout_s)


def name(pid: int) -> str:
    return _read(pid, "comm").decode(errors="replace").strip()


def alive() -> Iterator[int]:
    """All process ids but those of the dead whom nobody has buried yet."""
    for name in os.listdir("/proc"):
        if name.isdigit() and (stat := _read(int(name), "stat")) and stat.rpartition(b")")[2].split()[0] not in b"ZX":
            yield int(name)


def here() -> list[int]:
    """Those of this machine itself: in a container, who has the same number is somebody else."""
    own = os.stat("/proc/self/ns/pid").st_ino
    return [pid for pid in alive() if _namespace(pid, "pid") == own]


def _read(pid: int, name: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/{name}").read_bytes()
    except OSError:
        return b""


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None


def _namespace(pid: int, kind: str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return None
