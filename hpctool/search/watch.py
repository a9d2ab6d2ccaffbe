"""What is seen of a trial while it trains: values at rungs are written down at once, and decide whether it goes on."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hpctool.errors import FencedError, HpctoolError, InputError, nearest
from hpctool.launch import signals
from hpctool.launch.job import load_job
from hpctool.rundir import RunDir
from hpctool.search import decide, retention
from hpctool.search.journal import Journal, State, Trial
from hpctool.search.ledger import used_s
from hpctool.track import metrics

#: Why a trial stops that its search has stopped.
PAUSED = "paused by its search"
#: How often the metrics of somebody's own program are looked at.
_POLL_S = 0.05


@dataclass
class Watch:
    """A trial while a worker has it: which rung it is trained to, and what is decided there. Rank 0 only."""

    journal: Journal
    trial: int
    fence: int
    slot: int
    rundir: RunDir
    #: the rung that it may train to
    to: int
    #: the newest value of the metric
    last: tuple[int, float] | None = None
    #: the first step that was logged
    first: int | None = None
    #: the names of all metrics that were logged
    names: set[str] = field(default_factory=set)
    #: paused, stopped (the stop-rule), lost (somebody else has it), or empty while it goes on
    verdict: str = ""
    #: what is wrong with the trial, found beside its own work
    problem: HpctoolError | None = None

    def __call__(self, rundir: RunDir, step: int, values: Mapping[str, float]) -> None:
        """Look at what was logged. Raises InputError where the metric should be there by now and is not."""
        if rundir.id != self.rundir.id or self.verdict:
            return
        spec = self.journal.state.spec
        self.names.update(values)
        first = self.first = step if self.first is None else self.first
        if spec.metric in values:
            self.last = (step, float(values[spec.metric]))
        while not self.verdict and self.to < spec.last_rung and step >= spec.rungs[self.to]:
            if spec.metric not in values:
                if self.last is None and first <= spec.rungs[self.to] < step:
                    raise InputError(never_measured(spec.metric, self.names))
                return
            if not self.reached(self.to, step, float(values[spec.metric])):
                # Its own work saves and stops; this process goes on.
                signals.pause(PAUSED)

    def reached(self, rung: int, step: int, value: float) -> bool:
        """Write down the value of a rung, and decide whether the trial goes on."""
        # A worker that was killed between its report and its checkpoint comes by once more; nobody else can have told.
        if rung not in self.journal.state.trials[self.trial].values:
            self.journal.add("rung", **self.fact(step), rung=rung, value=metrics.to_json(value))
        self.judge(rung)
        return not self.verdict

    def catch_up(self) -> None:
        """Do what an earlier worker was killed before: report what is saved already, and decide on it."""
        spec, saved = self.journal.state.spec, self.rundir.story().step
        points = metrics.read_metrics(self.rundir).get(spec.metric, []) if saved else []
        while not self.verdict and self.to < spec.last_rung:
            rung = self.to
            if rung in self.journal.state.trials[self.trial].values:
                self.judge(rung)
                continue
            there = next(((step, value) for step, value in points if spec.rungs[rung] <= step <= saved), None)
            if there is None:
                return
            self.reached(rung, *there)

    def judge(self, rung: int) -> None:
        """Whether the trial, which has a value at this rung, goes on to the next one; sets `verdict` if not."""
        while True:
            state = self.journal.read()
            trial, spec = state.trials[self.trial], state.spec
            if trial.fence != self.fence or trial.is_over:
                self.verdict = "lost"
            elif state.stopped or decide.why_enough(state, time.time()):
                self.verdict = "paused"
            elif spec.schedule == "pbt":
                # Its successor goes on, as a run of its own.
                self.verdict = "paused"
            elif spec.rule == "stop":
                self.to = rung + 1
                self.verdict = "" if decide.survives(state, trial, rung) else "stopped"
            elif not decide.may_go_on(state, trial, rung) or not self._affordable(state, trial, rung):
                self.verdict = "paused"
            elif not self._promote(trial, rung):
                continue
            return

    def _affordable(self, state: State, trial: Trial, rung: int) -> bool:
        expected = decide.Decision("claim", "promote", trial.number, expected_s=decide.cost_s(state, rung + 1))
        return decide.fits(state, expected, time.time(), but=trial.number)

    def _promote(self, trial: Trial, rung: int) -> bool:
        """Claim the next rung for the process that trains it already; False where somebody wrote meanwhile."""
        body = claim_body(self.journal.state, trial, self.slot, "promote", rung + 1)
        body |= {"used_s": trial.used_s, "step": trial.step, "died": False}
        if not self.journal.decide("claim", **body):
            return False
        self.fence, self.to = trial.fence + 1, rung + 1
        return True

    def fact(self, step: int, used_s: float | None = None) -> dict[str, float]:
        """What every fact about this trial says."""
        cost_s = self.cost_s() if used_s is None else used_s
        return {"t": self.trial, "fence": self.fence, "step": step, "used_s": cost_s}

    def cost_s(self) -> float:
        """Unit-seconds of all attempts so far."""
        return used_s(self.rundir, self.journal.state.spec.num_units, alive=True)

    def pause(self, step: int) -> None:
        """Write down that the trial has stopped and waits, and what its checkpoints take."""
        self.journal.add("pause", **self.fact(step), saved_bytes=retention.saved_bytes(self.rundir))

    def end(self, state: str, cause: str, step: int, value: float | None = None, used_s: float | None = None) -> None:
        """Write down that the trial is over; `value` is that of its end, `used_s` its cost if it is no run's."""
        values = {} if value is None else {str(self.journal.state.spec.last_rung): metrics.to_json(value)}
        self.journal.add("end", **self.fact(step, used_s), state=state, cause=cause, values=values)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Within, what the trial logs is looked at. Raises what was found wrong beside it."""
        if getattr(load_job(self.journal.state.spec.job), "LIGHT", False):
            with _Follower(self):
                yield
        else:
            mine = threading.get_ident()

            def listener(rundir: RunDir, step: int, values: Mapping[str, float]) -> None:
                # What the job itself measures; meters of the hardware write from a thread of their own.
                if threading.get_ident() == mine:
                    self(rundir, step, values)

            metrics.listeners.append(listener)
            try:
                yield
            finally:
                metrics.listeners.remove(listener)
        if self.verdict == "lost":
            raise FencedError(self.rundir.id, self.rundir.attempt, self.rundir.story().attempt)


def claim_body(state: State, trial: Trial, slot: int, why: str, to: int) -> dict[str, object]:
    """What a claim says, but for what the run's ledger tells: used_s, step, died."""
    expected = decide.cost_s(state, to)
    return {
        **{"t": trial.number, "fence": trial.fence + 1, "slot": slot, "to": to, "why": why},
        **{"seen": state.last, "expected_s": expected, "at_s": round(time.time(), 3)},
    }


