"""A training task that takes its time, and dies in the ways that the tests on the cluster ask for.

It changes nothing that is learnt: whatever it is asked to do, the parameters end the same.
"""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from hpctool.train.task import Batch, Classify, Sums


class Slow(Classify):
    """Classify, with `step_s` of sleep in each pass and `eval_s` in each evaluated batch.

    `fault` (kill, raise, hang, memory, evaluate) happens once for each line that the file `faults` still holds, on rank
    `rank`, in the pass number `at` of an attempt. `run` only tells runs apart that are to have the same bits.
    """

    def __init__(
        self,
        run: str,
        step_s: float = 0.0,
        eval_s: float = 0.0,
        fault: str = "",
        rank: int = 0,
        at: int = 0,
        faults: str = "",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(label_smoothing)
        self.step_s, self.eval_s = step_s, eval_s
        self.fault, self.rank, self.at, self.faults = fault, rank, at, faults
        self.passes = 0

    def loss(self, model: Callable[[Tensor], Tensor], batch: Batch) -> tuple[Tensor, Sums]:
        self.passes += 1
        self.note()
        time.sleep(self.step_s)
        if self.fault and self.passes == self.at and int(os.environ["SLURM_PROCID"]) == self.rank and self.is_due():
            getattr(self, f"do_{self.fault}")()
        return super().loss(model, batch)

    def evaluate(self, model: Callable[[Tensor], Tensor], batch: Batch) -> Sums:
        time.sleep(self.eval_s)
        return super().evaluate(model, batch)

    def note(self) -> None:
        """Write down how many passes this rank has begun in this attempt: its output goes to <run>/logs/<attempt>/."""
        attempt = Path(os.readlink("/proc/self/fd/1")).parent
        run = attempt.parent.parent.name
        Path("passes", f"{run}.{attempt.name}.{os.environ['SLURM_PROCID']}").write_text(str(self.passes))

    def is_due(self) -> bool:
        """Take one line from the file of faults, if one is left."""
        left = Path(self.faults).read_text().splitlines()
        Path(self.faults).write_text("\n".join(left[1:]))
        return bool(left)

    def do_kill(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_raise(self) -> None:
        raise ValueError("the label of row 7 is a banana")

    def do_hang(self) -> None:
        time.sleep(600)

    def do_memory(self) -> None:
        blocks = []
        while True:
            blocks.append(bytearray(64 << 20))
            time.sleep(0.05)
