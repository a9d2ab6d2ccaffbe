"""What rank 0's machine does while a run goes: processor, memory, GPUs. Metrics under `system/`, every half minute.

`system/cpu_percent` is of this process, 100 for each core; `system/memory_gb` what it holds; `system/host_cpu_percent`
and `system/host_memory_percent` are of the whole node, where others may be, too; `system/gpu0_percent` and
`system/gpu0_memory_percent` as nvidia-smi says it of the GPUs that this process sees. Nobody waits for nvidia-smi: it
is started at one reading and read at the next.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_QUERY = ("--query-gpu=index,utilization.gpu,memory.used,memory.total", "--format=csv,noheader,nounits")
#: below so much a GPU does nothing worth its price
IDLE_PERCENT = 5.0
_IDLE_READINGS = 4
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Meters:
    """Readings of one process; the first one only begins, since shares are of the time between two. Never raises."""

    def __init__(self, every_s: float, nvidia_smi: str | None = None) -> None:
        self.every_s = every_s
        self._nvidia_smi = nvidia_smi or shutil.which("nvidia-smi")
        self._before: tuple[float, float, tuple[float, float]] | None = None
        self._asked: subprocess.Popen[str] | None = None

    def due(self, now_s: float | None = None) -> dict[str, float]:
        """The readings since the last ones, if it is time for them; else nothing. `now_s` as time.monotonic()."""
        now_s = time.monotonic() if now_s is None else now_s
        if self.every_s <= 0 or (self._before is not None and now_s - self._before[0] < self.every_s):
            return {}
        own, host = _own_cpu_s(), _host_cpu()
        before, self._before = self._before, (now_s, own, host)
        gpus = self._gpus()
        if before is None:
            return {}
        found = {"system/cpu_percent": 100 * (own - before[1]) / (now_s - before[0])}
        busy, total = host[0] - before[2][0], host[1] - before[2][1]
        if total > 0:
            found["system/host_cpu_percent"] = 100 * busy / total
        return found | _memory() | gpus

    def close(self) -> None:
        """Leave nothing running."""
        if self._asked is not None:
            self._asked.kill()
            self._asked.communicate()

    def _gpus(self) -> dict[str, float]:
        """What nvidia-smi has said by now; it is asked anew."""
        if self._nvidia_smi is None:
            return {}
        text = ""
        if self._asked is not None:
            if self._asked.poll() is None:
                return {}  # a driver that hangs is not asked twice
            text = self._asked.communicate()[0]
        try:
            pipe, null = subprocess.PIPE, subprocess.DEVNULL
            command = [self._nvidia_smi, *_QUERY]
            self._asked = subprocess.Popen(command, stdin=null, stdout=pipe, stderr=null, text=True)
        except OSError:
            self._nvidia_smi, self._asked = None, None
        return gpu_readings(text, os.environ.get("CUDA_VISIBLE_DEVICES"))


def gpu_readings(text: str, visible: str | None) -> dict[str, float]:
    """nvidia-smi's lines as metrics; `visible` is CUDA_VISIBLE_DEVICES, where it names numbers."""
    found = {}
    mine = {part.strip() for part in visible.split(",")} if visible else set()
    by_number = all(part.isdigit() for part in mine)
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[0].isdigit() and (not mine or not by_number or parts[0] in mine):
            try:
                found[f"system/gpu{parts[0]}_percent"] = float(parts[1])
                found[f"system/gpu{parts[0]}_memory_percent"] = 100 * float(parts[2]) / float(parts[3])
            except (ValueError, ZeroDivisionError):  # "[N/A]" of a partitioned GPU
                continue
    return found


def idle_gpus(curves: Mapping[str, Sequence[tuple[int, float]]]) -> list[str]:
    """`GPU 1 (2 %)` for each GPU that has done nothing in the last readings; for tables and warnings."""
    found = []
    for name, points in curves.items():
        if name.startswith("system/gpu") and not name.endswith("memory_percent") and len(points) >= _IDLE_READINGS:
            busy = statistics.median(value for _, value in points[-_IDLE_READINGS:])
            if busy < IDLE_PERCENT:
                found.append(f"GPU {name.removeprefix('system/gpu').removesuffix('_percent')} ({busy:.0f} %)")
    return found


def _own_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _host_cpu() -> tuple[float, float]:
    """Busy and all ticks of the machine so far."""
    try:
        ticks = [float(part) for part in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
    except (OSError, ValueError, IndexError):
        return 0.0, 0.0


def _memory() -> dict[str, float]:
    found = {}
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found["system/memory_gb"] = pages * _PAGE_BYTES / 1e9
        told = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, left = (float(told[key].split()[0]) for key in ("MemTotal", "MemAvailable"))
        found["system/host_memory_percent"] = 100 * (1 - left / total)
    except (OSError, ValueError, IndexError, KeyError):
        pass
    return found
