"""From nothing to a cluster, and back to nothing."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from slurm_cluster import configuration, hosts, processes, services
from slurm_cluster.place import NODES, Place, Settings, State
from slurm_cluster.tools import FailedError, RefusedError, machine, run, say, until

#: Debian's packages, each with a program that only it brings
PACKAGES = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "slurmdbd": "slurmdbd",
    "slurm-client": "sbatch",
    "munge": "munged",
    "mariadb-server": "mariadbd",
    "iproute2": "ip",
}
#: Slurm loads libpmix.so by this name, which libpmix2 does not have.
PMIX = "libpmix-dev"
#: what the packages would have this machine start at every boot
SERVICES = {name: name for name in ("slurmctld", "slurmd", "slurmdbd", "munge")} | {"mariadb-server": "mariadb"}
CONFIGURED = Path("/etc/slurm/slurm.conf")
FORBID_SERVICES = Path("/usr/sbin/policy-rc.d")


def check(place: Place) -> None:
    """Raises RefusedError, in one sentence, where no cluster may be started."""
    if os.geteuid() != 0:
        raise RefusedError("Only root can start a cluster of several hosts on one machine.")
    if not Path("/etc/debian_version").exists() or shutil.which("apt-get") is None:
        raise RefusedError("This is not Debian, whose packages of Slurm the cluster is made of.")
    if CONFIGURED.exists():
        raise RefusedError(f"Another Slurm is configured here: {CONFIGURED} exists.")
    other = os.environ.get("SLURM_CONF")
    if other and Path(other) != place.slurm_conf:
        raise RefusedError(f"SLURM_CONF names another Slurm: {other}.")
    for pid in processes.here():
        if processes.name(pid) in ("slurmctld", "slurmd", "slurmdbd") and not processes.marked(pid):
            raise RefusedError(f"Another Slurm runs here: {processes.name(pid)} is process {pid}.")
    if place.folder.exists() and not place.state_json.exists() and any(place.folder.iterdir()):
        raise RefusedError(f"{place.folder} holds something else than a cluster; name another --folder.")


def gecos(place: Place) -> str:
    """By this in /etc/passwd `down` knows the user that `up` made."""
    return f"throwaway cluster in {place.folder}"


def free_user(place: Place) -> str:
    """The first of hpctool, hpctool2, … whom nobody else has made."""
    for number in range(1, 100):
        name = f"hpctool{number if number > 1 else ''}"
        try:
            if pwd.getpwnam(name).pw_gecos == gecos(place):
                return name
        except KeyError:
            return name
    raise RefusedError("All users from hpctool to hpctool99 exist here.")


def install() -> None:
    """Debian's packages, where they are missing; what they bring is neither started now nor at the next boot."""
    missing = [package for package, program in PACKAGES.items() if shutil.which(program) is None]
    if not list(Path("/usr/lib").glob("*/pmix2/lib/libpmix.so")):
        missing.append(PMIX)
    if not missing:
        return
    say(f"Installing {' '.join(missing)} …")
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    run("apt-get", "update", "-qq", env=env)
    with services_forbidden():
        run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=env)
    for service in {SERVICES[package] for package in missing if package in SERVICES}:
        run("update-rc.d", service, "disable", check=False)


@contextlib.contextmanager
def services_forbidden() -> Iterator[None]:
    """Packages ask this file before they start a service."""
    if FORBID_SERVICES.exists():
        yield
        return
    FORBID_SERVICES.write_text("#!/bin/sh\nexit 101\n")
    FORBID_SERVICES.chmod(0o755)
    try:
        yield
    finally:
        FORBID_SERVICES.unlink()


def up(place: Place, settings: Settings, readable: Sequence[Path]) -> None:
    """Start everything; what was started is taken down again if that fails."""
    try:
        with machine():
            install()
            hosts.check_allowed()
            state = take(place, settings, readable)
        make(place, state)
    except BaseException:
        if place.state_json.exists():
            say("That did not work; taking down what was started …")
        down(place)
        raise


