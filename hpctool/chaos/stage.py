"""The stage: one run in the local queue, with the processes that work on it in reach."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpctool import config
from hpctool.chaos.listener import Listener
from hpctool.errors import OperationError
from hpctool.launch import endings, local, snapshot, start, submit
from hpctool.launch.limits import num_ranks
from hpctool.launch.local import Queue
from hpctool.launch.moments import CHAOS
from hpctool.launch.ranks import Attempt, Limits
from hpctool.launch.result import process_start
from hpctool.launch.submit import Request
from hpctool.rundir import OVER, RunDir, Story

#: A process that was killed is gone after this time, or the machine is out of breath.
_DEATH_S = 60.0


@dataclass
class Stage:
    """One run of a rehearsal, in a runs folder of its own, so that it has a queue of its own, too."""

    run: RunDir
    listener: Listener
    said: list[str] = field(default_factory=list)

    @classmethod
    def open(cls, request: Request, runs: Path, listener: Listener) -> Stage:
        """Submit the run. Raises what submission raises: InputError, OperationError."""
        said: list[str] = []
        # What is enqueued keeps the environment of this moment.
        os.environ[CHAOS] = listener.address
        try:
            made = submit.submit(request, say=said.append)
        finally:
            del os.environ[CHAOS]
        return cls(RunDir(runs / made.runs[0]), listener, said)

    @property
    def runs(self) -> Path:
        return self.run.path.parent

    def story(self) -> Story:
        """The run's story as its ledger tells it."""
        return self.run.story()

    def is_over(self) -> bool:
        return self.story().state in OVER

    def supervisor(self) -> int:
        """The process id of the queue's supervisor. Raises OperationError where none lives."""
        found = Queue(self.runs).state()["supervisor"]
        if found is None or process_start(found["pid"]) != found["pid_start"]:
            raise OperationError(f"The queue of {self.runs} has no supervisor.")
        return int(found["pid"])

    def started(self) -> list[int]:
        """The ranks, as the queue has started them."""
        rows = Queue(self.runs).state()["running"]
        return [pid for row in rows if row["run"] == self.run.id for pid in row["pids"] if process_start(pid)]

    def ranks(self) -> list[int]:
        """The processes that work on the run: programs that spoke up, and ranks."""
        # Others may speak up meanwhile, and the listener's thread writes that down.
        spoke = [pid for pid in list(self.listener.heard.pids.values()) if process_start(pid)]
        return list(dict.fromkeys([*spoke, *self.started()]))

    def send(self, number: signal.Signals, pids: list[int]) -> None:
        """Signal these processes; those that are gone are gone."""
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def kill_ranks(self) -> None:
        """Kill all that works on the run, and wait for it."""
        pids = self.ranks()
        self.send(signal.SIGKILL, pids)
        self.wait_for(lambda: not any(process_start(pid) for pid in pids), _DEATH_S, "the ranks do not die")

    @contextlib.contextmanager
    def nobody_runs(self) -> Iterator[None]:
        """Kill the ranks, and have the supervisor notice only after this block: what a node leaves behind."""
        supervisor = self.supervisor()
        self.send(signal.SIGSTOP, [supervisor])
        try:
            self.kill_ranks()
            yield
        finally:
            self.send(signal.SIGCONT, [supervisor])

    def keep_running(self) -> None:
        """See to it that somebody works the queue off."""
        local.ensure_running(self.runs)

    def next_attempt(self, after: int, timeout_s: float) -> bool:
        """Wait until an attempt after this one has begun, or the run is over; False at the timeout."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            story = self.story()
            if story.attempt > after or story.state in OVER:
                return True
            local.ensure_running(self.runs)
            time.sleep(0.02)
        return False

    def elsewhere(self) -> Elsewhere:
        """Begin the next attempt without the queue, as it begins on another node while this one is cut off."""
        return Elsewhere(self)

    def again(self) -> None:
        """Try a run that failed once more, as its user would."""
        os.environ[CHAOS] = self.listener.address
        try:
            start.retry(self.run, self.said.append)
        finally:
            del os.environ[CHAOS]

    def finish(self, timeout_s: float, look: Callable[[], None] = lambda: None) -> Story:
        """Wait for the run's end. Raises OperationError where it does not come."""

        def over() -> bool:
            look()
            local.ensure_running(self.runs)
            return self.is_over()

        self.wait_for(over, timeout_s, "the run does not end")
        return self.story()

    def close(self) -> None:
        """End whatever still works on it. Only for a rehearsal that is given up."""
        with contextlib.suppress(OperationError):
            self.send(signal.SIGKILL, [self.supervisor()])
        self.send(signal.SIGKILL, self.ranks())

    @staticmethod
    def wait_for(what: Callable[[], bool], timeout_s: float, problem: str) -> None:
        """Raises OperationError at the timeout."""
        deadline = time.monotonic() + timeout_s
        while not what():
            if time.monotonic() > deadline:
                raise OperationError(f"Waited for {timeout_s:.0f} s: {problem}.")
            time.sleep(0.02)


class Elsewhere:
    """An attempt that no queue of this host knows of."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.before = stage.story()
        cfg = config.load(stage.run.config_yaml)
        self.max_failures = int(cfg.cluster.max_failures)
        environ = {**os.environ, CHAOS: stage.listener.address, **snapshot.environment(stage.run)}
        limits = Limits(None, 0.0, float(cfg.cluster.kill_wait_s))
        cwd = Path(stage.run.record()["cwd"])
        self.attempt = Attempt(stage.run, num_ranks(cfg), limits, environ, cwd=cwd)

    def poll(self) -> bool:
        """Whether it has ended."""
        return self.attempt.poll() is not None

    def come_home(self, timeout_s: float) -> None:
        """Tell it to stop, write down how it ended, and leave the rest to the queue."""
        if not self.poll():
            self.attempt.stop("")
        self.stage.wait_for(self.poll, timeout_s, "the other attempt does not stop")
        outcome = self.attempt.poll()
        assert outcome is not None, "it has ended"
        run = self.stage.run
        endings.record(run, self.before, outcome, endings.judge(run, self.before, outcome, self.max_failures))
        local.ensure_running(self.stage.runs)

    def kill(self) -> None:
        """End it now."""
        self.attempt.kill()
