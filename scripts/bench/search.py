"""How good and how quick a search is, beside optuna as shipped and syne-tune's ASHA, in one run.

python scripts/bench/search.py [--seeds 20] [--peers FOLDER]     the peers' environment is made if it is not there
python scripts/bench/search.py --only hartmann boosting          without the table that takes longest to train

Regret is what the incumbent comes to, against the best in the table; medians over seeds, less is better.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

from search_simulation import NUM_STEPS, Work, index_of, simulate

from hpctool.log import Entry
from hpctool.search import decide, propose
from hpctool.search.journal import JOURNAL_FORMAT, Journal, State, Trial, fold
from hpctool.search.space import Axis, Space, name_of
from hpctool.search.spec import Spec

HERE = Path(__file__).parent
BUDGETS = [10.0, 20.0, 30.0]
RUNGS = [1, 3, 9]


class Ours:
    """hpctool's decisions: the code of the workers, without runs."""

    def __init__(self, table: dict[str, Any], seed: int, sampler: str) -> None:
        self.axes = table["axes"]
        space = Space([Axis(name, "int", [], 0, size - 1) for name, size in self.axes.items()])
        spec = Spec("bench", "bench", space, "loss", "min", seed, sampler, "asha", 8, rungs=RUNGS)
        design = propose.design(spec, [], 10)
        self.state = State(Spec(**{**vars(spec), "design": design}))

    def write(self, op: str, **body: Any) -> None:
        fold(
            self.state, [Entry(self.state.last + 1, {"v": JOURNAL_FORMAT, "op": op, "step": 0, "used_s": 0.0, **body})]
        )

    def next_job(self, worker: int) -> Work | None:
        decision = decide.decide(self.state, worker, 0.0)
        common = {"slot": worker, "why": decision.why, "expected_s": 0.0, "at_s": 0.0, "to": decision.to}
        if decision.what == "propose":
            self.write("propose", **common, t=decision.trial, params=decision.point, run="", seen=self.state.last)
        elif decision.what == "claim":
            fence = self.state.trials[decision.trial].fence + 1
            self.write("claim", **common, t=decision.trial, fence=fence, died=False)
        else:
            return None
        trial = self.state.trials[decision.trial]
        return Work(trial, index_of(self.axes, trial.point), trial.step)

    def on_step(self, worker: int, work: Work, value: float) -> bool:
        trial: Trial = work.key
        fact = {"t": trial.number, "fence": trial.fence}
        if work.step == NUM_STEPS:
            self.write("end", **fact, state="completed", cause="", values={"3": value})
            return False
        if work.step not in RUNGS:
            return True
        rung = RUNGS.index(work.step)
        self.write("rung", **fact, rung=rung, value=value)
        if decide.may_go_on(self.state, trial, rung):
            body = {"slot": worker, "why": "promote", "expected_s": 0.0, "at_s": 0.0, "to": rung + 1, "died": False}
            self.write("claim", **{**fact, "fence": trial.fence + 1}, **body)
            return True
        self.write("pause", **fact)
        trial.step = work.step
        return False


def _one(table: dict[str, Any], seed: int, sampler: str) -> list[float]:
    return simulate(Ours(table, seed, sampler), table, seed, BUDGETS)


def quality(path: Path, seeds: int, peers: Path) -> dict[str, dict[str, list[list[float]]]]:
    """Regrets by method, table and seed."""
    tables = json.loads(path.read_text())
    found: dict[str, dict[str, list[list[float]]]] = {}
    with multiprocessing.get_context("fork").Pool() as pool:
        for name, sampler in (("hpctool asha (tpe)", "tpe"), ("hpctool asha (random)", "random")):
            say(f"searching with {name}")
            found[name] = {
                key: pool.starmap(_one, [(table, seed, sampler) for seed in range(seeds)], chunksize=1)
                for key, table in tables.items()
            }
    for name, title in (("optuna", "optuna as shipped"), ("syne-tune", "syne-tune asha")):
        say(f"searching with {title}")
        command = [str(peers / "bin/python"), "search_peers.py", name, str(path.resolve()), str(seeds)]
        done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=True)
        found[title] = json.loads(done.stdout)
    return found


