"""Save and resume in a loop that is not ours: what is kept, what is refused, and where it lies."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpctool
from hpctool.checkpoint import committed
from hpctool.checkpoint.preemptible import _Standalone
from hpctool.errors import FencedError, HpctoolError, InputError, OperationError
from hpctool.rundir import RunDir, create_run
from hpctool.world import FakeWorld

# -- in this process


def begin(work: hpctool.Preemptible, things: dict[str, Any]) -> None:
    work.register(**things)
    next(work.steps(2))


def job(**options: Any) -> hpctool.Preemptible:
    return hpctool.Preemptible(say=lambda _: None, **options)


def test_what_is_registered_goes_on_where_it_was(here: Path) -> None:
    def things() -> dict[str, Any]:
        return {
            "array": np.zeros(3, np.float32),
            "tensor": torch.zeros(2, requires_grad=True),
            "listed": [0],
            "notes": {"best": None, "nested": {"a": (1, 2)}},
            "rng": np.random.default_rng(0),
            "torch_rng": torch.Generator().manual_seed(0),
        }

    first, second = things(), things()
    work = job()
    work.register(**first)
    for step in work.steps(3):
        first["array"] += step
        first["tensor"].data += step
        first["listed"].append(step)
        first["notes"]["best"] = first["rng"].normal()
        torch.rand(1, generator=first["torch_rng"])
    again = job()
    again.register(**second)
    assert (again.step, again.resumed, list(again.steps(3))) == (3, True, [])
    assert second["array"].tolist() == [3, 3, 3]
    assert second["tensor"].tolist() == [3, 3]
    assert (second["listed"], second["notes"]) == (first["listed"], first["notes"])
    assert second["rng"].normal() == first["rng"].normal()
    assert torch.equal(torch.rand(2, generator=second["torch_rng"]), torch.rand(2, generator=first["torch_rng"]))


@pytest.mark.slow
def test_what_the_program_draws_between_two_loops_does_not_disturb_the_second(here: Path) -> None:
    def run(stop: int) -> list[float]:
        np.random.seed(0)
        drawn: list[float] = []
        work = job()
        work.register(drawn=drawn)
        drawn += [0.0 for _ in work.steps(2)]
        np.random.normal()
        for _ in work.steps(stop):
            drawn.append(np.random.normal())
        return drawn

    run(5)
    resumed = run(8)
    os.rename(here / "checkpoints", here / "before")
    assert run(8) == resumed


@pytest.mark.parametrize(
    ("things", "text"),
    [
        ({"lr": 0.1}, "'lr' is a float, which could not be set"),
        ({"step": {}}, "'step' is registered already, or is our own"),
        ({"notes": {"a": {"when": time.gmtime()}}}, "The state at 'notes/a/when'"),
        ({"notes": {"f": np.array(["text"], object)}}, "The state at 'notes/f'"),
    ],
)
def test_what_cannot_be_kept_is_refused_before_the_first_step(here: Path, things: dict[str, Any], text: str) -> None:
    work = job()
    with pytest.raises(InputError, match=text):
        begin(work, things)


@pytest.mark.parametrize(
    ("things", "text"),
    [
        ({"other": {}}, "has no 'other', only notes, array"),
        ({"notes": {}}, "has array, which is not registered"),
        ({"notes": {}, "array": np.zeros(4)}, r"'array' is a numpy float64 of shape \[4\], and the checkpoint holds a"),
    ],
)
def test_a_program_that_has_changed_is_told_how(here: Path, things: dict[str, Any], text: str) -> None:
    work = job()
    work.register(notes={}, array=np.zeros(3))
    list(work.steps(1))
    changed = job()
    with pytest.raises(InputError, match=text):
        begin(changed, things)


def test_two_programs_do_not_take_each_others_checkpoints(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = job()
    work.register(notes={})
    list(work.steps(1))
    monkeypatch.setattr(sys, "argv", ["/somewhere/tune.py"])
    with pytest.raises(InputError, match=r"were written by own.py, and this is tune.py.*Preemptible\('tune'\)"):
        job().register(notes={})
    other = job(folder="tune")
    other.register(notes={})
    assert list(other.steps(1)) == [0]


@pytest.mark.parametrize("options", [{"every_min": 0}, {"every_steps": -1}, {"keep_last": 1}])
def test_periods_that_are_none_are_refused(here: Path, options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        job(**options).register(notes={})


def test_a_loop_inside_a_loop_is_refused(here: Path) -> None:
    work = job()
    work.register(notes={})
    next(steps := work.steps(1))
    with pytest.raises(InputError, match="running already"):
        next(work.steps(2))
    steps.close()


def test_a_loop_in_another_thread_is_refused(here: Path) -> None:
    work, caught = job(), []

    def loop() -> None:
        try:
            next(work.steps(1))
        except HpctoolError as error:
            caught.append(str(error))

    thread = threading.Thread(target=loop)
    thread.start()
    thread.join()
    assert "main thread" in caught[0]


@pytest.mark.slow
def test_checkpoints_come_by_minutes_too(here: Path) -> None:
    work = job(every_min=0.02 / 60)
    work.register(notes={})
    for _ in work.steps(3):
        time.sleep(0.03)
    assert [made.step for made in committed(_Standalone(here / "checkpoints"))] == [1, 2, 3]


def test_another_number_of_ranks_leaves_aside_what_each_had_of_its_own(here: Path) -> None:
    class Apart(FakeWorld):
        """Two ranks of which the other has another seed."""

        def gather(self, value: Any) -> list[Any]:
            found = super().gather(value)
            if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
                found[1] = [value[0], {**value[1], "notes/seed": "other"}]
            elif isinstance(value, str) and len(value) == 64:
                found[1] = "other"
            return found

    many = job(world=Apart(0, 2))
    many.register(notes={"seed": 1, "same": 2})
    list(many.steps(1))
    alone, notes = job(), {"seed": 0, "same": 0}
    with pytest.warns(UserWarning, match="2 ranks had saved, and what each had of its own is left aside: notes/seed"):
        alone.register(notes=notes)
    assert notes["same"] == 2


def test_what_was_of_another_kind_on_each_rank_needs_as_many_ranks_again(here: Path) -> None:
    class Apart(FakeWorld):
        """Two ranks of which the other has another layout."""

        def gather(self, value: Any) -> list[Any]:
            found = super().gather(value)
            if isinstance(value, list) and len(value) == 2 and isinstance(value[0], dict):
                found[1] = [{**value[0], "notes": "other"}, value[1]]
            elif isinstance(value, str) and len(value) == 64:
                found[1] = "other"
            return found

    many = job(world=Apart(0, 2))
    many.register(notes={"seed": 1})
    list(many.steps(1))
    alone = job()
    with pytest.warns(UserWarning, match="left aside: notes"):
        assert alone.resumed
    with pytest.raises(OperationError, match="start as many as before"):
        alone.register(notes={"seed": 0})


def test_an_array_of_each_ranks_own_comes_back_to_its_rank(here: Path) -> None:
    class Apart(FakeWorld):
        """Two ranks whose arrays have one shape and other values."""

        def gather(self, value: Any) -> list[Any]:
            found = super().gather(value)
            if isinstance(value, list) and len(value) == 2 and isinstance(value[1], dict):
                found[1] = [value[0], {**value[1], "band": "other"}]
            elif isinstance(value, str) and len(value) == 64:
                found[1] = "other"
            return found

    many = job(world=Apart(0, 2))
    many.register(band=np.arange(4.0))
    list(many.steps(1))
    again, band = job(world=Apart(0, 2)), np.zeros(4)
    again.register(band=band)
    np.testing.assert_array_equal(band, np.arange(4.0))
    alone = job()
    with pytest.warns(UserWarning, match="left aside: band"):
        assert alone.resumed
    with pytest.raises(OperationError, match="start as many as before"):
        alone.register(band=np.zeros(4))


def test_a_job_that_was_frozen_until_its_requeue_had_begun_does_not_take_over(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SLURM_JOB_ID", "71"), ("SLURM_RESTART_COUNT", "1")):
        monkeypatch.setenv(name, value)
    requeued = job()
    requeued.register(notes={})
    assert next(requeued.steps(10)) == 0
    monkeypatch.delenv("SLURM_RESTART_COUNT")
    with pytest.raises(FencedError, match="comes too late: attempt 1 has begun by a later one"):
        job().register(notes={})
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    job().register(notes={})


# -- in a run of hpctool's


def test_in_a_run_checkpoints_are_the_runs_and_a_newer_attempt_fences(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = create_run(here / "runs", {"name": "run", "identity": "ab" * 32, "job": "run", "code": {}}, {})
    monkeypatch.setenv("HPCTOOL_RUN", str(run.path))
    monkeypatch.setenv("HPCTOOL_ATTEMPT", str(run.begin({"where": "local"})))
    work = job(every_steps=2)
    work.register(notes={})
    steps = work.steps(10)
    assert [next(steps) for _ in range(4)] == [0, 1, 2, 3]
    while not (story := run.story()).checkpoints:  # it is committed beside the steps
        time.sleep(0.01)
    assert (story.step, story.of_kind("resumed")) == (2, [{"attempt": 1, "kind": "resumed", "step": 0}])
    assert not (here / "checkpoints").exists()
    run.begin({"where": "local"})
    with pytest.raises(FencedError):
        list(steps)
    monkeypatch.setenv("HPCTOOL_ATTEMPT", "2")
    again = job()
    again.register(notes={})
    assert next(again.steps(10)) == 2
    assert json.loads((RunDir(run.path).checkpoints / "step-00000002.a1" / "MANIFEST.json").read_text())["step"] == 2
