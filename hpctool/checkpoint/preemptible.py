"""Preemptible: save and resume for any loop, in a program that need not be hpctool's.

    job = hpctool.Preemptible()
    job.register(model=model, optimizer=optimizer)      # what is registered has its earlier state again
    for step in job.steps(10_000):                      # from where the last attempt stopped
        ...

Between two steps it saves when it is time, beside the steps that follow where the ranks can, and when any rank was told
to stop: then it ends the program with exit code 75 on all ranks. Started by `hpctool run`, checkpoints are the run's;
otherwise they lie in a folder, in the same form.

A step must depend on nothing but its number, what is registered, and the global random streams of Python, NumPy and
torch, which are kept too. Then a program that was killed ends with the same bits as one that was not.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hpctool.checkpoint.company import company
from hpctool.checkpoint.engine import Checkpointer
from hpctool.checkpoint.flatten import check_state
from hpctool.checkpoint.homes import Homes
from hpctool.checkpoint.restore import Restored
from hpctool.checkpoint.streams import random_state, set_random_state
from hpctool.checkpoint.tensors import kind_of
from hpctool.checkpoint.things import Thing, leaves, of_single_ranks, replaced, thing
from hpctool.errors import EXIT_CONTINUE, InputError, OperationError, listing
from hpctool.launch import moments, signals, starts
from hpctool.launch.result import own_process
from hpctool.rundir import RunDir
from hpctool.world import World

#: the one name that is taken
_STEP = "step"


class Preemptible:
    """Saves and resumes the loop of a program. Collective: all ranks make one, register the same, and loop.

    `folder` is where checkpoints lie; without one, in the run that `hpctool run` has started, else in `checkpoints`. It
    saves every `every_min` minutes and every `every_steps` steps (None: never for that), at the end, and when told to
    stop. `world` replaces the ranks that it finds (company.py); `say` gets a sentence now and then, on rank 0.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        every_min: float | None = 10.0,
        every_steps: int | None = None,
        keep_last: int = 2,
        world: World | None = None,
        say: Callable[[str], None] = print,
    ) -> None:
        """Nothing is read or written yet. Raises InputError on a period that is none."""
        for name, period in (("every_min", every_min), ("every_steps", every_steps)):
            if period is not None and period <= 0:
                raise InputError(f"{name}={period} is no period; give a number above 0, or None.")
        self.every_min, self.every_steps, self.keep_last = every_min, every_steps, keep_last
        #: steps done, by all attempts
        self.step = 0
        self._folder = None if folder is None else Path(folder)
        self._say = say
        self._world = world
        self._things: dict[str, Thing] = {}
        self._homes = Homes()
        self._checkpoints: Checkpointer | None = None
        self._restored: Restored | None = None
        self._streams: dict[str, Any] | None = None
        self._saved_s = time.monotonic()
        self._looping = False

    @property
    def resumed(self) -> bool:
        """Whether there was a checkpoint to go on from. Collective at its first use."""
        self._open()
        return self._restored is not None

    def register(self, **things: Any) -> None:
        """Name what the steps change. From a checkpoint, each gets its state at once. Collective.

        Takes what has state_dict and load_state_dict (modules, optimizers, schedulers …), arrays, tensors, random
        generators; and dicts and lists, nested as you like, of arrays, tensors, numbers, texts and None, whose arrays
        and tensors stay the objects that they are where dtype and shape are the same. Whatever a list or dict gets
        later must be of these kinds, too: a NumPy scalar is refused by the next save (append `loss.item()`). Raises
        InputError for anything else, for a name that is taken or that the checkpoint does not have; and what reading a
        checkpoint raises.
        """
        checkpoints = self._open()
        for name, value in things.items():
            if name in self._things or name == _STEP:
                raise InputError(f"'{name}' is registered already, or is our own; give it another name.")
            self._things[name] = thing(name, value, self._homes)
        if self._restored is None:
            return
        # Lists and dicts last: they may hold what is a model's.
        for name in sorted(things, key=lambda name: self._things[name].is_container):
            one = self._things[name]
            one.give(self._state_of(name, self._restored, checkpoints))
            if not one.is_container:
                self._homes.own(name, [end for _, end in leaves(one.take()) if kind_of(end)])

    def steps(self, stop: int) -> Generator[int, None, None]:
        """The numbers of the steps still to do, up to `stop`. Collective.

        Ends the program with SystemExit(75) when it was told to stop, as soon as the step is done and saved. Raises
        InputError where the state cannot be stored (by its path, before the first step) or is not all registered;
        FencedError where a newer attempt has begun; and what saving raises.
        """
        self._check()
        checkpoints = self._open()
        attempt = checkpoints.rundir.attempt
        end_listening = signals.listen(signal.Signals[os.environ.get("HPCTOOL_STOP_SIGNAL", "SIGTERM")])
        self._looping = True
        try:
            while self.step < stop:
                if self._streams is not None:
                    # Only now: what the program has drawn since its start, it drew the first time, too.
                    set_random_state(self._streams)
                    self._streams = None
                is_wanted = moments.reached("step", self.step, attempt)
                yield self.step
                self.step += 1
                self._end_step(stop, is_wanted)
        finally:
            self._looping = False
            checkpoints.settle()
            end_listening()

    # ------------------------------------------------------------------------------------------ between two steps

    def _end_step(self, stop: int, is_wanted: bool) -> None:
        """Save if it is time, for all ranks alike; end the program if any was told to stop."""
        assert self._world is not None
        assert self._checkpoints is not None
        # Clocks differ; rank 0's decides.
        is_time = self.every_min is not None and time.monotonic() - self._saved_s >= 60 * self.every_min
        is_time = is_wanted or (is_time and self._world.is_main)
        wishes = np.array([signals.stop_requested(), is_time, self._checkpoints.poll()], np.int64)
        must_stop, is_time, has_failed = (bool(wish) for wish in self._world.reduce(wishes, "max"))
        if has_failed:
            self._checkpoints.wait()
        is_due = self.every_steps is not None and self.step % self.every_steps == 0
        if must_stop or is_time or is_due or self.step == stop:
            self._save(is_last=must_stop or self.step == stop)
        if must_stop:
            cause = next(cause for cause in self._world.gather(signals.stop_cause()) if cause)
            self._tell(f"Stopped after step {self.step} ({cause}), saved; started again, it goes on there.")
            self._world.close()
            raise SystemExit(EXIT_CONTINUE)

    def _save(self, *, is_last: bool) -> None:
        assert self._world is not None
        assert self._checkpoints is not None
        state = {name: one.take() for name, one in self._things.items()}
        names, paths = of_single_ranks(self._world, state)
        own = {
            "names": {name: state[name] for name in names if name in state},
            "ends": {path: end for path, end in leaves(state) if path in set(paths)},
        }
        shared = {name: None if name in names else value for name, value in state.items()}
        info = {"program": _program(), "single_ranks": [*names, *paths]}
        per_rank = {"streams": random_state(), "own": own}
        save = self._checkpoints.save if is_last else self._checkpoints.async_save
        save({_STEP: self.step, **shared}, self.step, per_rank=per_rank, info=info)
        self._saved_s = time.monotonic()

    # ------------------------------------------------------------------------------------------ beginning

    def _open(self) -> Checkpointer:
        """Find the ranks and the folder, begin an attempt there, and read the newest checkpoint; once. Collective."""
        if self._checkpoints is not None:
            return self._checkpoints
        run = os.environ.get("HPCTOOL_RUN") if self._folder is None else None
        folder = Path(run) if run else self._folder or Path("checkpoints")
        world = self._world = self._world or company(folder / "logs" if run else folder)
        if run:
            rundir = RunDir(folder, int(os.environ["HPCTOOL_ATTEMPT"]))
        else:
            rundir = _Standalone(folder.absolute())
            rundir.attempt = world.on_main(lambda: _begin(rundir, world))
        self._checkpoints = Checkpointer(rundir, world, self.keep_last)
        self._restored = restored = self._checkpoints.restore()
        if restored is not None:
            self._adopt(restored, rundir)
        if world.is_main:
            rundir.ledger.append({"kind": "resumed", "attempt": rundir.attempt, "step": self.step})
        self._saved_s = time.monotonic()
        return self._checkpoints

    def _adopt(self, restored: Restored, rundir: RunDir) -> None:
        theirs = restored.info.get("program", "")
        if theirs != _program():
            raise InputError(
                f"The checkpoints in {rundir.path} were written by {theirs or 'another program'}, and this is "
                f"{_program()}. Give it a folder of its own: hpctool.Preemptible('{Path(_program()).stem}')."
            )
        self.step = restored.step
        self._tell(f"Resumed after step {self.step} from {restored.path.name}.")
        if restored.per_rank is not None:
            self._streams = restored.per_rank["streams"]
        elif restored.info["single_ranks"]:
            warnings.warn(
                f"{restored.world_size} ranks had saved, and what each had of its own is left aside: "
                f"{listing(restored.info['single_ranks'], 4)}.",
                stacklevel=4,
            )

    def _state_of(self, name: str, restored: Restored, checkpoints: Checkpointer) -> Any:
        own = restored.per_rank["own"] if restored.per_rank is not None else {"names": {}, "ends": {}}
        if name in own["names"]:
            return own["names"][name]
        if name not in restored.state:
            there = listing(key for key in restored.state if key != _STEP)
            raise InputError(
                f"The checkpoint {restored.path} has no '{name}', only {there}. The program has changed since: give it "
                "a folder of its own, or begin anew."
            )
        # An array of each rank's own, all of one kind, is named here by its path: as many ranks find it in `ends`.
        is_there = restored.state[name] is not None and restored.per_rank is not None
        if name in restored.info["single_ranks"] and not is_there:
            raise OperationError(
                f"Each of {restored.world_size} ranks had a '{name}' of its own kind, so {checkpoints.world.size} "
                "cannot go on from there; start as many as before."
            )
        return replaced({name: restored.state[name]}, own["ends"])[name]

    def _check(self) -> None:
        """What must be true before the first step."""
        self._open()
        if self._looping:
            raise InputError("steps() is running already; one loop ends before the next begins.")
        if threading.current_thread() is not threading.main_thread():
            raise InputError("steps() must run in the main thread, which alone is told of signals.")
        if self._restored is not None:
            missing = [name for name in self._restored.state if name != _STEP and name not in self._things]
            if missing:
                raise InputError(
                    f"The checkpoint {self._restored.path} has {listing(missing)}, which is not registered. Register "
                    "it before steps(); if the program has changed, give it a folder of its own, or begin anew."
                )
            self._restored = Restored(**{**vars(self._restored), "state": {}, "per_rank": None})
            self._homes = Homes()
        check_state({name: one.take() for name, one in self._things.items()})

    def _tell(self, text: str) -> None:
        if self._world is not None and self._world.is_main:
            self._say(f"hpctool: {text}")


class _Standalone(RunDir):
    """A folder that is nothing but checkpoints and their ledger."""

    @property
    def checkpoints(self) -> Path:
        return self.path


def _begin(rundir: RunDir, world: World) -> int:
    rundir.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    facts = {"where": "alone", "world_size": world.size, "nodes": [socket.gethostname()]}
    start = starts.of_job()
    return rundir.begin({**facts, **start.facts(), **own_process()}, partial(starts.refuse, rundir, mine=start))


def _program() -> str:
    """The name of the program that runs, for people who look into a folder, and against mixing two up."""
    return Path(sys.argv[0]).name or "python"
