"""Arrays in lists and dicts that a program has registered: they come back as the objects that it holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import hpctool
from hpctool.errors import InputError
from tests.checkpoint.test_preemptible import job


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