def take(place: Place, settings: Settings, readable: Sequence[Path]) -> State:
    """Take what no other cluster may take: a user, a network, and the names on this machine."""
    paths = [str(path) for path in (hosts.NAMESPACES, hosts.NAMES) if not path.exists()]
    # The last to leave removes what the first has made.
    paths += [path for neighbour in processes.neighbours(place) for path in neighbour.made()]
    state = State(
        name=secrets.token_hex(8),
        user=free_user(place),
        network=hosts.free_network(),
        default=settings,
        now=Settings(**vars(settings)),
        opened=hosts.to_open(readable),
        made=sorted(set(paths)),
    )
    place.save(state)
    # What we run and wait for is to be found, too, if this process is killed.
    os.environ[processes.MARK] = processes.mark(place, "script")
    make_user(place, state)
    # Each host covers it with its own.
    hosts.NAMES.touch()
    hosts.connect(state)
    configuration.write_all(place, state)
    # By this process the next cluster sees that it has a neighbour.
    hosts.start_login(place, state, place.environment())
    return state


def make(place: Place, state: State) -> None:
    env = place.environment()
    database = services.create_database(place, env) if state.now.accounting else None
    services.start_munge(place, env)
    if database is not None:
        services.start_accounting(place, state, env, database)
    services.start_controller(place)
    started = {node: hosts.start_node(place, state, node, env) for node in NODES}

    def ended() -> list[str]:
        return [node for node, process in started.items() if process.poll() is not None]

    if not until(lambda: bool(ended()) or services.idle(place), timeout_s=60) or ended():
        node = (ended() or list(NODES))[0]
        raise FailedError(f"{node} did not register. It said:\n{services.last_words(place, f'slurmd-{node}')}")


def make_user(place: Place, state: State) -> None:
    shell = shutil.which("bash") or "/bin/sh"
    options = [
        "--no-create-home",
        "--user-group",
        "--home-dir",
        place.home,
        "--shell",
        shell,
        "--comment",
        gecos(place),
    ]
    with contextlib.suppress(KeyError):
        pwd.getpwnam(state.user)
        # Of a cluster in this folder that the machine's end took away.
        run("userdel", state.user)
    run("useradd", *options, state.user)
    user = pwd.getpwnam(state.user)
    place.home.mkdir(mode=0o700)
    # Whoever made this checkout, Git is to read it.
    (place.home / ".gitconfig").write_text("[safe]\n\tdirectory = *\n")
    for path in (place.home, place.home / ".gitconfig"):
        os.chown(path, user.pw_uid, user.pw_gid)


def down(place: Place) -> bool:
    """End and remove everything; False if there was nothing but, at most, the empty folder."""
    if place.state_json.exists():
        clear(place, place.load())
        return True
    # An `up` that was killed while it wrote its first file.
    for torn in place.folder.glob(f".{place.state_json.name}.*"):
        torn.unlink()
    with contextlib.suppress(OSError):
        place.folder.rmdir()
    return False


def clear(place: Place, state: State) -> None:
    user = None
    with contextlib.suppress(KeyError):
        if pwd.getpwnam(state.user).pw_gecos == gecos(place):
            user = pwd.getpwnam(state.user)

    def rest() -> set[int]:
        left = {*processes.daemons(place), *processes.within(hosts.paths(state))}
        return left | set(processes.of_user(state.user)) if user else left

    # Who was being started while we looked is met in the next round.
    if not until(lambda: processes.end(rest(), timeout_s=5) and not rest(), timeout_s=30):
        raise FailedError(f"Some processes do not end: {sorted(rest())}.")
    with machine():
        give_back(place, state, user)
    remove(place.folder)
    # Tests hold it, each for itself.
    place.folder.with_name(f"{place.folder.name}.lock").unlink(missing_ok=True)


def give_back(place: Place, state: State, user: pwd.struct_passwd | None) -> None:
    """What `take` took."""
    hosts.disconnect(state)
    for made in map(Path, [] if processes.neighbours(place) else state.made):
        run("umount", made, check=False)
        with contextlib.suppress(OSError):
            made.rmdir() if made.is_dir() else made.unlink()
    if user is not None:
        remove_files_of(user.pw_uid)
        run("userdel", state.user)


def remove_files_of(uid: int) -> None:
    """What jobs left in the folders that everybody may write: the next user may get the same number."""
    for folder in map(Path, ("/tmp", "/dev/shm")):
        for path in folder.iterdir() if folder.exists() else ():
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_uid == uid:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def remove(folder: Path) -> None:
    """Raises FailedError if something is mounted there, which is not ours to remove."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if Path(line.split()[4]).is_relative_to(folder):
            raise FailedError(f"{line.split()[4]} is a mount; unmount it, and then take the cluster down again.")
    shutil.rmtree(folder)
