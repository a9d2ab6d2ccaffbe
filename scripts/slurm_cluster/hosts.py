"""Four hosts on one machine: a network namespace each, and what their file systems show."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from slurm_cluster import processes
from slurm_cluster.place import NODES, Place, State
from slurm_cluster.tools import RefusedError, run, until

NAMESPACES = Path("/run/netns")
NAMES = Path("/etc/hosts")


def paths(state: State) -> list[Path]:
    return [NAMESPACES / name for name in state.namespaces]


def free_network() -> str:
    """The first of 10.77.0, 10.78.0, … that this machine does not use yet."""
    routes = run("ip", "-4", "route", "show", "table", "all").stdout
    for number in range(77, 256):
        if f"10.{number}." not in routes:
            return f"10.{number}.0"
    raise RefusedError("All networks from 10.77.0.0 to 10.255.0.0 are in use here.")


def check_allowed() -> None:
    """Raises RefusedError where no namespaces may be made, as in most containers."""
    trial = [*unshare("--net", "--uts"), "sh", "-c", "hostname n1 && ip link add type veth && mount --bind /tmp /mnt"]
    done = subprocess.run(trial, capture_output=True, text=True)
    if done.returncode:
        raise RefusedError(
            "This machine does not let root make network namespaces; a container needs the capabilities "
            f"SYS_ADMIN and NET_ADMIN ({done.stderr.strip().splitlines()[-1]})."
        )


def unshare(*namespaces: str) -> list[str]:
    """The beginning of a command whose mounts are its own."""
    own_mounts = Path(__file__).with_name("own_mounts.py")
    return ["unshare", "--mount", *namespaces, "--propagation", "unchanged", sys.executable, str(own_mounts)]


def within(name: str) -> list[str]:
    """The beginning of a command in that network namespace; `ip -n` would not do in a chroot."""
    return ["nsenter", f"--net={NAMESPACES / name}"]


def connect(state: State) -> None:
    """A bridge, and a cable from it to each node and to the controller."""
    for name in state.namespaces:
        run("ip", "netns", "add", name)
    lines = ["link add bridge type bridge", "link set bridge up"]
    for node in NODES:
        lines += [
            f"link add {node} type veth peer name eth0 netns {state.namespace(node)}",
            f"link set {node} master bridge up",
        ]
    run(*within(state.switch), "ip", "-batch", "-", text="\n".join(lines))
    run("ip", "link", "add", state.cable, "type", "veth", "peer", "name", "controller", "netns", state.switch)
    run(*within(state.switch), "ip", "link", "set", "controller", "up", "master", "bridge")
    for node in NODES:
        inside = ["link set lo up", f"address add {state.address(node)}/24 dev eth0", "link set eth0 up"]
        run(*within(state.namespace(node)), "ip", "-batch", "-", text="\n".join(inside))
    outside = [f"address add {state.controller_address}/24 dev {state.cable}", f"link set {state.cable} up"]
    run("ip", "-batch", "-", text="\n".join(outside))


def disconnect(state: State) -> None:
    """With its namespace goes everything in it, and the other end of each cable."""
    present = run("ip", "netns", "list", check=False).stdout.split()
    for path in paths(state):
        if path.name in present:
            run("ip", "netns", "delete", path.name)
        path.unlink(missing_ok=True)
    # The kernel removes a namespace in its own time.
    run("ip", "link", "delete", state.cable, check=False)
    until(lambda: run("ip", "link", "show", state.cable, check=False).returncode != 0, timeout_s=10)


def closed_to_others(path: Path) -> Path | None:
    """The first folder on the way to `path` that an ordinary user may not pass, None if the way is free."""
    for folder in (*reversed(path.parents), path):
        if folder.is_dir() and not folder.stat().st_mode & 0o001:
            return folder
    return None


def to_open(wanted: Iterable[Path]) -> list[str]:
    """Of these paths, the ones behind a closed door: a Python or a checkout below /root, mostly.

    Raises RefusedError if such a path is itself closed: it was not meant for others.
    """
    opened: list[str] = []
    for path in sorted({path.resolve() for path in wanted}):
        door = closed_to_others(path)
        if door == path:
            raise RefusedError(f"Jobs run as an ordinary user, who may not read {path}: `chmod o+rx {path}`.")
        if door is not None and not any(path.is_relative_to(other) for other in opened):
            opened.append(str(path))
    return opened


def view(place: Place, state: State, host: str) -> str:
    """Shell lines that make a new mount namespace look like that host."""
    lines = [
        "set -e",
        f"mount --bind {place.slurm_conf.parent}/hosts {NAMES}",
        f"mount --bind {shlex.quote(str(place.scratch(host)))} /var/tmp",
    ]
    # A closed folder such as /root is covered by an empty one that holds only what is to be seen.
    doors = []
    for number, path in enumerate(state.opened):
        aside = place.folder / "aside" / str(number)
        aside.mkdir(parents=True, exist_ok=True)
        lines.append(f"mount --bind {shlex.quote(path)} {aside}")
        door = closed_to_others(Path(path))
        if door is not None and door not in doors:
            doors.append(door)
    lines += [f"mount -t tmpfs -o mode=755 tmpfs {shlex.quote(str(door))}" for door in doors]
    for number, path in enumerate(state.opened):
        lines.append(f"mkdir -p {shlex.quote(path)}")
        lines.append(f"mount --move {place.folder}/aside/{number} {shlex.quote(path)}")
    return "\n".join(lines)


def start_login(place: Place, state: State, env: dict[str, str]) -> None:
    """A process that holds the file systems which the ordinary user sees on this machine itself."""
    script = f"{view(place, state, 'login')}\nexec sleep infinity"
    processes.start(place, "login", [*unshare(), "sh", "-c", script], env)


def start_node(place: Place, state: State, node: str, env: dict[str, str]) -> subprocess.Popen[bytes]:
    # /sys shows the network cards of the namespace that it was mounted in.
    script = f"{view(place, state, node)}\nhostname {node}\nmount -t sysfs sysfs /sys || true\nexec slurmd -D -N {node}"
    command = [*within(state.namespace(node)), *unshare("--uts"), "sh", "-c", script]
    return processes.start(place, f"slurmd-{node}", command, env)


def set_cable(state: State, node: str, up: bool) -> None:
    run(*within(state.switch), "ip", "link", "set", node, "up" if up else "down")


def set_read_only(pid: int, folder: Path) -> None:
    """Where this process lives, nothing new can be made in a folder; what it holds already stays as it is."""
    lines = ["mount --bind . .", 'mount -o remount,bind,ro "$PWD"']
    lines.append('for inner in "$PWD"/*; do')
    # Of an empty folder the shell makes the pattern itself.
    lines.append('[ ! -e "$inner" ] || { mount --bind "$inner" "$inner"; mount -o remount,bind,rw "$inner"; }; done')
    run(*_where_lives(pid), f"--wdns={folder}", "sh", "-ec", "\n".join(lines))


def hide(pid: int, folder: Path) -> None:
    """Where this process lives, a folder is there and empty."""
    run(*_where_lives(pid), "mount", "-t", "tmpfs", "none", str(folder))


def _where_lives(pid: int) -> list[str]:
    return ["nsenter", f"--mount=/proc/{pid}/ns/mnt", f"--root=/proc/{pid}/root"]


def cut_nodes(state: State) -> list[str]:
    """Nodes whose cable is cut."""
    shown = run(*within(state.switch), "ip", "-oneline", "link", "show", check=False).stdout.splitlines()
    return [node for node in NODES for line in shown if f" {node}@" in line and "UP" not in line.split("<")[1]]
