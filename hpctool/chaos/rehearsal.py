"""The rehearsal: a job straight, then broken, then compared.

<folder>/
  chaos.json          the verdict: what was asked, each fault and what came of it, what differs and why (report.py)
  straight/  broken/  runs folders, each with a queue of its own; kept where bits differ, or with --keep
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hpctool.chaos.compare import compare
from hpctool.chaos.diagnose import diagnose, unlike
from hpctool.chaos.faults import Fault, check_kinds, draw
from hpctool.chaos.listener import Held, Listener, Stand
from hpctool.chaos.report import Outcome, Verdict
from hpctool.chaos.stage import Stage
from hpctool.chaos.strike import Struck, can_spare_one, strike
from hpctool.checkpoint import committed
from hpctool.errors import InputError, OperationError, counted
from hpctool.launch.hang import silent_after_s
from hpctool.launch.submit import Request
from hpctool.launch.watchdog import BEAT_EVERY_S
from hpctool.rundir import RunDir

#: These need something to go back to, beside what they take away.
_NEED_TWO = ("flip", "truncate")
#: So much longer than the straight run may the broken one take, for each fault.
_SLOWNESS = 10.0
_LEAST_S = 120.0


@dataclass
class Order:
    """What is asked for."""

    request: Request
    folder: Path
    kinds: Sequence[str]
    count: int
    num_ranks: int
    seed: int
    #: how long a rank may hang before the rehearsal ends the attempt itself (seconds)
    patience_s: float
    say: Callable[[str], None]
    #: called often, with a line on what is going on
    look: Callable[[str], None]


@dataclass
class Rehearsal:
    """One rehearsal. Raises InputError where the job does not fit, OperationError where it fails by itself."""

    order: Order
    verdict: Verdict = field(init=False)
    _limit: int = 0
    #: how long a hang may last until hpctool must have noticed it
    _patience_s: float = field(init=False)
    _standing: Held | None = None

    def run(self) -> Verdict:
        """Play it all; the folder is made, and chaos.json is not yet written."""
        order = self.order
        check_kinds(order.kinds)
        ranks, faults = counted(order.num_ranks, "rank"), counted(order.count, "fault")
        order.say(f"{faults} ({', '.join(order.kinds)}) on {ranks}, seed {order.seed}, in {order.folder}")
        self._patience_s = order.patience_s
        self.verdict = Verdict.of(order.request, order.seed, order.kinds, order.num_ranks, order.folder)
        with Listener() as listener:
            straight = self._straight(listener)
        # A program may have started ranks of its own, by mpirun.
        self.verdict.num_ranks = max(1, len(listener.heard.pids))
        with Listener() as broken_listener:
            # How long phases take is known from the straight run.
            broken_listener.lasted = listener.lasted
            broken = self._broken(broken_listener, listener.heard.moments)
        self._judge(straight, broken)
        return self.verdict

    # ------------------------------------------------------------------------------------------ straight

    def _straight(self, listener: Listener) -> Stage:
        began_s = time.monotonic()
        stage = Stage.open(self._request("straight"), self.order.folder / "straight", listener)
        try:
            story = stage.finish(1e9, lambda: self._look("straight", listener))
        except BaseException:
            stage.close()
            raise
        if story.state != "completed":
            raise OperationError(
                f"The job does not complete even undisturbed ({story.state}: {story.cause}), so there is nothing to "
                f"compare with. Its folder: {stage.run.path}"
            )
        self.verdict.straight_s = round(time.monotonic() - began_s, 1)
        self.verdict.steps = story.step
        self.verdict.attempts_straight = story.attempt
        self.order.say(f"straight: {story.step} steps in {self.verdict.straight_s} s")
        return stage

    # ------------------------------------------------------------------------------------------ broken

    def _broken(self, listener: Listener, moments: dict[str, set[int]]) -> Stage:
        order = self.order
        kinds = [kind for kind in order.kinds if kind != "none"]
        count = order.count if kinds else 0
        steps = self.verdict.steps
        drawn = draw(
            order.seed, kinds or ["kill"], count, max_steps=steps, num_ranks=self.verdict.num_ranks, seen=moments
        )
        stage = Stage.open(self._request("broken", self._hang_limits(listener)), order.folder / "broken", listener)
        try:
            for fault in drawn:
                self._play(stage, fault)
            self._let_go()
            story = stage.finish(self._limit_s(), lambda: self._look("broken", listener))
            while story.state == "failed" and self._may_try_again():
                stage.again()
                story = stage.finish(self._limit_s(), lambda: self._look("broken", listener))
        except BaseException:
            stage.close()
            raise
        self.verdict.state, self.verdict.cause = story.state, story.cause
        self.verdict.attempts = story.attempt
        return stage

    def _play(self, stage: Stage, fault: Fault) -> None:
        """Wait for a fault's moment, strike, and see the run come back."""
        listener, began_s = stage.listener, time.monotonic()
        listener.trap(lambda stand: _matches(fault, stand) or _is_too_late(fault, stand))
        self._let_go()
        while (held := listener.caught(0.1)) is None:
            self._look(f"fault {fault.number}: waits for {fault.phase}", listener)
            story = stage.story()
            if story.state == "failed" and self._may_try_again():
                stage.again()
            elif stage.is_over() or time.monotonic() > began_s + self._limit_s():
                listener.clear()
                self.verdict.faults.append(Outcome.missed(fault, story))
                return
            stage.keep_running()
        if not _matches(fault, held.stand):
            stage.kill_ranks()
            self._play(stage, fault)
            return
        if fault.kind in _NEED_TWO and not can_spare_one(stage):
            # Too early: nothing would be left to go back to. The same after the next save, or the one after it.
            held.release()
            self._play(stage, replace(fault, phase="save", moment="committed", rank=0))
            return
        before, reached = stage.story(), listener.heard.step
        self._look(f"fault {fault.number}: {fault}", listener)
        struck = strike(stage, fault, held, self._patience_s)
        self._standing = struck.held
        reached = max(reached, listener.heard.step) if fault.kind != "zombie" else reached
        if not struck.goes_on or not stage.ranks():
            listener.forget()
            self._come_back(stage, before.attempt, struck)
        outcome = Outcome.of(fault, held.stand, reached, before, stage.story(), struck)
        self.verdict.faults.append(outcome)
        self.order.say(str(outcome))

    def _let_go(self) -> None:
        if self._standing is not None:
            self._standing.release()
            self._standing = None

    def _come_back(self, stage: Stage, attempt: int, struck: Struck) -> None:
        if not stage.next_attempt(attempt, self._limit_s()):
            raise OperationError(f"After {struck.words} no next attempt began. The run: {stage.run.path}")
        story = stage.story()
        if story.state == "failed" and story.attempt == attempt and self._may_try_again():
            stage.again()
            stage.next_attempt(attempt, self._limit_s())

    def _may_try_again(self) -> bool:
        """Count a failure as ours: so many faults as struck, and one more, so many times a run is tried again."""
        if self.verdict.tried_again > len(self.verdict.struck):
            return False
        self.verdict.tried_again += 1
        return True

    # ------------------------------------------------------------------------------------------ the end

    def _judge(self, straight: Stage, broken: Stage) -> None:
        verdict = self.verdict
        for outcome in verdict.faults:
            outcome.see_resume(broken.story())
        verdict.look_for_lost_commits(broken.story())
        compare_saves(verdict, straight.run, broken.run)
        if verdict.state == "completed":
            verdict.difference = compare(straight.run, broken.run)
        elif verdict.state not in ("completed",):
            verdict.problems.append(f"the broken run ended {verdict.state}: {verdict.cause}")
        verdict.runs = {"straight": straight.run.path, "broken": broken.run.path}
        if verdict.difference:
            self.order.say("The bits differ; further runs look for the first step and the reason.")
            self._limit = self._first_bad() + 1
            known = unlike(straight.run, broken.run)
            verdict.reason = known or diagnose(self._trace, straight.run, verdict.job, self._stop_at())

    def _first_bad(self) -> int:
        """The first step of which it is known that the runs differ."""
        found = self.verdict.difference
        known = [self.verdict.first_bad, found.first_step if found else None]
        return min((step for step in known if step is not None), default=self.verdict.steps)

    def _stop_at(self) -> int:
        """A step at which a stop lies before the first known difference."""
        before = [o.resumed_at for o in self.verdict.struck if o.resumed_at and o.resumed_at < self._first_bad()]
        return max(before, default=max(1, self._first_bad() // 2))

    def _trace(
        self, name: str, more: Sequence[str], listener: Listener, act: Callable[[Stage, Held], None] | None
    ) -> RunDir:
        """A run that saves after every step, up to where the difference is known, and that may be disturbed once."""
        stage = Stage.open(self._request(name, more), self.order.folder / name, listener)
        try:
            if act is not None:
                stop_at = self._stop_at()
                listener.trap(lambda stand: stand.moment == "step" and stand.rank == 0 and stand.step >= stop_at)
                held = self._caught(stage, listener, name)
                if held is not None:
                    act(stage, held)
                    held.release()
            # The last step that is needed is saved when the one after it begins.
            limit = self._limit + 1
            listener.trap(lambda stand: stand.moment == "step" and stand.rank == 0 and stand.step >= limit)
            if self._caught(stage, listener, name) is None:
                return stage.run
        finally:
            if not stage.is_over():
                stage.close()
        return stage.run

    def _caught(self, stage: Stage, listener: Listener, name: str) -> Held | None:
        """Who is caught in the trap; None where the run ended before that."""
        while (held := listener.caught(0.1)) is None:
            self._look(name, listener)
            if stage.is_over():
                listener.clear()
                return None
            stage.keep_running()
        return held

    # ------------------------------------------------------------------------------------------ small things

    def _request(self, name: str, more: Sequence[str] = ()) -> Request:
        order, request = self.order, self.order.request
        runs = (order.folder / name).absolute()
        ours = [
            *("cluster=local", "cluster.wait=false", f"paths.runs={runs}", f"name={name}"),
            *("resources.nodes=1", f"resources.tasks_per_node={order.num_ranks}"),
            # What is broken here on purpose is no sign of a bad job.
            *("cluster.max_failures=1000", "cluster.max_timeouts=1000"),
        ]
        if request.job == "train":
            ours += [] if any(o.startswith("track") for o in request.overrides) else ["track.every_steps=1"]
        elif request.job != "run":
            raise InputError(f"chaos rehearses train and run; '{request.job}' saves nothing that it could go on from.")
        return replace(request, overrides=[*request.overrides, *ours, *more])

    def _hang_limits(self, listener: Listener) -> list[str]:
        """Half of the patience, and never near what the straight run took; what a busy machine teaches is left out."""
        longest_s = {m: max([0.0, *listener.lasted.get(m, [])]) for m in ("step", "evaluate", "save")}
        limit_s = {moment: max(self.order.patience_s / 2, 5 * took_s) for moment, took_s in longest_s.items()}
        if self.order.request.job == "train":
            # Who is frozen gives no sign: that is only known once its beats have not come for a while.
            self._patience_s = 2 * (max(limit_s.values()) + silent_after_s(BEAT_EVERY_S))
        return [
            "cluster.hang.step_p95=null",
            f"cluster.hang.step_s={limit_s['step']:.3f}",
            f"cluster.hang.first_step_min={limit_s['step'] / 60:.4f}",
            f"cluster.hang.evaluation_min={limit_s['evaluate'] / 60:.4f}",
            f"cluster.hang.save_min={limit_s['save'] / 60:.4f}",
        ]

    def _limit_s(self) -> float:
        return max(_LEAST_S, _SLOWNESS * self.verdict.straight_s) + self._patience_s

    def _look(self, what: str, listener: Listener) -> None:
        newest = listener.heard.newest
        where = f"attempt {newest.attempt or '…'} · {newest.moment} {newest.step}" if newest else "starting"
        total = f"/{self.verdict.steps}" if self.verdict.steps else ""
        self.order.look(f"{what} · {where}{total}")


def compare_saves(verdict: Verdict, straight: RunDir, broken: RunDir) -> None:
    """Say of each fault whether what was saved after it, up to the next, is what the straight run saved there."""
    known = {made.step: made.param_digest for made in committed(straight)}
    struck = verdict.struck
    for index, outcome in enumerate(struck):
        until = struck[index + 1].attempt if index + 1 < len(struck) else verdict.attempts
        mine = [m for m in committed(broken) if outcome.attempt < m.attempt <= until and m.step in known]
        bad = [made.step for made in mine if made.param_digest != known[made.step]]
        outcome.same = not bad if mine else None
        if bad and (verdict.first_bad is None or bad[0] < verdict.first_bad):
            verdict.first_bad = bad[0]


def _matches(fault: Fault, stand: Stand) -> bool:
    if stand.moment != fault.moment or stand.rank != fault.rank:
        return False
    if fault.phase == "start-up":
        return True
    if fault.phase == "first step":
        return stand.is_first
    return stand.step >= fault.step


def _is_too_late(fault: Fault, stand: Stand) -> bool:
    """Whether the attempt is past its start, which a fault waits for: then it is ended, so that there is another."""
    waits = fault.phase in ("start-up", "first step")
    return waits and stand.moment == "step" and stand.rank == fault.rank and stand.step >= fault.step
