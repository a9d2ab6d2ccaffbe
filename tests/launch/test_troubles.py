"""The local queue in trouble: what is wrong with one run, or for a moment, costs no other run anything."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from typing import Any

import pytest

from hpctool.rundir import RunDir
from tests.launch.conftest import Bench, MakeRun
from tests.launch.test_supervisor import SHORT, ends, is_noted

pytestmark = pytest.mark.slow  # whole commands and processes


@pytest.mark.slow
@pytest.mark.parametrize("how", ["cannot be read", "is not there"])
def test_a_queue_that_is_away_for_a_moment_costs_no_run(bench: Bench, make_run: MakeRun, how: str) -> None:
    run = make_run("begin(); note('from'); time.sleep(3); end('completed')")
    bench.enqueue(bench.ticket(run))
    is_noted(run)
    mine, aside = bench.queue.folder / "queue.json", bench.queue.folder / "aside"
    mine.rename(aside)
    if how == "cannot be read":
        mine.mkdir()
    time.sleep(0.7)
    if how == "cannot be read":
        mine.rmdir()
    aside.rename(mine)
    bench.wait(run)
    assert ends(run) == [(1, "completed", "")]
    assert bench.log().count("For the next 10 s, the queue") == 1


def test_a_run_whose_ledger_holds_nonsense_takes_no_other_along(bench: Bench, make_run: MakeRun) -> None:
    odd = make_run("begin(); run.ledger.append({'odd': 1})", "odd")
    good = make_run("begin(); note('from'); time.sleep(1.5); end('completed')", "good")
    bench.enqueue(bench.ticket(good), bench.ticket(odd))
    bench.wait(good, odd)
    assert ends(good) == [(1, "completed", "")]
    assert "what it left cannot be read: KeyError" in bench.log()


def too_long(run: RunDir) -> None:
    record = json.loads(run.run_json.read_text())
    run.run_json.write_text(json.dumps(record | {"cwd": "/x" + "x" * 300}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (too_long, "File name too long"),
        (lambda run: run.run_json.write_text("{}"), "KeyError"),
        (lambda run: (run.path / "ledger").write_text(""), "Not a directory"),
    ],
    ids=["a working folder", "a record", "a ledger"],
)
def test_a_run_that_cannot_be_started_fails_and_the_next_is_taken(
    bench: Bench, make_run: MakeRun, spoil: Callable[[RunDir], Any], why: str
) -> None:
    first, odd, good = (make_run(SHORT, name) for name in ("first", "odd", "good"))
    bench.enqueue(*(bench.ticket(run, max_parallel=1) for run in (first, odd, good)))
    spoil(odd)
    bench.wait(odd, good)
    assert good.story().state == "completed"
    assert re.search(rf"{odd.id}: it cannot be started: .*{why}", bench.log())
    if spoil is too_long:
        assert (odd.story().state, why in odd.story().cause) == ("failed", True)
