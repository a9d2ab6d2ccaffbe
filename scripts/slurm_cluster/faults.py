"""What happens to clusters: nodes are lost, jobs preempted, controllers restarted, limits set."""

from __future__ import annotations

import argparse
import pwd
import re
from collections.abc import Callable
from pathlib import Path

from slurm_cluster import configuration, hosts, processes, services
from slurm_cluster.place import Place, Settings, State
from slurm_cluster.tools import FailedError, RefusedError, run, until


def as_user(place: Place, folder: str) -> list[str]:
    """The beginning of a command that is to run as the ordinary user, in that folder, on this machine."""
    name = place.load().user
    user = pwd.getpwnam(name)
    login = processes.daemons(place, "login")
    if not login:
        raise RefusedError("This cluster is not whole; take it down and up again.")
    command = ["nsenter", f"--mount=/proc/{login[0]}/ns/mnt", f"--root=/proc/{login[0]}/root"]
    command += [f"--setuid={user.pw_uid}", f"--setgid={user.pw_gid}"]
    command += [f"--wdns={folder}"] if folder else []
    own = {"HOME": place.home, "USER": name, "LOGNAME": name, "SHELL": user.pw_shell, "SLURM_CONF": place.slurm_conf}
    return [*command, "env", *(f"{name}={value}" for name, value in own.items())]


def fail(place: Place, asked: argparse.Namespace) -> None:
    hosts.set_cable(place.load(), asked.node, up=False)
    if asked.now:
        update(place, "node", asked.node, "State=DOWN", "Reason=cable")


def read_only(place: Place, asked: argparse.Namespace) -> None:
    change_folder(place, asked, hosts.set_read_only)


def unmount(place: Place, asked: argparse.Namespace) -> None:
    change_folder(place, asked, hosts.hide)


def change_folder(place: Place, asked: argparse.Namespace, how: Callable[[int, Path], None]) -> None:
    state = place.load()
    (slurmd,) = slurmds(place, asked.node)
    how(slurmd, asked.path)
    state.odd_folders = sorted({*state.odd_folders, asked.node})
    place.save(state)


def slurmds(place: Place, node: str) -> list[int]:
    """What a node has started bears its mark, too: jobs run on when their slurmd has ended."""
    return [pid for pid in processes.daemons(place, f"slurmd-{node}") if processes.name(pid) == "slurmd"]


def heal(place: Place, asked: argparse.Namespace) -> None:
    heal_nodes(place, [asked.node])


def heal_nodes(place: Place, nodes: list[str]) -> None:
    state = place.load()
    for node in nodes:
        hosts.set_cable(state, node, up=True)
        # Jobs run on, and zombies too until Slurm finds them.
        processes.end(slurmds(place, node))
        # slurmd registers when it starts: the controller would look for the node only after some time. Its file systems
        # are new ones.
        hosts.start_node(place, state, node, place.environment())
    state.odd_folders = sorted(set(state.odd_folders) - set(nodes))
    place.save(state)

    def taken_back() -> bool:
        left = set(nodes) & set(lost(place))
        for node in left:
            # Of a node that was drained, too, as Slurm does when a job does not end: that it is healthy again.
            run("scontrol", "update", f"nodename={node}", "State=RESUME", env=place.environment(), check=False)
        return not left

    if not until(taken_back, timeout_s=60, every_s=0.2):
        raise FailedError(f"Slurm does not take {' and '.join(nodes)} back; see {place.logs}.")


def lost(place: Place) -> list[str]:
    """Nodes that Slurm gives no jobs; those that do not answer have a star."""
    bad = re.compile(r"down|drain|fail|unk|\*")
    return [node for node, state in services.node_states(place).items() if bad.search(state)]


def update(place: Place, kind: str, name: str, *words: str) -> None:
    run("scontrol", "update", f"{kind}name={name}", *words, env=place.environment())


def policy(place: Place, asked: argparse.Namespace) -> None:
    state = place.load()
    state.now.preempt_mode, state.now.grace_s = asked.mode, asked.grace_s
    if asked.user_signal:
        state.now.user_signal = asked.user_signal == "on"
    apply(place, state)


