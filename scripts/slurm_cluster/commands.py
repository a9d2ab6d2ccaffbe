"""The command line of scripts/cluster."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from pathlib import Path

from slurm_cluster import faults, hosts, life, processes, services
from slurm_cluster.place import NODES, Place, Settings
from slurm_cluster.tools import FailedError, RefusedError, say

FOLDER = Path("/tmp/hpctool-cluster")
CHECKOUT = Path(__file__).resolve().parent.parent.parent
NOT_UP = 3


def up(place: Place, asked: argparse.Namespace) -> int:
    life.check(place)
    with place.alone(make=True):
        if place.state_json.exists():
            if services.node_states(place):
                say(f"It is up already, in {place.folder}.")
                return 0
            raise RefusedError(f"Half a cluster lies in {place.folder}; remove it first: scripts/cluster down.")
        readable = [CHECKOUT, Path(sys.base_prefix), Path(sys.prefix), *asked.readable]
        life.up(place, Settings(accounting=not asked.no_accounting), readable)
    script = sys.argv[0] if place.folder == FOLDER else f"{sys.argv[0]} --folder {place.folder}"
    say(f'Up: {len(NODES)} nodes. For this shell: eval "$({script} env)"; then sinfo, sbatch, squeue.')
    return 0


def down(place: Place, _: argparse.Namespace) -> int:
    if os.geteuid() != 0:
        raise RefusedError("Only root can take the cluster down.")
    if not place.folder.exists():
        say(f"There is no cluster in {place.folder}.")
        return 0
    with place.alone():
        if not life.down(place):
            say(f"There is no cluster in {place.folder}.")
    return 0


def status(place: Place, asked: argparse.Namespace) -> int:
    try:
        state = place.load()
    except RefusedError as error:
        print(json.dumps({"up": False, "reason": str(error)}) if asked.json else error)
        return NOT_UP
    nodes = services.node_states(place)
    shown = {
        "up": bool(nodes),
        "folder": str(place.folder),
        "slurm_conf": str(place.slurm_conf),
        "user": state.user,
        "nodes": nodes,
        "settings": vars(state.now),
        "as_user": faults.as_user(place, "") if processes.daemons(place, "login") else None,
    }
    if asked.json:
        print(json.dumps(shown, indent=2))
    else:
        print_status(place, shown)
    return 0 if nodes else NOT_UP


def print_status(place: Place, shown: dict[str, object]) -> None:
    nodes = dict(shown["nodes"])  # type: ignore[call-overload]
    print(f"folder      {place.folder}\nuser        {shown['user']}")
    print(f"controller  {'answers' if nodes else 'does not answer'}")
    cut = hosts.cut_nodes(place.load())
    for node in NODES:
        print(f"{node}          {nodes.get(node, 'unknown')}{', cut off' if node in cut else ''}")
    for name, value in dict(shown["settings"]).items():  # type: ignore[call-overload]
        print(f"{name:16} {value}")


def run_as_user(place: Place, asked: argparse.Namespace) -> int:
    place.load()
    command = [*faults.as_user(place, os.getcwd()), *asked.command]
    os.execvp(command[0], command)


def env(place: Place, _: argparse.Namespace) -> int:
    place.load()
    print(f"export SLURM_CONF={place.slurm_conf}")
    return 0


def fault(place: Place, asked: argparse.Namespace) -> int:
    """Everything that changes a cluster which is up."""
    if os.geteuid() != 0:
        raise RefusedError("Only root can do this to the cluster.")
    place.load()
    with place.alone():
        said = asked.change(place, asked)
    if said:
        print(said)
    return 0


def main() -> int:
    # Daemons lie where the PATH of ordinary users does not look.
    os.environ["PATH"] = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    # `scripts/cluster status | head` is no error.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    asked = parser().parse_args()
    place = Place(asked.folder.absolute())
    try:
        return int(asked.do(place, asked))
    except RefusedError as error:
        say(f"scripts/cluster: {error}")
        return 2
    except FailedError as error:
        say(f"scripts/cluster: {error}")
        return 1
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="scripts/cluster", description="A throwaway real Slurm on this machine.")
    text = "where it keeps everything; clusters in several folders do not meet (%(default)s)"
    top.add_argument("--folder", type=Path, default=FOLDER, help=text)
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, do: object, text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text)
        made.set_defaults(do=do)
        return made

    def change(name: str, do: object, text: str) -> argparse.ArgumentParser:
        made = command(name, fault, text)
        made.set_defaults(change=do)
        return made

    one = command("up", up, "start it; nothing happens where it is up already")
    one.add_argument("--no-accounting", action="store_true", help="no slurmdbd and no database, as at many sites")
    shown = "show this to the ordinary user, even if it lies below a closed folder such as /root"
    one.add_argument("--readable", type=Path, action="append", default=[], metavar="PATH", help=shown)
    command("down", down, "end it and remove everything but the installed packages; twice is fine")
    one = command("status", status, f"how it is; exit code 0 if it is up, {NOT_UP} if not")
    one.add_argument("--json", action="store_true")
    command("env", env, "print the line for a shell that is to use it")
    one = command("run-as-user", run_as_user, "run a command as the ordinary user")
    one.add_argument("command", nargs=argparse.REMAINDER)
    one = change("fail", faults.fail, "cut a node's cable: Slurm notices after 15 s, what runs there does not")
    one.add_argument("node", choices=NODES)
    one.add_argument("--now", action="store_true", help="and tell the controller at once that the node is down")
    one = change("read-only", faults.read_only, "one node can make nothing new in a folder any more")
    one.add_argument("node", choices=NODES)
    one.add_argument("path", type=Path)
    one = change("unmount", faults.unmount, "one node finds a folder empty, as where its file system is not mounted")
    one.add_argument("node", choices=NODES)
    one.add_argument("path", type=Path)
    one = change("heal", faults.heal, "take such a fault away and wait until Slurm uses the node")
    one.add_argument("node", choices=NODES)
    one = change("policy", faults.policy, "what happens to jobs in `batch` when `urgent` needs their nodes")
    one.add_argument("mode", choices=("REQUEUE", "CANCEL"))
    one.add_argument("grace_s", type=int, metavar="GRACE_S")
    one.add_argument("--user-signal", choices=("on", "off"), help="whether their own signal is sent then")
    one = change("preempt", faults.preempt, "submit an urgent job of somebody else; prints its id")
    one.add_argument("--nodes", default=",".join(NODES), help="n1,n3 (all of them)")
    one.add_argument("--seconds", type=int, default=3, help="how long it runs (%(default)s)")
    change("restart-controller", faults.restart_controller, "end it and start it; jobs run on")
    change("stop-controller", faults.stop_controller, "end it")
    change("start-controller", faults.start_controller, "start it again")
    one = change("limits", faults.limits, "limits that sites have")
    one.add_argument("--max-array-size", type=int, metavar="N")
    one.add_argument("--max-submit-jobs", type=int, metavar="N", help="of the ordinary user; 0: no limit")
    one.add_argument("--job-requeue", type=int, choices=(0, 1), help="whether jobs may be requeued without asking")
    one.add_argument("--accounting", choices=("on", "off"))
    change("reset", faults.reset, "no jobs, no faults, and the policy and limits of the beginning")
    return top