def peers_in(path: Path) -> Path:
    """The environment of the peers, made if it is not there."""
    if not (path / "bin/pip").exists():
        say(f"making the peers' environment in {path}")
        venv.create(path, with_pip=True)
    # One that was killed in the middle has the folder, and not the packages.
    if subprocess.run([path / "bin/python", "-c", "import optuna, syne_tune"], capture_output=True).returncode:
        packages = ["optuna==5.0.0", "syne-tune==0.16.0"]
        subprocess.run([path / "bin/pip", "install", "-q", *packages], check=True)
    return path


def say(what: str) -> None:
    """What takes its time, to the terminal; the table goes to stdout."""
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


def proposal_ms(num_trials: int) -> float:
    """The median time of a proposal of TPE, five axes, one process, with so many trials there."""
    draw = random.Random(0)
    space = Space(
        [Axis(f"x{number}", "float", [], 0.0, 1.0) for number in range(4)] + [Axis("k", "choice", ["a", "b"])]
    )
    state = State(Spec("bench", "bench", space, "loss", "min", 0, "tpe", "none", 8))
    for number in range(num_trials):
        point = space.at([draw.random() for _ in space.axes])
        trial = Trial(number, point, "", 0, "", 0, state="completed", values={0: point["x0"]})
        state.trials[number] = trial
        state.points.add(name_of(point))
    times = []
    for number in range(7):
        began = time.process_time()
        propose.propose(state, num_trials + number)
        times.append(1000 * (time.process_time() - began))
    return statistics.median(times)


def journal_rate(num_processes: int, each: int = 40) -> float:
    """Entries a second of so many processes that do nothing else but add facts."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Spec("bench", "bench", Space([]), "loss", "min", 0, "random", "none", 8)
        context = multiprocessing.get_context("fork")
        gate = context.Event()
        workers = [context.Process(target=_add, args=(folder, spec, each, gate)) for _ in range(num_processes)]
        for worker in workers:
            worker.start()
        time.sleep(0.5)
        began = time.monotonic()
        gate.set()
        for worker in workers:
            worker.join()
        seconds = time.monotonic() - began
        assert Journal(Path(folder), spec).log.last() == num_processes * each
    return num_processes * each / seconds


def _add(folder: str, spec: Spec, each: int, gate: Any) -> None:
    journal = Journal(Path(folder), spec)
    gate.wait()
    for number in range(each):
        journal.add("rung", t=number, fence=1, rung=0, step=1, value=0.5, used_s=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "hpctool-bench-search")
    parser.add_argument("--tables", type=Path, help="where the tables are kept; made there if they are not")
    parser.add_argument("--only", nargs="+", choices=["hartmann", "digits", "boosting"], default=[], metavar="TABLE")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = told.tables or Path(folder) / "tables.json"
        if not path.exists():
            say("training what the tables consist of: some six minutes of CPU; --tables FILE keeps them")
            # Small matrices: more threads than one make it slower.
            one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            command = [sys.executable, HERE / "search_tables.py", path, *told.only]
            subprocess.run(command, env=one_thread, check=True)
        tables = json.loads(path.read_text())
        found = quality(path, told.seeds, peers_in(told.peers))
    print(f"median regret over {told.seeds} seeds, 8 asynchronous workers, at 10 / 20 / 30 whole trainings")
    for name, by_table in found.items():
        cells = []
        for key in tables:
            medians = [statistics.median(values) for values in zip(*by_table[key], strict=True)]
            means = [statistics.fmean(values) for values in zip(*by_table[key], strict=True)]
            cells.append(
                f"{key} {' / '.join(f'{m:.4f}' for m in medians)} (means {' / '.join(f'{m:.4f}' for m in means)})"
            )
        print(f"  {name:24}", "   ".join(cells))
    for number in (300, 10_000):
        print(f"a proposal at {number:,} trials: {proposal_ms(number):.1f} ms of CPU")
    for number in (1, 8, 32):
        print(f"journal, {number} processes: {journal_rate(number):.0f} entries/s")


if __name__ == "__main__":
    sys.exit(main())