def never_measured(metric: str, names: set[str]) -> str:
    """What to say of a metric that does not come."""
    near = nearest(metric, sorted(names))
    there = ", ".join(sorted(names)) or "nothing"
    guess = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"The metric '{metric}' was never measured; there is: {there}.{guess}"


class _Follower(threading.Thread):
    """Reads the metrics that somebody's own program reports, while it runs."""

    def __init__(self, watch: Watch) -> None:
        super().__init__(name="metrics", daemon=True)
        self.watch = watch
        self.path: Path = watch.rundir.metrics()
        self.position = 0
        self.ended = threading.Event()

    def __enter__(self) -> _Follower:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        self.ended.set()
        self.join()
        self._read()
        if self.watch.problem is not None:
            raise self.watch.problem from error

    def run(self) -> None:
        while not self.ended.wait(_POLL_S):
            self._read()

    def _read(self) -> None:
        """Pass on the whole lines that have come since the last time."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self.position)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data[: data.rfind(b"\n") + 1]
        self.position += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                body = json.loads(line)
                self._pass_on(int(body["s"]), {name: float(value) for name, value in body["m"].items()})

    def _pass_on(self, step: int, values: dict[str, float]) -> None:
        if self.watch.problem is None:
            try:
                self.watch(self.watch.rundir, step, values)
            except HpctoolError as error:
                self.watch.problem = error
                signals.pause(PAUSED)
