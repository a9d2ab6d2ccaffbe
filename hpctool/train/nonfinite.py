"""What becomes of a step whose gradient is not finite: `loop.on_nonfinite`.

It is looked at when the ranks have averaged it and before the optimizer steps, so all ranks find the same and the
parameters are sound whatever is decided:

stop      the run fails and says which parameter it is; the checkpoints stay as they are
skip      this update is left out: its samples count as seen, its sums do not count in the metrics, buffers (batch norm)
          are as they were before it. More than `loop.max_nonfinite` in a row stop the run.
rollback  parameters, optimizer and random streams go back to the newest checkpoint that was due by steps, and training
          goes on with the samples behind those that failed: what lies between is passed over. More than
          `loop.max_nonfinite` times stop the run.

A checkpoint due by minutes or a stop depends on the clock; so that a run which was killed ends with the same bits, a
rollback takes those by steps only. It is a fact of the ledger, and the checkpoints after it do not count any more.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from hpctool.errors import OperationError
from hpctool.rundir import RunDir, now
from hpctool.train.schema import Loop

_ADVICE = "Lower optim.lr, set loop.grad_clip, or look at the data of this step."


class RollBack(Exception):
    """Asks the loop to go back to a checkpoint and to pass over the samples of this step."""


class NonFinite:
    """The policy of one run, and how often it was needed; the loop keeps `state` in its checkpoints."""

    def __init__(self, cfg: Loop, rundir: RunDir, model: nn.Module) -> None:
        self.policy, self.limit, self.every_steps = cfg.on_nonfinite, cfg.max_nonfinite, cfg.checkpoint_every_steps
        self.rundir, self.model = rundir, model
        #: steps with an update that was left out: since the run began, in a row up to the last one, and that one
        self.skipped = self.in_row = self.last = 0
        self._buffers: list[torch.Tensor] = []

    def state(self) -> dict[str, int]:
        """For a checkpoint."""
        return {"skipped": self.skipped, "in_row": self.in_row, "last": self.last}

    def adopt(self, state: dict[str, int]) -> None:
        """Take over what a checkpoint holds."""
        self.skipped, self.in_row, self.last = state["skipped"], state["in_row"], state.get("last", 0)

    def begin_step(self) -> None:
        """Before the forward pass, which may change buffers that a skipped step must not have changed."""
        if self.policy == "skip":
            self._buffers = [buffer.clone() for buffer in self.model.buffers()]

    def may_step(self, step: int, grad_norm: float) -> bool:
        """Whether the update of `step` is to be made. Raises OperationError to stop, RollBack to go back."""
        if math.isfinite(grad_norm):
            return True
        if self.policy == "rollback":
            raise RollBack
        problem = f"Step {step}: the gradient is not finite (norm {grad_norm}, first in '{self._where()}')"
        if self.policy == "stop":
            raise OperationError(
                f"{problem}, so this step was not taken; the parameters before it are sound. {_ADVICE} "
                "loop.on_nonfinite=skip leaves such steps out."
            )
        if step != self.last:
            # Once for a step, of which several parts may be spoilt; a sound part does not make it a sound step.
            self.skipped, self.in_row = self.skipped + 1, self.in_row + 1 if step == self.last + 1 else 1
            self.last = step
        if self.in_row > self.limit:
            raise OperationError(
                f"{problem}, as in the {self.limit} steps before it, which were skipped; loop.max_nonfinite="
                f"{self.limit} allows no more in a row. {_ADVICE}"
            )
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), self._buffers, strict=True):
                buffer.copy_(before)
        return False

    def note_rollback(self, step: int, consumed: int) -> int:
        """Rank 0: write into the ledger that `step`, whose samples begin at `consumed`, goes back; to which step.

        Raises OperationError where there is nothing to go back to, or it was done too often.
        """
        story = self.rundir.story()
        earlier = {body["consumed"]: body for body in story.of_kind("rollback")}
        problem = f"Step {step}: the gradient is not finite (first in '{self._where()}')"
        if len(earlier.keys() - {consumed}) >= self.limit:
            raise OperationError(f"{problem}, and loop.max_nonfinite={self.limit} rollbacks did not help. {_ADVICE}")
        assert self.every_steps is not None, "resolve refuses rollback without it"
        due = [body["step"] for body in story.checkpoints if body["step"] % self.every_steps == 0]
        if not due:
            raise OperationError(
                f"{problem}, and no checkpoint by loop.checkpoint_every_steps={self.every_steps} is there to go back "
                f"to. {_ADVICE}"
            )
        fact = {"kind": "rollback", "attempt": self.rundir.attempt, "step": step, "consumed": consumed}
        self.rundir.ledger.append({**fact, "to_step": due[-1], "time": now()})
        return int(due[-1])

    def _where(self) -> str:
        return next(_not_finite(self.model.named_parameters()), "the sum of squares")


def _not_finite(parameters: Iterable[tuple[str, nn.Parameter]]) -> Any:
    return (name for name, p in parameters if p.grad is not None and not torch.isfinite(p.grad).all())
