"""scripts/soak: rehearsals, alone or side by side, until enough faults have struck, and a summary."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import multiprocessing
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing.queues import SimpleQueue
from pathlib import Path

from hpctool.chaos.report import Verdict
from hpctool.errors import HpctoolError
from tests.chaos.scenarios import SCENARIOS, make_project, rehearse

#: faults of one rehearsal
_EACH = 18
#: So many rehearsals may break off before the whole is given up.
_MOST_BROKEN = 5
_DISK_MB = 64


@dataclass
class Done:
    """A rehearsal that is over: with a verdict, or broken off."""

    name: str
    seed: int
    verdict: Verdict | None = None
    broken: str = ""
    #: where its runs lie, if it is not as it should be
    kept: str = ""

    @property
    def is_good(self) -> bool:
        """Whether the bits are the same and nothing was lost."""
        return self.verdict is not None and self.verdict.is_good

    def lines(self) -> list[str]:
        """What came of it."""
        said = self.verdict.sentences() if self.verdict else [f"BROKEN: {self.broken}"]
        return [f"{self.name} {self.seed}: {line}" for line in [*said, *([f"kept in {self.kept}"] * bool(self.kept))]]


def main() -> int:
    """The exit code: 0 if every rehearsal ended with the same bits and lost nothing."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--only", choices=sorted(SCENARIOS), default=None)
    parser.add_argument("--jobs", type=int, default=1, help="so many rehearsals side by side")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no further rehearsal after this")
    arguments = parser.parse_args()
    seed = secrets.randbelow(1_000_000) if arguments.seed is None else arguments.seed
    names = [arguments.only] if arguments.only else list(SCENARIOS)
    began_s = time.monotonic()
    done = soak(names, arguments.faults, seed, arguments.jobs, began_s + 60 * arguments.minutes)
    print(summary(done, seed, time.monotonic() - began_s))
    return 0 if done and all(one.is_good for one in done) else 1


def soak(names: list[str], faults: int, seed: int, jobs: int, until_s: float) -> list[Done]:
    """Rehearse one scenario after the other, `jobs` at once, until so many faults have struck."""
    done: list[Done] = []
    running: dict[Future[Done], int] = {}
    numbers = itertools.count()
    with contextlib.ExitStack() as stack:
        workers = _workers(stack, jobs)
        while True:
            left = faults - num_struck(done) - sum(running.values())
            given_up = sum(bool(one.broken) for one in done) >= _MOST_BROKEN or time.monotonic() > until_s
            if left > 0 and len(running) < jobs and not given_up:
                number = next(numbers)
                count = min(_EACH, left)
                running[workers.submit(_rehearse, names[number % len(names)], count, seed + number)] = count
            elif running:
                for ended in wait(running, return_when=FIRST_COMPLETED).done:
                    del running[ended]
                    done.append(ended.result())
                    print(*done[-1].lines(), f"-- {num_struck(done)} faults so far", sep="\n", flush=True)
            else:
                return done


def num_struck(done: list[Done]) -> int:
    """How many faults have struck in all of them."""
    return sum(len(one.verdict.struck) for one in done if one.verdict)


def summary(done: list[Done], seed: int, took_s: float) -> str:
    """What came of it all, in a few lines."""
    verdicts = [(one.name, one.verdict) for one in done if one.verdict]
    faults = Counter(o.fault.kind for _, v in verdicts for o in v.struck)
    by_name = Counter({name: 0 for name, _ in verdicts})
    for name, verdict in verdicts:
        by_name[name] += len(verdict.struck)
    different = sum(not verdict.is_equal for _, verdict in verdicts)
    lost = sum(verdict.commits_lost for _, verdict in verdicts)
    lines = [
        f"{faults.total()} faults in {len(verdicts)} rehearsals, {sum(v.attempts for _, v in verdicts)} attempts, "
        f"{took_s / 60:.0f} min, seed {seed}: {different} digests different, {lost} commits lost",
        "by kind: " + ", ".join(f"{kind} {count}" for kind, count in sorted(faults.items())),
        "by job: " + ", ".join(f"{name} {count}" for name, count in by_name.items()),
        *(f"not as it should be: {one.lines()[0]}" for one in done if one.verdict and not one.is_good),
        *(f"given up: {one.lines()[0]}" for one in done if one.broken),
    ]
    return "\n".join(lines)


# ---------------------------------------------------------------------------------------------- workers


def _workers(stack: contextlib.ExitStack, jobs: int) -> ProcessPoolExecutor:
    """A process for each rehearsal at a time: it stands in a project, and on a file system, of its own."""
    # Processes that start anew, since the ones that they start must inherit no lock or thread.
    context = multiprocessing.get_context("spawn")
    roots = context.SimpleQueue()
    for _ in range(jobs):
        roots.put(stack.enter_context(_project()))
    return stack.enter_context(ProcessPoolExecutor(jobs, context, _stand_in, (roots,)))


def _stand_in(roots: SimpleQueue[Path]) -> None:
    root = roots.get()
    os.chdir(root)
    sys.path.insert(0, str(root))
    os.environ |= {
        "PYTHONPATH": str(root),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }


def _rehearse(name: str, count: int, seed: int) -> Done:
    folder = Path.cwd() / "chaos" / f"{name}-{seed}"
    say = functools.partial(print, f"{name} {seed}:", flush=True)
    try:
        done = Done(name, seed, rehearse(name, folder, count, seed, say))
    except HpctoolError as error:
        done = Done(name, seed, broken=str(error))
    except Exception as error:  # a bug of chaos itself must not end what the others rehearse
        traceback.print_exc()
        done = Done(name, seed, broken=f"{type(error).__name__}: {error}")
    if not done.is_good and folder.exists():
        kept = Path(tempfile.mkdtemp(prefix="soak-")) / folder.name
        shutil.copytree(folder, kept, symlinks=True)
        done.kept = str(kept)
    shutil.rmtree(folder, ignore_errors=True)
    return done


@contextlib.contextmanager
def _project() -> Iterator[Path]:
    """A project to stand in; as root on a small file system of its own."""
    root = Path(tempfile.mkdtemp(prefix="hpctool-soak-"))
    small = os.getuid() == 0 and _mounted(root)
    print(f"in {root}" + (f", a file system of {_DISK_MB} MB" if small else ""), flush=True)
    try:
        yield make_project(root)
    finally:
        if small:
            # A supervisor may still be leaving.
            subprocess.run(["umount", "--lazy", str(root)], check=False)
        shutil.rmtree(root, ignore_errors=True)


def _mounted(root: Path) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", f"size={_DISK_MB}m,mode=700", "hpctool-soak", str(root)]
    return shutil.which("mount") is not None and subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main())
