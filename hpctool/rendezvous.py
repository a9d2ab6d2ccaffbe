"""Rendezvous: where the ranks of one job meet, without anybody choosing an address or a port for them."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from hpctool import files
from hpctool.errors import WorldError, listing
from hpctool.place import Place

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store, TCPStore

# Set by whoever starts the ranks of a run: the file in which rank 0 says where it listens (see `meeting_point`).
RENDEZVOUS = "HPCTOOL_RENDEZVOUS"


def meeting_point(place: Place, timeout_s: float) -> Store:
    """The store through which ranks find each other; returned when all of them are there. Raises WorldError.

    With MASTER_ADDR set (torchrun, a hand-written script) that is obeyed, unless there is a rendezvous file: then
    rank 0 listens on a port that the kernel chooses and writes it there: two jobs on one node cannot collide.
    """
    from torch._C._distributed_c10d import PrefixStore

    deadline = time.monotonic() + timeout_s
    rendezvous = os.environ.get(RENDEZVOUS)
    if rendezvous is not None:
        store = _store_of_file(place, Path(rendezvous), timeout_s)
    elif "MASTER_ADDR" in os.environ and "MASTER_PORT" in os.environ:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # torchrun keeps a store of its own at this address and says so.
        listens = place.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        store = _tcp_store(place, host, port, listens, timeout_s)
    else:
        raise WorldError(
            f"{place.size} ranks started by {place.source} do not know where to meet: set MASTER_ADDR and "
            f"MASTER_PORT, or {RENDEZVOUS} to a file name on a folder that all of them see."
        )
    # torchrun's store outlives a restart of the ranks.
    store = PrefixStore(f"hpctool/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
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
    return store


def _store_of_file(place: Place, path: Path, timeout_s: float) -> Store:
    if place.rank == 0:
        store = _tcp_store(place, _own_address(place), 0, True, timeout_s)
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_json(path, {"host": store.host, "port": store.port})
        return store
    deadline, wait_s = time.monotonic() + timeout_s, 0.02
    while True:
        with contextlib.suppress(OSError):
            # A network file system remembers that the file was missing; listing its folder makes it look again.
            os.listdir(path.parent)
            meeting = files.read_json(path)
            return _tcp_store(place, meeting["host"], meeting["port"], False, timeout_s)
        if time.monotonic() > deadline:
            raise WorldError(f"Rank {place.rank} waited {timeout_s:.0f} s for {path}, which rank 0 did not write.")
        time.sleep(wait_s)
        wait_s = min(2 * wait_s, 0.5)


def _tcp_store(place: Place, host: str, port: int, listens: bool, timeout_s: float) -> TCPStore:
    from torch._C._distributed_c10d import TCPStore

    timeout = timedelta(seconds=timeout_s)
    return TCPStore(host, port, place.size, listens, timeout=timeout, wait_for_workers=False)


def _own_address(place: Place) -> str:
    # All ranks on this machine: nothing needs to listen beyond it.
    return "127.0.0.1" if place.local_size == place.size else socket.gethostname()
