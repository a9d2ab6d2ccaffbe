"""Checkpointer: saves a run's state so that it survives anything, and brings it back.

    checkpoints/
      step-00001200.a2/         written by attempt 2, never changed, never written twice
        MANIFEST.json           files with sizes and checksums, step, attempt, info, digest of the whole
        state.json  tensors-00000.safetensors …  rank-00000.json  rank-00000.safetensors …   (snapshot.py)
      step-00001100.a1.corrupt-1/    damaged, set aside
      .pin-step-00001100.a1--pbt     somebody else needs it (pins.py)
      .reserve                       real bytes for the last save (space.py)
      .tmp-…  .trash-…               unfinished or half deleted; swept by the next attempt

`async_save` only copies the state, into memory that is kept from save to save; everything else, what the ranks say to
each other included, happens in one thread beside the training and in a channel of its own. `poll` says at each step
whether that went wrong, so that all ranks can raise it after the same one. Where ranks have no second channel (MPI,
sockets) it saves before it returns.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpctool import files
from hpctool.checkpoint import deadline, retention, snapshot, space
from hpctool.checkpoint.buffers import Buffers
from hpctool.checkpoint.commits import committed
from hpctool.checkpoint.flight import Flight
from hpctool.checkpoint.restore import Restored, Search
from hpctool.checkpoint.retention import Rules
from hpctool.checkpoint.saving import Check, Keeper, Plan
from hpctool.errors import InputError
from hpctool.launch import moments
from hpctool.rundir import RunDir
from hpctool.world import World

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

#: how long an attempt that has failed waits for the save under way
_PATIENCE_S = 60.0


class Checkpointer:
    """Saves and restores the state of one run.

    With an attempt's RunDir it writes, and sweeps what dead attempts left; with a reader's (`attempt` 0) it only reads.
    Works with torch, NumPy or both; no pickle is written or read. Collective: all ranks make one. As a context manager
    it waits in the end for the save under way.
    """

    def __init__(
        self,
        rundir: RunDir,
        world: World,
        keep_last: int = 2,
        *,
        keep_top: int = 0,
        keep_every_steps: int | None = None,
        checksums: bool = True,
        reserve: bool = False,
        params: str = "",
    ) -> None:
        """What is kept says retention.py. `checksums`: compare them on restore, or sizes only. `reserve`: space.py.

        `params` is the key of the state whose tensors are the parameters, for `param_digest`; empty: all tensors.
        Raises InputError if `keep_last` is below 2.
        """
        self.rundir = rundir
        self.world = world
        self.checksums = checksums
        rules = Rules(keep_last, keep_top, keep_every_steps)
        self._keeper = Keeper(rundir, rundir.ledger, rules, params, reserve)
        self._buffers = Buffers()
        self._flight: Flight | None = None
        self._saves_s: list[float] = []
        self._began_s = 0.0
        #: how long the newest save has held up whoever called it, in seconds
        self.stall_s = 0.0
        #: steps that retention spares beside all rules; rank 0's counts
        self.keep: set[int] = set()
        self._apart = world.apart() if rundir.attempt else None
        if world.is_main and rundir.attempt and rundir.checkpoints.exists():
            ledger = self._keeper.ledger
            known = committed(rundir, ledger)
            retention.sweep(rundir.checkpoints, rundir.attempt, None if ledger.broken else known)

    # ------------------------------------------------------------------------------------------ saving

    def save(
        self,
        state: Any,
        step: int,
        *,
        per_rank: Any = None,
        info: Mapping[str, Any] | None = None,
        score: float | None = None,
        is_last: bool = False,
        check: Check | None = None,
        before_commit: Callable[[], None] | None = None,
    ) -> Path:
        """Commit the state of `step` and return its folder. Collective: all ranks must call it.

        `state` is the same on all ranks, which share the writing, or sharded over them (DTensor); `per_rank` is this
        rank's own (random generators); `info` is JSON for the manifest; `score` says how good it is, the higher the
        better. `is_last`: rather give up the reserve than fail. `check` compares first what must be alike on all ranks,
        and `before_commit` is called once the rank's part is written; what they raise ends the save. A step that this
        attempt has already committed is not written again.
        Raises InputError (state that cannot be stored), FencedError, OSError (disk full, …) or OperationError, on all
        ranks alike; nothing of this save is left then and the checkpoint before it stays.
        """
        began_s = time.monotonic()
        self._land()
        plan = self._plan(state, step, per_rank, info, score, is_last, check, before_commit)
        self._saved(self._keeper.save(self.world, plan))
        self.stall_s = time.monotonic() - began_s
        return self.rundir.checkpoint(step)

    def async_save(
        self,
        state: Any,
        step: int,
        *,
        per_rank: Any = None,
        info: Mapping[str, Any] | None = None,
        score: float | None = None,
        check: Check | None = None,
        before_commit: Callable[[], None] | None = None,
    ) -> None:
        """Copy the state of `step`, as in `save`, and commit it beside what comes next. Collective.

        Waits for the save before it, if that is still under way. A disk that is full is no error here but a warning,
        and `unsaved` in the ledger: training goes on with the checkpoint before. Raises what `wait` raises.
        """
        began_s = time.monotonic()
        self._land()
        flight = Flight()
        plan = self._plan(state, step, per_rank, info, score, False, check, before_commit)
        world, self._began_s = self._apart or self.world, began_s
        flight.begin(lambda: self._save_if_there_is_room(world, plan))
        self._flight = flight
        if self._apart is None:
            self._land()
        self.stall_s = time.monotonic() - began_s

    def prepare(self, state: Any) -> None:
        """Get the memory for copies of this state beside what comes next, or the first one takes three times as long.

        Raises InputError for state that cannot be stored.
        """
        if self._flight is None and self._buffers.is_empty and self.rundir.attempt:
            images = snapshot.laid_out(state, None, self.world.rank, self.world.size).images
            sizes = {name: image.size_bytes for name, image in images.items()}
            self._flight = Flight()
            self._flight.begin(lambda: self._buffers.touch(sizes))

    def poll(self) -> bool:
        """Whether a save under way has failed, as far as is known by now; takes microseconds. Not collective.

        All ranks have failed then, but may learn of it before different steps: who raises it alone (`wait`) leaves the
        others in theirs. They agree on it first.
        """
        if self._flight is None or not self._flight.is_over:
            return False
        if self._flight.has_failed:
            return True
        self._land()
        return False

    def wait(self) -> None:
        """Wait for the save under way; what is committed then is all that was asked for.

        Raises InputError, FencedError, OperationError and OSError as `save` does.
        """
        self._land()

    def close(self) -> None:
        """Wait for the save under way and let go of the reserve. Collective. Raises what `wait` raises."""
        try:
            self._land()
        finally:
            if self.world.is_main and self.rundir.attempt:
                space.give_up_reserve(self.rundir.checkpoints)

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.settle()

    def settle(self) -> None:
        """Behind another error: let what is under way be committed, if the other ranks are there, and say nothing."""
        if self._flight is not None:
            self._flight.wait(_PATIENCE_S)

    # ------------------------------------------------------------------------------------------ when time is short

    @property
    def expected_save_s(self) -> float | None:
        """How long the next save should take at most, from those before; None before the first."""
        return deadline.expected_s(self._saves_s)

    def choose(self, left_s: float, step_s: float) -> deadline.Choice:
        """What to do when the process will be killed in `left_s` seconds and a step takes `step_s` (deadline.py).

        Ranks may come to different answers: let one of them decide.
        """
        in_flight_s = 0.0
        if self._flight is not None and not self._flight.is_over:
            in_flight_s = max(0.0, self._began_s + (self.expected_save_s or 0.0) - time.monotonic())
        return deadline.choose(left_s, step_s, self.expected_save_s, in_flight_s)

    # ------------------------------------------------------------------------------------------ restoring

    def restore(self, mesh: DeviceMesh | None = None, *, allow_regress: bool = False) -> Restored | None:
        """The newest checkpoint that is whole, or None if the run never committed one. Collective.

        Ranks share the verification; what is damaged for one of them is gone around by all, with a warning, and set
        aside as `<name>.corrupt-<n>` (a reader leaves it). An attempt does not go back behind the checkpoints that
        retention had kept, nor to the beginning, unless it is allowed to `regress`.
        Sharded tensors come whole, or with a `mesh` as DTensors of which only this rank's part is read.
        Raises CorruptError if checkpoints were committed and none is whole, OperationError if others can write where
        this attempt resumes from, NewerFormat, OSError.
        """
        self._land()
        moments.reached("resume", attempt=self.rundir.attempt)
        search = Search(self.rundir, self.world, self._keeper.ledger, self.checksums, allow_regress)
        found = search.newest(self._keeper.rules.last, mesh)
        self._saves_s = search.saves_s
        if found is not None:
            self._keeper.before, self._keeper.resumed_from = found.digest, found.path
        return found

    # ------------------------------------------------------------------------------------------ small things

    def _plan(
        self,
        state: Any,
        step: int,
        per_rank: Any,
        info: Mapping[str, Any] | None,
        score: float | None,
        is_last: bool,
        check: Check | None,
        before_commit: Callable[[], None] | None,
    ) -> Plan:
        taken: snapshot.Snapshot | Exception
        plain: dict[str, Any] = {}
        try:
            plain = _plain(info)
            taken = snapshot.take(state, per_rank, self.world.rank, self.world.size, self._buffers)
            if check is not None:
                check.copied(taken)
        except Exception as error:  # told to the other ranks, and raised on all
            taken = error
        return Plan(step, taken, plain, score, is_last, frozenset(self.keep), check, before_commit)

    def _save_if_there_is_room(self, world: World, plan: Plan) -> Any:
        try:
            return self._keeper.save(world, plan)
        except OSError as error:
            if not space.is_full(error):
                raise
            if world.is_main:
                self._keeper.note_unsaved(plan, error)
            return f"{error.strerror}."

    def _land(self) -> None:
        flight, self._flight = self._flight, None
        if flight is None:
            return
        result = flight.land()
        if isinstance(result, str):
            if self.world.is_main:
                warnings.warn(result, stacklevel=4)
        else:
            self._saved(result)

    def _saved(self, save_s: float | None) -> None:
        if save_s is not None:
            self._saves_s.append(save_s)


def _plain(info: Mapping[str, Any] | None) -> dict[str, Any]:
    """The info as JSON gives it back, so that its digest is the same before and after. Raises InputError."""
    try:
        plain: dict[str, Any] = json.loads(files.canonical_json(dict(info or {})))
    except (TypeError, ValueError) as error:
        raise InputError(
            f"The info of a checkpoint is not plain JSON ({error}); put such values into the state."
        ) from error
    return plain
