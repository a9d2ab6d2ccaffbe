"""The verdict: what was done, what came of it, and whether anything was lost. chaos.json, format 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.chaos.compare import Difference
from hpctool.chaos.faults import Fault
from hpctool.chaos.listener import Stand
from hpctool.chaos.strike import Struck
from hpctool.launch.submit import Request
from hpctool.rundir import Story, now

FORMAT = 1


@dataclass
class Outcome:
    """What came of one fault."""

    fault: Fault
    words: str = ""
    #: the attempt that was struck, 0 where none was: the run was over before the moment came
    attempt: int = 0
    #: where it stood
    moment: str = ""
    step: int = 0
    #: how many steps any rank had begun
    reached: int = 0
    #: where the next attempt went on; None where there was none
    resumed_at: int | None = None
    #: whether what was saved from here to the next fault is what the straight run had saved; None: nothing to compare
    same: bool | None = None
    damaged: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @classmethod
    def missed(cls, fault: Fault, story: Story) -> Outcome:
        """A fault whose moment never came."""
        return cls(fault, f"not reached: the run was {story.state}")

    @classmethod
    def of(cls, fault: Fault, stand: Stand, reached: int, before: Story, after: Story, struck: Struck) -> Outcome:
        """A fault that struck the attempt that `before` tells of."""
        began = max(before.attempt, 1)
        problems = [*struck.problems, *_zombie_commits(after)]
        return cls(fault, struck.words, began, stand.moment, stand.step, reached, None, None, struck.damaged, problems)

    def see_resume(self, story: Story) -> None:
        """Find in the run's ledger where the attempt after this fault went on."""
        later = [body for body in story.of_kind("resumed") if body["attempt"] > self.attempt]
        if self.attempt and later:
            self.resumed_at = int(later[0]["step"])

    @property
    def steps_lost(self) -> int | None:
        """Steps that had to be taken again."""
        return None if self.resumed_at is None else max(0, self.reached - self.resumed_at)

    def __str__(self) -> str:
        where = f"{self.fault.phase}, step {self.step}" if self.attempt else self.fault.phase
        return f"fault {self.fault.number}: {self.fault} at {where} of attempt {self.attempt}: {self.words}"

    def to_json(self) -> dict[str, Any]:
        """For chaos.json."""
        more = {"steps_lost": self.steps_lost}
        return {**asdict(self.fault), **{k: v for k, v in vars(self).items() if k != "fault"}, **more}


@dataclass
class Verdict:
    """All of a rehearsal."""

    job: str
    overrides: list[str]
    seed: int
    kinds: list[str]
    num_ranks: int
    folder: Path
    began: str = field(default_factory=now)
    straight_s: float = 0.0
    steps: int = 0
    attempts_straight: int = 0
    #: how the broken run ended
    state: str = ""
    cause: str = ""
    attempts: int = 0
    #: how often the run had given up after a fault and was tried again, as its user would
    tried_again: int = 0
    faults: list[Outcome] = field(default_factory=list)
    commits_lost: int = 0
    #: the first step whose checkpoint differs from the straight run's
    first_bad: int | None = None
    problems: list[str] = field(default_factory=list)
    difference: Difference | None = None
    #: why the bits differ, as far as further runs could tell
    reason: list[str] = field(default_factory=list)
    runs: dict[str, Path] = field(default_factory=dict)

    @classmethod
    def of(cls, request: Request, seed: int, kinds: Sequence[str], num_ranks: int, folder: Path) -> Verdict:
        """A verdict that is still open."""
        return cls(request.job, list(request.overrides), seed, list(kinds), num_ranks, folder)

    @property
    def struck(self) -> list[Outcome]:
        """The faults that found their moment."""
        return [outcome for outcome in self.faults if outcome.attempt]

    @property
    def is_equal(self) -> bool:
        """Whether both runs came to the same bits."""
        return self.state == "completed" and self.difference is not None and not self.difference

    @property
    def is_good(self) -> bool:
        """Equal, nothing lost, and nothing else went wrong."""
        return self.is_equal and not self.commits_lost and not self.all_problems

    @property
    def all_problems(self) -> list[str]:
        """What went wrong, in words."""
        return [*self.problems, *(problem for outcome in self.faults for problem in outcome.problems)]

    def look_for_lost_commits(self, story: Story) -> None:
        """Count the resumes that went behind what had been committed and not been damaged by us."""
        damaged = {name for outcome in self.faults for name in outcome.damaged}
        entries = [entry.body for entry in story.entries]
        for index, body in enumerate(entries):
            if body["kind"] != "resumed":
                continue
            known = story_until(entries, index, body["attempt"])
            best = max((b["step"] for b in known if Path(b["path"]).name not in damaged), default=0)
            if body["step"] < best:
                self.commits_lost += 1
                self.problems.append(
                    f"attempt {body['attempt']} went on from step {body['step']}, and {best} was committed"
                )

    def to_json(self) -> dict[str, Any]:
        """chaos.json."""
        plain = {key: value for key, value in vars(self).items() if key not in ("faults", "difference", "runs")}
        return {
            "format": FORMAT,
            **plain,
            "folder": str(self.folder),
            "equal": self.is_equal,
            "good": self.is_good,
            "faults": [outcome.to_json() for outcome in self.faults],
            "difference": vars(self.difference) if self.difference is not None else None,
            "runs": {name: str(path) for name, path in self.runs.items()},
        }

    def sentences(self) -> list[str]:
        """The verdict in words."""
        missed = len(self.faults) - len(self.struck)
        head = f"{len(self.struck)} faults, {self.attempts} attempts, {self.commits_lost} commits lost"
        head += f", {missed} whose moment did not come" if missed else ""
        again = f"; tried again by hand {_times(self.tried_again)}" if self.tried_again else ""
        if self.is_good:
            unseeded = self.difference is not None and self.difference.unseeded
            note = ["  Its random streams were not seeded; nothing that it saved depends on them."] if unseeded else []
            return [f"The same bits. {head}{again}. Seed {self.seed}.", *note]
        lines = [f"{'The same bits, but' if self.is_equal else 'NOT the same bits.'} {head}{again}. Seed {self.seed}."]
        lines += [f"  {problem}" for problem in self.all_problems]
        lines += self.difference.sentences() if self.difference is not None else []
        return [*lines, *self.reason, *(f"  {name}: {path}" for name, path in self.runs.items())]

    def write(self) -> Path:
        """Write chaos.json, and say where it is."""
        path = self.folder / "chaos.json"
        files.write_json(path, self.to_json())
        return path


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def story_until(entries: list[dict[str, Any]], index: int, attempt: int) -> list[dict[str, Any]]:
    """The checkpoints that stood in the ledger when an attempt began, each committed by the newest one of its time."""
    newest, found = 0, []
    for body in entries[:index]:
        if body["kind"] == "begun":
            if body["attempt"] >= attempt:
                break
            newest = max(newest, body["attempt"])
        elif body["kind"] == "checkpoint" and body["attempt"] >= newest:
            found.append(body)
    return found


def _zombie_commits(story: Story) -> list[str]:
    """Checkpoints that an attempt committed after a newer one had begun."""
    newest, found = 0, []
    for entry in story.entries:
        body = entry.body
        if body["kind"] == "begun":
            newest = max(newest, body["attempt"])
        elif body["kind"] == "checkpoint" and body["attempt"] < newest:
            found.append(f"attempt {body['attempt']} committed step {body['step']} after {newest} had begun")
    return found
