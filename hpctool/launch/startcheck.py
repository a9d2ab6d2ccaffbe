"""Before a job begins: each rank looks whether its node can do what the job will need, in well under a second.

The run folder takes a file and gives it back, the clock is that of the others, the devices that were asked for compute,
and every rank takes part in a sum over all of them. A node that fails is named; under Slurm it is excluded and the job
requeued (closing.py).
"""

from __future__ import annotations

import contextlib
import os
import socket
import statistics
import sys
import time
from typing import Any

import numpy as np

from hpctool.errors import NodeError
from hpctool.files import write_durably
from hpctool.rundir import RunDir
from hpctool.world import World

#: Clocks further apart than that spoil time limits, logs and who was first; NTP keeps them within milliseconds.
MAX_SKEW_S = 30.0
#: written and read back by each node; carried once through every rank
_PAYLOAD_BYTES = 64 * 1024
_SIDE = 64


def check(rundir: RunDir, world: World, num_gpus: int) -> None:
    """Raises NodeError, on all ranks alike, where a node fails; `num_gpus`: on each node. Collective.

    What the ranks cannot do together at all is said by the world itself: WorldError.
    """
    number = _PAYLOAD_BYTES // 8
    total = world.reduce(np.full(number, world.rank + 1, np.int64))
    # All ranks leave the sum within moments of each other.
    time_s = time.time()
    problems = [*_disk(rundir, world), *_devices(num_gpus)]
    if not (total == world.size * (world.size + 1) // 2).all():
        problems.append("what the ranks sent each other did not arrive as it was sent")
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    told: list[dict[str, Any]] = world.gather({"node": node, "time_s": time_s, "problems": problems})
    middle_s = statistics.median(one["time_s"] for one in told)
    found: dict[str, str] = {}
    for one in told:
        skew_s = one["time_s"] - middle_s
        if abs(skew_s) > MAX_SKEW_S:
            way = "ahead of" if skew_s > 0 else "behind"
            one["problems"].append(f"its clock is {abs(skew_s):.0f} s {way} that of the others")
        if one["problems"]:
            found.setdefault(one["node"], one["problems"][0])
    if found:
        raise NodeError(found)


def _disk(rundir: RunDir, world: World) -> list[str]:
    """One rank of each node writes a file where the run will, durably, and reads it back."""
    if world.local_rank:
        return []
    path = rundir.path / "logs" / f"check-{rundir.attempt}-{world.rank}"
    data = os.urandom(_PAYLOAD_BYTES)
    try:
        path.parent.mkdir(exist_ok=True)
        write_durably(path, data)
        same = path.read_bytes() == data
    except OSError as error:
        return [f"it cannot write into the run's folder ({error.strerror or error})"]
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    return [] if same else ["what it writes into the run's folder does not come back as it was"]


def _devices(num_gpus: int) -> list[str]:
    """The GPUs that were asked for can be used, and this rank's device multiplies exactly."""
    torch = sys.modules.get("torch")
    if torch is None:
        return []
    # A torch without CUDA says nothing of the node.
    if num_gpus and torch.version.cuda is not None and not torch.cuda.is_available():
        return [f"none of the {num_gpus} GPUs that were asked for can be used"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        ones = torch.ones((_SIDE, _SIDE), device=device)
        right = bool((ones @ ones == _SIDE).all())
    except RuntimeError as error:
        return [f"its {device} device does not compute ({str(error).splitlines()[0]})"]
    return [] if right else [f"its {device} device computes wrongly"]
