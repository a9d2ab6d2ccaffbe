"""Rendezvous: where the ranks of one job meet, without anybody choosing an address or a port for them."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import struct
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool import files
from hpctool.errors import WorldError, listing
from hpctool.place import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

#: Environment variable: the file in which rank 0 says where it listens. Set by who starts ranks by hand or locally.
RENDEZVOUS = "HPCTOOL_RENDEZVOUS"

#: Environment variable: the network interface (`ib0`) on which rank 0 listens for ranks on other machines.
INTERFACE = "HPCTOOL_INTERFACE"

_SIOCGIFADDR = 0x8915


def named_file() -> Path | None:
    """The file that who started this process has named, if any; from now on the environment names none.

    Otherwise the ranks of whatever this process starts would wait there for ever.
    """
    named = os.environ.pop(RENDEZVOUS, None)
    return Path(named) if named else None


def meeting_file(folder: Path, place: Place) -> Path | None:
    """Where the ranks of this start meet: the file they were told, else one in `folder` that no other start has.

    None where torchrun has given them an address. Like `named_file` it leaves nothing in the environment.
    """
    if (named := named_file()) is not None:
        return named
    if place.source == "torchrun" and "MASTER_ADDR" in os.environ:
        return None
    job, step = os.environ.get("SLURM_JOB_ID", str(os.getppid())), os.environ.get("SLURM_STEP_ID", "0")
    return folder / f"meet-{job}-{step}-{os.environ.get('SLURM_RESTART_COUNT', '0')}.json"


def torchrun_name() -> str:
    """The name of a file where ranks of this start of torchrun may meet, for those who do not meet at its address."""
    parts = (os.environ.get(f"MASTER_{part}", "") for part in ("ADDR", "PORT"))
    return f"meet-{'-'.join(parts)}-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}.json"


def meet(place: Place, file: Path | None, timeout_s: float) -> Store:
    """The store through which ranks find each other; returned when all of them are there. Raises WorldError.

    At `file` rank 0 writes the port that the kernel chose for it: two jobs on one node cannot collide. Without one
    MASTER_ADDR and MASTER_PORT are obeyed (torchrun, a hand-written script).
    """
    from torch._C._distributed_c10d import PrefixStore

    deadline = time.monotonic() + timeout_s
    # torchrun's store outlives a restart of the ranks.
    prefix = f"hpctool/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
    store = PrefixStore(
        prefix, _store_of_environment(place, timeout_s) if file is None else _store_of_file(place, file, timeout_s)
    )
    here = [f"here/{rank}" for rank in range(place.size)]
    store.set(here[place.rank], "")
    try:
        store.wait(here, timedelta(seconds=max(deadline - time.monotonic(), 1.0)))
    except RuntimeError as error:
        absent = [rank for rank in range(place.size) if not store.check([here[rank]])]
        raise WorldError(
            f"Rank {place.rank} of {place.size} waited {timeout_s:.0f} s for rank {listing(map(str, absent))}. "
            "Look at the log of the missing one, or whether its node can reach this one."
        ) from error
    if place.rank == 0 and file is not None:
        file.unlink(missing_ok=True)
    return store


def _store_of_environment(place: Place, timeout_s: float) -> TCPStore:
    if "MASTER_ADDR" not in os.environ or "MASTER_PORT" not in os.environ:
        raise WorldError(
            f"{place.size} ranks started by {place.source} do not know where to meet: set MASTER_ADDR and "
            f"MASTER_PORT, or {RENDEZVOUS} to a file name on a folder that all of them see."
        )
    # torchrun keeps a store of its own at this address and says so.
    listens = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    return _tcp_store(place, os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), listens, timeout_s)


def _store_of_file(place: Place, path: Path, timeout_s: float) -> TCPStore:
    if place.rank == 0:
        store = _listening_store(place, timeout_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"host": store.host, "port": store.port})
        return store
    deadline, wait_s = time.monotonic() + timeout_s, 0.02
    while True:
        with contextlib.suppress(OSError):
            meeting = read_meeting(path)
            return _tcp_store(place, meeting["host"], meeting["port"], False, timeout_s)
        if time.monotonic() > deadline:
            raise WorldError(f"Rank {place.rank} waited {timeout_s:.0f} s for {path}, which rank 0 did not write.")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 0.5)


def read_meeting(path: Path) -> dict[str, Any]:
    """What rank 0 wrote of where it listens. Raises OSError while it is not there."""
    # A network file system remembers that the file was missing; listing its folder makes it look again.
    os.listdir(path.parent)
    meeting: dict[str, Any] = files.read_json(path)
    return meeting


def own_address(place: Place) -> str:
    """What the other ranks of this rank's job call its machine. Raises WorldError."""
    if place.local_size == place.size:
        return "127.0.0.1"
    return _address_of(os.environ[INTERFACE]) if INTERFACE in os.environ else socket.gethostname()


def listen(place: Place) -> socket.socket:
    """A socket on a port that the kernel chooses, where only those who must can reach it. Raises WorldError."""
    if place.local_size == place.size or INTERFACE in os.environ:
        return socket.create_server((own_address(place), 0))
    # Everywhere: what a machine's name means to itself may be a loopback address.
    if socket.has_dualstack_ipv6():
        return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    return socket.create_server(("", 0))


def _listening_store(place: Place, timeout_s: float) -> TCPStore:
    with listen(place) as listener:
        port = listener.getsockname()[1]
        return _tcp_store(place, own_address(place), port, True, timeout_s, listener.detach())


def _tcp_store(
    place: Place, host: str, port: int, listens: bool, timeout_s: float, listener: int | None = None
) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, place.size, listens, timeout=timeout, wait_for_workers=False, master_listen_fd=listener)


def _address_of(interface: str) -> str:
    """The IPv4 address of a network interface of this machine. Raises WorldError, which lists those that have one."""
    known = addresses()
    if interface not in known:
        there = listing(f"{name} ({address})" for name, address in known.items())
        raise WorldError(
            f"{INTERFACE}={interface}: {socket.gethostname()} has no such network interface with an IPv4 address; "
            f"there is {there}. Set cluster.interface to one of them, or to null."
        )
    return known[interface]


def addresses() -> dict[str, str]:
    """This machine's network interfaces that have an IPv4 address, with it."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # it has no IPv4 address
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found
