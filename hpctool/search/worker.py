"""A worker of a search: read the journal, decide, train a trial as a run with all ranks, report, and again.

There is no controller. A worker that is stopped leaves its trial saved and comes back to it; of one that does not come
back another takes the trial over. Every trial is an attempt of its own run, in the process of the worker.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from hpctool import config
from hpctool.errors import EXIT_CONTINUE, FencedError, HpctoolError, InputError, Stopped, WorldError
from hpctool.launch import closing, output, signals, sweepend, task
from hpctool.launch.cells import read_sweep, sweeps_folder
from hpctool.launch.job import load_job
from hpctool.launch.plan import Planned
from hpctool.launch.result import current_story, first_error
from hpctool.rundir import OVER as RUN_OVER
from hpctool.rundir import RunDir
from hpctool.search import decide, ledger, pbt, retention
from hpctool.search.decide import Decision
from hpctool.search.journal import Journal, State, Trial
from hpctool.search.overview import how_it_ended
from hpctool.search.spec import read_spec
from hpctool.search.trials import open_trial, plan_trial
from hpctool.search.watch import PAUSED, Watch, claim_body, never_measured
from hpctool.track.metrics import from_json, read_metrics, to_json
from hpctool.track.telling import METRIC
from hpctool.world import World

_OUT_OF_MEMORY = re.compile(r"out.?of.?memory|oom[_-]kill|MemoryError", re.I)
#: How long a worker that lost a race pauses at most, and how long what it knows of other workers is good for.
_PAUSE_S = 0.02
_KNOWN_S = 10.0
#: How often it looks whether somebody else still trains the run that it needs.
_BUSY_S = 0.5


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """Work until there is nothing left to begin. Collective: all ranks must call it. Raises Stopped."""
    return Worker(rundir, world).run()


class Worker:
    """One slot of a search. Collective: all ranks make one; rank 0 reads and writes the journal."""

    def __init__(self, rundir: RunDir, world: World) -> None:
        self.rundir, self.world = rundir, world
        cfg = config.load(rundir.config_yaml)
        self.runs, self.slot = rundir.path.parent, int(cfg.slot)
        self.folder = sweeps_folder(self.runs) / str(cfg.sweep)
        self.spec = read_spec(self.folder)
        self.journal = Journal(self.folder, self.spec)
        self.num_claims = 0
        self.said: set[str] = set()
        self._gone: dict[int, tuple[float, bool]] = {}
        sweepend.tellers[:] = [how_it_ended]

    def run(self) -> dict[str, Any]:
        """Train trial after trial."""
        while True:
            if any(self.world.gather(signals.stop_requested())):
                cause = next((one for one in self.world.gather(signals.stop_cause()) if one), "")
                raise Stopped(cause, self.num_claims, saved=True)
            order = self.world.on_main(self.next_order)
            if order.get("is_busy"):
                time.sleep(_BUSY_S)
                continue
            if order["run"] is None:
                self.say(f"worker {self.slot}: {order['why']}")
                return {"step": self.num_claims, "metrics": {}}
            self.train(order)

    # ------------------------------------------------------------------------------------------ what is next

    def next_order(self) -> dict[str, Any]:
        """Decide, and write it down, until there is a trial to train or nothing to do. Rank 0 only."""
        while True:
            self._check_mine()
            state = self.journal.read()
            self._say_broken()
            decision = decide.decide(state, self.slot, time.time(), self._is_gone)
            self._bound(state)
            if decision.what in ("over", "wait"):
                return {"run": None, "why": decision.why}
            if decision.what == "stop":
                self.journal.decide("stop", why=decision.why)
                continue
            take = self._claim if decision.what == "claim" else self._propose
            order = take(state, decision)
            if order is not None and order.get("is_busy"):
                return order
            if order is not None:
                self.num_claims += 1
                self.rundir.ledger.append(
                    {"kind": "progress", "attempt": self.rundir.attempt, "step": self._earlier() + 1}
                )
                return order
            time.sleep(random.uniform(0.0, _PAUSE_S))

    def _bound(self, state: State) -> None:
        """Let go of checkpoints of paused trials that take more than they may."""
        trial = retention.to_drop(state)
        if trial is not None and self.journal.decide("drop", t=trial.number, why="search.keep_paused_gb"):
            retention.drop(RunDir(self.runs / trial.run))
            self.say(f"worker {self.slot}: the checkpoints of trial {trial.number} go (search.keep_paused_gb)")

    def _earlier(self) -> int:
        return max((int(body["step"]) for body in self.rundir.story().of_kind("progress")), default=0)

    def _claim(self, state: State, decision: Decision) -> dict[str, Any] | None:
        """Take a trial that is there; None where somebody was quicker, or where that was its end."""
        trial, problem = state.trials[decision.trial], ""
        rundir = RunDir(self.runs / trial.run)
        try:
            rundir = self._opened(trial)
        except HpctoolError as error:
            problem = str(error)
        if busy := self._busy(trial, rundir):
            return busy
        is_again = decision.why == "again"
        gone = self._cause_of(trial) if decision.why == "orphan" else ""
        body = claim_body(state, trial, self.slot, decision.why, decision.to)
        body |= {
            "used_s": ledger.used_s(rundir, self.spec.num_units, alive=False),
            "step": ledger.saved_step(rundir),
            "died": ledger.died(rundir) and not is_again,
        }
        if not self.journal.decide("claim", **body):
            return None
        trial = self.journal.read().trials[trial.number]
        watch = self._watch(trial, rundir)
        if problem:
            watch.end("failed", problem, trial.step)
        elif (rundir.result() or {}).get("state") == "completed":
            # It was killed before it could say so.
            self._reuse(trial, rundir)
        elif not is_again and (cause := self._failed_before(rundir)):
            self._give_up(watch, cause)
        elif _OUT_OF_MEMORY.search(gone):
            watch.end("infeasible", gone, trial.step)
        elif trial.num_deaths >= decide.MAX_DEATHS:
            watch.end("failed", f"its process died {trial.num_deaths} times without a word", trial.step)
        else:
            watch.catch_up()
            self._settle(watch)
            if not watch.verdict:
                return self._order(trial, watch.fence, watch.to)
        return None

    def _propose(self, state: State, decision: Decision) -> dict[str, Any] | None:
        """Write a new trial down and make its run; None where somebody was quicker, or where it cannot run."""
        assert decision.point is not None
        problem, planned = "", None
        try:
            planned = plan_trial(self.spec, decision.point, pbt.origin_of(state, decision.parent))
        except HpctoolError as error:
            problem = str(error)
        body = {
            **{"t": decision.trial, "params": decision.point, "run": planned.run_id if planned else "?"},
            **{"slot": self.slot, "why": decision.why, "seen": state.last, "to": decision.to},
            **{"expected_s": decision.expected_s, "at_s": round(time.time(), 3), "parent": decision.parent},
        }
        # A point of the design that is this slot's own is nobody else's: a thousand workers begin at once.
        own = decision.why == "design" and decision.trial == self.slot
        number = self.journal.add("propose", **body) if own else None
        if number is None and not self.journal.decide("propose", **body):
            return None
        trial = self.journal.read().trials.get(decision.trial)
        if trial is None or (number is not None and trial.entry != number):
            return None
        if planned is None:
            self._watch(trial, RunDir(self.runs / "?")).end("failed", problem, 0)
            return None
        rundir = self._opened(trial, planned)
        if (rundir.result() or {}).get("state") == "completed":
            self._reuse(trial, rundir)
            return None
        return self._busy(trial, rundir) or self._order(trial, trial.fence, trial.to)

    def _busy(self, trial: Trial, rundir: RunDir) -> dict[str, Any] | None:
        """An order to wait where a process that is no worker of this search trains the trial's run; else None.

        Equal points of two searches, and a plain run of one, are the same run. To begin it would stop them.
        """
        who = ledger.trained_elsewhere(rundir, self._workers())
        if not who:
            return None
        text = f"trial {trial.number} waits: its run {rundir.id} is being trained already, {who}"
        if text not in self.said:
            self.said.add(text)
            self.say(f"worker {self.slot}: {text}")
        return {"run": None, "is_busy": True}

    def _workers(self) -> Iterator[RunDir]:
        # Read only when it is asked for: most trials' runs are nobody's.
        for run_id in read_sweep(self.folder).run_ids:
            yield RunDir(self.runs / run_id)

    def _opened(self, trial: Trial, planned: Planned | None = None) -> RunDir:
        """The run of a trial; made, where that is not there yet: who proposed it may have been killed at once."""
        rundir = RunDir(self.runs / trial.run)
        if not rundir.run_json.exists():
            origin = pbt.origin_of(self.journal.state, trial.parent)
            planned = planned or plan_trial(self.spec, trial.point, origin)
            if planned.run_id != trial.run:
                told = f"was proposed as run {trial.run} and would be {planned.run_id} now"
                raise InputError(f"Trial {trial.number} {told}; its point may be tried in another search (search.try).")
            rundir = open_trial(self.runs, self.spec, trial.number, planned, self.rundir.code())
        return rundir

    def _order(self, trial: Trial, fence: int, to: int) -> dict[str, Any] | None:
        if trial.parent is not None and not trial.values:
            try:
                retention.pin_parent(self.runs, trial, self.journal.state.trials[trial.parent])
            except InputError as error:
                self._watch(trial, RunDir(self.runs / trial.run)).end("failed", str(error), 0)
                return None
        return {"run": trial.run, "trial": trial.number, "fence": fence, "to": to}

    def _watch(self, trial: Trial, rundir: RunDir) -> Watch:
        return Watch(self.journal, trial.number, trial.fence, self.slot, rundir, trial.to)

    def _reuse(self, trial: Trial, rundir: RunDir) -> None:
        """A run of this point is there already, and is the answer."""
        watch, result = self._watch(trial, rundir), rundir.result() or {}
        found = (result.get("metrics") or {}).get(self.spec.metric)
        points = read_metrics(rundir).get(self.spec.metric, [])
        for rung, step in enumerate(self.spec.rungs):
            there = next((one for at, one in points if at == step), None)
            if there is not None and rung not in trial.values:
                self.journal.add("rung", **watch.fact(step, 0.0), rung=rung, value=to_json(there))
        value = from_json(found) if found is not None else points[-1][1] if points else None
        if value is None:
            watch.end("failed", never_measured(self.spec.metric, set(result.get("metrics") or {})), 0, used_s=0.0)
        else:
            watch.end("completed", "the run was there already", int(result.get("step", 0)), value, used_s=0.0)

    def _failed_before(self, rundir: RunDir) -> str:
        """What a rank wrote down that failed while the others could not hear of it."""
        attempt = rundir.story().attempt
        return first_error(rundir, attempt) if attempt and ledger.died(rundir) else ""

    # ------------------------------------------------------------------------------------------ training

    def train(self, order: dict[str, Any]) -> None:
        """One attempt of a trial's run, with all ranks; what comes of it is reported. Raises Stopped, WorldError."""
        trial_run = RunDir(self.runs / order["run"])
        where = str(self.rundir.story().where)
        begun = self.world.on_main(lambda: task.begin(trial_run, where, self.world.place))
        trial_run.attempt = int(begun)
        watch = Watch(self.journal, order["trial"], order["fence"], self.slot, trial_run, order["to"])
        self.say(f"worker {self.slot}: trial {order['trial']}, run {trial_run.id}, attempt {trial_run.attempt}")
        with output.to_log(trial_run.log(self.world.rank), keep_terminal=where == "inline"):
            self._attempt(watch, trial_run, where)
        if self.world.is_main:
            self._settle(watch)
        _clean_up()

    def _attempt(self, watch: Watch, trial_run: RunDir, where: str) -> None:
        job = load_job(self.spec.job)
        look: Callable[[], Any] = watch.looking if self.world.is_main else contextlib.nullcontext
        try:
            with _told(self.spec.metric), look():
                outcome = job.run(trial_run, self.world)
                self.world.barrier()
        except Stopped as stop:
            signals.end_pause()
            self._stopped(watch, stop)
        except KeyboardInterrupt:
            signals.end_pause()
            self._stopped(watch, Stopped("interrupted", ledger.saved_step(trial_run)))
        except FencedError as error:
            signals.end_pause()
            watch.verdict = "lost"
            self.say(f"hpctool: {error}")
        except WorldError:
            raise
        except Exception as error:
            signals.end_pause()
            self._failed(watch, where, error)
        else:
            signals.end_pause()
            closing.completed(trial_run, self.world, outcome)
            if self.world.is_main:
                self._completed(watch, outcome)

    def _completed(self, watch: Watch, outcome: dict[str, Any]) -> None:
        found = (outcome.get("metrics") or {}).get(self.spec.metric)
        value = float(found) if found is not None else watch.last[1] if watch.last else None
        if value is None and (known := read_metrics(watch.rundir).get(self.spec.metric)):
            # It had all its steps already, and has measured nothing more.
            value = known[-1][1]
        step = int(outcome.get("step", 0))
        watch.verdict = "over"
        if value is None:
            names = watch.names | set(outcome.get("metrics") or {})
            watch.end("failed", never_measured(self.spec.metric, names), step)
        else:
            watch.end("completed", "", step, value)

    def _stopped(self, watch: Watch, stop: Stopped) -> None:
        """The trial has saved, because its search pauses it, or because the worker itself is to stop."""
        verdicts = [one for one in self.world.gather(watch.verdict) if one]
        asked = [one for one in self.world.gather(signals.stop_cause()) if one]
        if self.world.is_main and watch.problem is not None:
            return
        if self.world.is_main:
            cause = asked[0] if asked else f"{PAUSED} {self.spec.id} at step {stop.step}"
            state = "requeued" if asked and not verdicts else "cancelled"
            closing.end(watch.rundir, state, cause, stop.step, EXIT_CONTINUE, saved=True)
        if not verdicts:
            # An end that the program asked for itself: the worker comes back to it.
            raise Stopped(asked[0] if asked else stop.cause, self.num_claims, saved=True)

    def _failed(self, watch: Watch, where: str, error: Exception) -> None:
        closing.failed(watch.rundir, where, self.world, error)
        if self.world.size > 1:
            # The other ranks cannot hear of it: all leave, and the next attempt reads what this rank wrote down.
            raise Stopped(f"trial {watch.trial} failed on rank {self.world.rank}", self.num_claims, saved=True)
        self._give_up(watch, f"{type(error).__name__}: {error}".splitlines()[0])

    def _give_up(self, watch: Watch, cause: str) -> None:
        watch.verdict = "over"
        state = "infeasible" if _OUT_OF_MEMORY.search(cause) else "failed"
        watch.end(state, cause, ledger.saved_step(watch.rundir))

    def _settle(self, watch: Watch) -> None:
        """Write down what the watch has decided."""
        step = watch.rundir.story().step
        trial = self.journal.state.trials[watch.trial]
        if trial.parent is not None and watch.verdict in ("paused", "over"):
            retention.unpin_parent(self.runs, trial, self.journal.state.trials[trial.parent])
        if watch.verdict == "paused":
            watch.pause(step)
        elif watch.verdict == "stopped":
            watch.end("stopped", "worse than others at its rung", step)

    # ------------------------------------------------------------------------------------------ the others

    def _check_mine(self) -> None:
        """Raises FencedError where a newer task works for this slot."""
        newest = self.rundir.story().attempt
        if newest != self.rundir.attempt:
            raise FencedError(self.rundir.id, self.rundir.attempt, newest)

    def _is_gone(self, slot: int) -> bool:
        """Whether the worker of another slot has ended for good."""
        known_s, gone = self._gone.get(slot, (-_KNOWN_S, False))
        if time.monotonic() - known_s > _KNOWN_S:
            gone = self._story(slot).state in RUN_OVER
            self._gone[slot] = (time.monotonic(), gone)
        return gone

    def _story(self, slot: int) -> Any:
        run_ids = read_sweep(self.folder).run_ids
        return current_story(RunDir(self.runs / run_ids[slot]))

    def _cause_of(self, trial: Trial) -> str:
        return str(self._story(trial.slot).cause)

    def _say_broken(self) -> None:
        broken = {f"entry {name}: {why}" for name, why in self.journal.log.broken.items()}
        broken |= {f"entry {number} means nothing: {why}" for number, why in self.journal.state.odd.items()}
        for text in sorted(broken - self.said):
            self.say(f"The journal of {self.spec.id} is damaged and used without it: {text}")
        self.said |= broken

    def say(self, text: str) -> None:
        """One line for people, from rank 0."""
        if self.world.is_main:
            print(text, flush=True)


@contextlib.contextmanager
def _told(metric: str) -> Iterator[None]:
    """A program of the user's own finds in its environment which metric is searched for."""
    os.environ[METRIC] = metric
    try:
        yield
    finally:
        os.environ.pop(METRIC, None)


def _clean_up() -> None:
    """What a trial held, the next one needs."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
