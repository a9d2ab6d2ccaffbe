"""Where a throwaway cluster keeps itself, and what it may be asked to change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from slurm_cluster.tools import RefusedError, until, write

FORMAT = 2
NODES = ("n1", "n2", "n3", "n4")
ACCOUNT = "lab"


@dataclass
class Settings:
    """What the commands `policy` and `limits` change."""

    preempt_mode: str = "REQUEUE"
    grace_s: int = 10
    user_signal: bool = False
    max_array_size: int = 1001
    job_requeue: bool = True
    accounting: bool = True
    #: of the ordinary user; None: as many as they like
    max_submit_jobs: int | None = None


@dataclass
class State:
    """The file state.json: what was made, so that `down` can undo it."""

    #: by which its processes are known, also from those of a cluster in some container of this machine
    name: str
    #: the ordinary user that is made for the jobs; also the first word of what the machine calls its network
    user: str
    #: first three numbers of all addresses
    network: str
    #: what `reset` goes back to
    default: Settings
    now: Settings
    #: paths that only root can reach, and which are shown to everybody within the cluster
    opened: list[str] = field(default_factory=list)
    #: what was not there before, beside the folder
    made: list[str] = field(default_factory=list)
    #: nodes that see some folder otherwise than the others: read-only, or not at all
    odd_folders: list[str] = field(default_factory=list)

    @property
    def switch(self) -> str:
        """The bridge has a namespace to itself, where no firewall of this machine looks at what the nodes say."""
        return f"{self.user}-net"

    @property
    def cable(self) -> str:
        """The controller's end of its cable, in this machine's own namespace."""
        return f"{self.user}-eth"

    def namespace(self, node: str) -> str:
        return f"{self.user}-{node}"

    @property
    def namespaces(self) -> list[str]:
        return [self.switch, *map(self.namespace, NODES)]

    def port(self, daemon: Literal["controller", "node", "accounting"]) -> int:
        """Controllers listen on every address of this machine, so clusters differ in their ports, too."""
        number = int(self.network.split(".")[1])
        return 26_000 + 10 * number + ("controller", "node", "accounting").index(daemon)

    @property
    def controller_address(self) -> str:
        return f"{self.network}.254"

    def address(self, node: str) -> str:
        return f"{self.network}.{node.removeprefix('n')}"


@dataclass(frozen=True)
class Place:
    """The one folder of a cluster."""

    folder: Path

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "etc" / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return self.folder / "munge" / "socket"

    @property
    def database_socket(self) -> Path:
        return self.folder / "database" / "socket"

    @property
    def logs(self) -> Path:
        return self.folder / "log"

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def state_json(self) -> Path:
        return self.folder / "state.json"

    def scratch(self, host: str) -> Path:
        return self.folder / "scratch" / host

    def load(self) -> State:
        """Raises RefusedError where there is no cluster."""
        try:
            found = json.loads(self.state_json.read_text())
        except FileNotFoundError:
            raise RefusedError(f"There is no cluster in {self.folder}; start one with `scripts/cluster up`.") from None
        if found.pop("format") != FORMAT:
            raise RefusedError(f"{self.state_json} was written by another version; take that cluster down with it.")
        return State(**{**found, "default": Settings(**found["default"]), "now": Settings(**found["now"])})

    def made(self) -> list[str]:
        """What `State.made` says, also of a cluster of another version."""
        return list(json.loads(self.state_json.read_text())["made"])

    def save(self, state: State) -> None:
        write(self.state_json, json.dumps({"format": FORMAT, **asdict(state)}, indent=2) + "\n")

    def environment(self) -> dict[str, str]:
        """What Slurm's programs need to find this cluster and no other."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
        return {**kept, "SLURM_CONF": str(self.slurm_conf)}

    @contextlib.contextmanager
    def alone(self, make: bool = False) -> Iterator[None]:
        """Hold the cluster while it changes; raises RefusedError if somebody else holds it for a minute."""
        with contextlib.ExitStack() as closed:
            while True:
                if make:
                    self.folder.mkdir(mode=0o755, exist_ok=True)
                elif not self.folder.exists():
                    raise RefusedError(f"There is no cluster in {self.folder}.")
                folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
                closed.callback(os.close, folder)
                if not until(lambda folder=folder: _locked(folder), timeout_s=60):  # type: ignore[misc]
                    raise RefusedError(f"Another scripts/cluster works on {self.folder}; wait for it or end it.")
                # Whoever held it may have removed it.
                if self.folder.exists() and os.path.samestat(os.fstat(folder), self.folder.stat()):
                    break
            yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
