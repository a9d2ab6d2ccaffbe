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


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["own.py"])
    return tmp_path


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
def test_arrays_in_lists_and_dicts_stay_the_objects_that_the_program_and_its_optimizer_have(here: Path) -> None:
    def train(stop: int) -> tuple[Any, ...]:
        torch.manual_seed(0)
        weight, bias, count = torch.randn(3, 3, requires_grad=True), torch.zeros(3, requires_grad=True), np.zeros(2)
        optimizer, losses = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9), [0.0]
        work = job()
        work.register(optimizer=optimizer, params=[weight, bias], more={"losses": losses, "counts": (count,)})
        for _ in work.steps(stop):
            x = torch.randn(4, 3)
            loss = (x @ weight + bias - x).square().mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            count += 1
            losses.append(loss.item())
        return weight.tolist(), bias.tolist(), count.tolist(), losses

    train(3)
    resumed = train(6)
    os.rename(here / "checkpoints", here / "before")
    assert train(6) == resumed


def test_what_has_another_shape_than_when_it_was_saved_is_replaced(here: Path) -> None:
    held: dict[str, Any] = {
        "grows": np.zeros(1),
        "empty": [],
        "fixed": torch.zeros(2),
        "expanded": torch.ones(1).expand(3),
    }
    work = job()
    work.register(held=held)
    for _ in work.steps(1):
        held |= {"grows": np.arange(3.0), "expanded": torch.arange(3.0)}
        held["empty"].append(torch.ones(2))
    again: dict[str, Any] = {
        "grows": np.zeros(1),
        "empty": [],
        "fixed": torch.zeros(2),
        "expanded": torch.ones(1).expand(3),
    }
    job().register(held=again)
    assert (again["grows"].tolist(), again["expanded"].tolist()) == ([0, 1, 2], [0, 1, 2])
    assert again["empty"][0].tolist() == [1, 1]


@pytest.mark.parametrize("registered", [["best", "model"], ["model", "best"]])
def test_the_best_parameters_are_not_written_over_those_of_the_model_that_they_began_as(
    here: Path, registered: list[str]
) -> None:
    def things() -> dict[str, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(2, 2)
        found = {"model": model, "best": {"params": model.state_dict()}}
        return {name: found[name] for name in registered}

    first, second = things(), things()
    work = job()
    work.register(**first)
    for _ in work.steps(1):
        first["best"]["params"] = {name: value + 1 for name, value in first["model"].state_dict().items()}
    job().register(**second)
    assert torch.equal(second["model"].weight, first["model"].weight)
    assert torch.equal(second["best"]["params"]["weight"], first["model"].weight + 1)


def test_what_was_one_array_when_it_was_saved_is_one_again(here: Path) -> None:
    held, work = {"now": np.zeros(2), "best": np.zeros(2)}, job()
    work.register(held=held)
    for _ in work.steps(1):
        held["now"] += 1
        held["best"] = held["now"]
    now = np.zeros(2)
    again = {"now": now, "best": np.zeros(2)}
    job().register(held=again)
    assert again["now"] is again["best"] is now
    assert now.tolist() == [1, 1]


class Copying:
    """Gives copies of its array as its state, which nobody else holds."""

    def __init__(self) -> None:
        self.u = np.zeros(3)

    def state_dict(self) -> dict[str, Any]:
        return {"u": self.u.copy()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.u[:] = state["u"]


def test_an_array_where_a_copied_state_was_is_an_object_of_its_own(here: Path) -> None:
    def begin(work: hpctool.Preemptible) -> Any:
        work.register(copying=Copying())
        # Memory that has just become free is what NumPy takes first.
        array = np.zeros(3)
        work.register(held=[array])
        return array

    work = job()
    array = begin(work)
    for _ in work.steps(1):
        array += 1
    assert begin(job()).tolist() == [1, 1, 1]


def test_one_array_that_was_two_when_it_was_saved_is_refused(here: Path) -> None:
    def begin(work: hpctool.Preemptible) -> dict[str, Any]:
        weight = np.zeros(2)
        held = {"best": weight, "now": weight}
        work.register(held=held)
        return held

    work = job()
    held = begin(work)
    for _ in work.steps(1):
        held["best"] = np.ones(2)
    with pytest.raises(InputError, match="'held/best' and 'held/now' are one object in the program and were two"):
        begin(job())


def test_an_array_that_a_dict_has_got_back_before_it_is_registered_itself_is_refused(here: Path) -> None:
    def begin(work: hpctool.Preemptible) -> dict[str, Any]:
        weight = np.zeros(2)
        held = {"best": weight}
        work.register(held=held)
        work.register(weight=weight)
        return held

    work = job()
    held = begin(work)
    for _ in work.steps(1):
        held["best"] = np.ones(2)
    with pytest.raises(InputError, match="'held/best' holds memory of 'weight': register 'weight' before it"):
        begin(job())


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
