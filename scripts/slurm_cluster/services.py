"""The daemons that are no hosts: munge, the database, accounting and the controller."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable

from slurm_cluster import configuration, processes
from slurm_cluster.place import ACCOUNT, NODES, Place, State
from slurm_cluster.tools import FailedError, run, until

#: a second QOS beside Slurm's `normal`
SHORT_QOS, SHORT_MAX_WALL = "short", "00:10:00"


def start(place: Place, role: str, command: list[str], env: dict[str, str], ready: Callable[[], bool]) -> None:
    """Start a daemon and wait until it is ready; raises FailedError with its log if it ends before."""
    process = processes.start(place, role, command, env)
    if not until(lambda: process.poll() is not None or ready(), timeout_s=60) or process.poll() is not None:
        raise FailedError(f"{role} did not start. It said:\n{last_words(place, role)}")


def last_words(place: Place, role: str) -> str:
    """The ends of a daemon's log and of its output: after a failed start nothing is left to look into."""
    found = []
    for path in (place.logs / f"{role}.out", place.logs / f"{role}.log"):
        if path.exists():
            found += path.read_text(errors="replace").splitlines()[-5:]
    return "\n".join(found) or "nothing"


def start_munge(place: Place, env: dict[str, str]) -> None:
    folder = place.munge_socket.parent
    command = ["munged", "--foreground", f"--socket={place.munge_socket}"]
    command += [f"--{name}-file={folder}/{name}" for name in ("key", "pid", "log", "seed")]
    start(place, "munged", command, env, ready=place.munge_socket.exists)


def create_database(place: Place, env: dict[str, str]) -> subprocess.Popen[bytes]:
    """Begin to write its system tables, which takes some seconds."""
    folder = place.database_socket.parent
    folder.mkdir(mode=0o711)
    run("chown", "mysql:mysql", folder)
    command = [
        "mariadb-install-db",
        *configuration.database_options(place),
        "--skip-test-db",
        "--skip-name-resolve",
        "--force",
    ]
    command += ["--auth-root-authentication-method=socket", "--auth-root-socket-user=root"]
    return processes.start(place, "installer", command, env)


def start_accounting(place: Place, state: State, env: dict[str, str], database: subprocess.Popen[bytes]) -> None:
    if database.wait(timeout=120):
        raise FailedError(f"mariadb-install-db failed. It said:\n{last_words(place, 'installer')}")
    env = {**env, "MYSQL_UNIX_PORT": str(place.database_socket)}
    command = ["mariadbd", *configuration.database_options(place)]
    start(place, "mariadbd", command, env, ready=place.database_socket.exists)
    start(place, "slurmdbd", ["slurmdbd", "-D"], env, ready=lambda: answers(place, "sacctmgr", "list", "cluster"))
    commands = [
        f"add cluster {configuration.CLUSTER}",
        f"add account {ACCOUNT} cluster={configuration.CLUSTER} description=lab organization=lab",
        f"add qos {SHORT_QOS} MaxWall={SHORT_MAX_WALL}",
        f"add user {state.user} account={ACCOUNT} qos=normal,{SHORT_QOS} defaultqos=normal",
    ]
    run("sacctmgr", "--immediate", text="\n".join(commands) + "\n", env=place.environment())


def start_controller(place: Place) -> None:
    start(
        place,
        "slurmctld",
        ["slurmctld", "-D"],
        place.environment(),
        ready=lambda: answers(place, "scontrol", "ping") and answers(place, "squeue"),
    )


def stop_controller(place: Place) -> None:
    """As an administrator would: it saves its state first."""
    if not processes.end(processes.daemons(place, "slurmctld"), signal.SIGTERM, timeout_s=30):
        raise FailedError("The controller did not end within half a minute.")


def answers(place: Place, *command: str) -> bool:
    return run(*command, env=place.environment(), check=False).returncode == 0


def node_states(place: Place) -> dict[str, str]:
    """As sinfo shows them, empty where the controller does not answer."""
    # sinfo itself would ask a dead controller for nine seconds.
    if not answers(place, "scontrol", "ping"):
        return {}
    shown = run("sinfo", "-hN", "--partition=batch", "--format=%N %T", env=place.environment(), check=False)
    return dict(line.split() for line in shown.stdout.splitlines())  # type: ignore[misc]


def idle(place: Place) -> bool:
    return list(node_states(place).values()) == ["idle"] * len(NODES)