def limits(place: Place, asked: argparse.Namespace) -> None:
    state = place.load()
    if asked.max_array_size is not None:
        state.now.max_array_size = asked.max_array_size
    if asked.job_requeue is not None:
        state.now.job_requeue = bool(asked.job_requeue)
    if asked.accounting is not None:
        if asked.accounting == "on" and not state.default.accounting:
            raise RefusedError("This cluster was started with --no-accounting.")
        state.now.accounting = asked.accounting == "on"
    if asked.max_submit_jobs is not None:
        if not state.default.accounting:
            raise RefusedError("MaxSubmitJobs needs accounting, and this cluster was started with --no-accounting.")
        state.now.max_submit_jobs = asked.max_submit_jobs or None
    apply(place, state)


def apply(place: Place, state: State) -> None:
    """Bring the cluster from what it was to what the state says, by the least that does it."""
    was = place.load().now
    now = state.now
    place.save(state)
    configuration.write_slurm_conf(place, state)
    if now.max_submit_jobs != was.max_submit_jobs:
        limit = -1 if now.max_submit_jobs is None else now.max_submit_jobs
        words = ("modify", "user", state.user, "set", f"MaxSubmitJobs={limit}")
        run("sacctmgr", "--immediate", *words, env=place.environment())
    if not services.answers(place, "scontrol", "ping"):
        return
    if (now.accounting, now.max_array_size) != (was.accounting, was.max_array_size):
        restart(place)
    elif (now.user_signal, now.job_requeue) != (was.user_signal, was.job_requeue):
        run("scontrol", "reconfigure", env=place.environment())
    elif (now.preempt_mode, now.grace_s) != (was.preempt_mode, was.grace_s):
        update(place, "partition", "batch", f"PreemptMode={now.preempt_mode}", f"GraceTime={now.grace_s}")


def preempt(place: Place, asked: argparse.Namespace) -> str:
    """Somebody else needs the nodes: root, whom no limit of the ordinary user touches."""
    nodes = asked.nodes.split(",")
    command = ["sbatch", "--parsable", "--partition=urgent", "--job-name=urgent", f"--nodelist={asked.nodes}"]
    command += [f"--nodes={len(nodes)}", "--ntasks-per-node=1", "--exclusive", "--output=/dev/null", "--chdir=/"]
    return run(*command, f"--wrap=sleep {asked.seconds}", env=place.environment()).stdout.strip()


def restart(place: Place) -> None:
    services.stop_controller(place)
    services.start_controller(place)


def restart_controller(place: Place, _: argparse.Namespace) -> None:
    restart(place)


def stop_controller(place: Place, _: argparse.Namespace) -> None:
    services.stop_controller(place)


def start_controller(place: Place, _: argparse.Namespace) -> None:
    if not processes.daemons(place, "slurmctld"):
        services.start_controller(place)


def reset(place: Place, asked: argparse.Namespace) -> None:
    """Fast where nothing is to be done: tests call it after each of them."""
    start_controller(place, asked)
    state = place.load()
    clear_jobs(place, state)
    if state.now != state.default:
        state.now = Settings(**vars(state.default))
        apply(place, state)
    # After a restart of the controller the nodes need a moment to be known again.
    until(lambda: "unknown" not in services.node_states(place).values(), timeout_s=10)
    if broken := sorted({*hosts.cut_nodes(state), *state.odd_folders, *lost(place)}):
        heal_nodes(place, broken)
    if not until(lambda: services.idle(place), timeout_s=60):
        raise FailedError(f"Some nodes do not become idle: {services.node_states(place)}.")


def clear_jobs(place: Place, state: State) -> None:
    env = place.environment()
    if not run("squeue", "--noheader", "--format=%A", env=env).stdout.strip():
        return
    run("scancel", "--state=PENDING", f"--user={state.user}", env=env)
    run("scancel", f"--user={state.user}", env=env)
    run("scancel", "--user=root", env=env)
    # Slurm gives the jobs some seconds to end; here nobody needs what they would save.
    jobs = set(processes.of_user(state.user)) & set(processes.within(hosts.paths(state)))
    processes.end(jobs)
    until(lambda: not run("squeue", "--noheader", env=env).stdout.strip(), timeout_s=30)
