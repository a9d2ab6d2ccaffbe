"""What is refused before anything is written, and what is written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from hpctool.errors import CorruptError, HpctoolError, InputError, NewerFormat
from hpctool.search import rungs, submit, verify
from hpctool.search.journal import Journal
from hpctool.search.spec import path_of, read_spec
from tests.search.conftest import Ask, request

ASSETS = Path(__file__).parent.parent / "assets" / "search_v1"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["search=asha", "x=interval(1,0)"], "ends are swapped"),
        (["search=asha", "x=0.5"], "nothing to vary"),
        (["search=asha", "x=interval(0,1)"], "would never end"),
        (["search=asha", "search.rungs=[12]", "x=0.1,0.2"], "no evaluation hits step 12"),
        (["search=asha", "search.rungs=[3,1]", "x=0.1,0.2"], "ascending"),
        (["search=random", "search.rungs=[3]", "x=0.1,0.2"], "at their end only"),
        (["search=grid", "x=interval(0,1)"], "a grid needs a list or a range"),
        (["search=ahsa", "x=0.1,0.2"], "Did you mean asha"),
        (["search=random", "search.budgt.max_trials=3", "x=0.1,0.2"], "there is no such key"),
        (["search=random", "search.budget.max_trials=0", "x=0.1,0.2"], "must be more than 0, and got 0"),
        (["search=random", "search.budget.deadline=soon", "x=0.1,0.2"], "is no time"),
        (["search=random", "search.mode=best", "x=0.1,0.2"], "more of loss better"),
        (["search=random", "search.try=[{x: 7}]", "x=0.1,0.2"], "lies outside"),
        (["search=random", "search.try=[{y: 7}]", "x=0.1,0.2"], "does not vary it"),
        (["search=random", "resources.nodes=1,2", "x=0.1,0.2"], "share their workers' resources"),
        (["search=random", "y=0.1,0.2"], "there is no such key"),
        (["search=random", "x=0.1,b"], "takes a number"),
        (["search=random", "search.from=state=completed", "x=0.1,0.2"], "of 0 runs of toy none helps"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_sentence_and_nothing_is_written(
    toy_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HpctoolError) as error:
        submit.submit(request("search.metric=loss", "search.mode=min", *words), True, say=print)
    assert why in str(error.value)
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_search_without_m_is_told_so(toy_job: None) -> None:
    with pytest.raises(InputError, match="hpctool toy -m"):
        submit.submit(request("search=random", "x=0.1,0.2"), False, say=print)


@pytest.mark.slow
def test_a_missing_package_is_said_with_what_there_is_without_it(
    toy_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs optuna: pip install 'hpctool\[search\]'.*random, sobol and grid"):
        submit.plan(request("search.metric=loss", "search.mode=min", "search=tpe", "x=0.1,0.2"), True)


@pytest.mark.parametrize(
    ("num_steps", "every", "eta", "found"),
    [(27, 1, 3, [1, 3, 9]), (208, 24, 3, [24, 72]), (100, 10, 2, [10, 20, 50]), (9, 1, 4, [2])],
)
def test_rungs_are_steps_that_are_measured(num_steps: int, every: int, eta: int, found: list[int]) -> None:
    assert rungs.checked(num_steps, every, eta) == found
    assert all(step % every == 0 and step < num_steps for step in found)


def test_a_training_that_measures_once_cannot_be_compared_before_its_end() -> None:
    with pytest.raises(InputError, match=r"measures 1 time: lower loop\.eval_every_steps"):
        rungs.checked(100, 100, 3)


@pytest.mark.slow
def test_known_good_points_come_first_and_what_they_leave_out_is_filled_in(ask: Ask) -> None:
    words = ("search=random", "x=interval(0,1)", "kind=choice(a,b)", "search.budget.max_trials=3")
    found = ask(*words, "search.try=[{x: 0.25}, {kind: b, x: 0.3}]")
    trials = found.journal().state.trials
    assert (trials[0].point["x"], trials[1].point) == (0.25, {"x": 0.3, "kind": "b"})
    assert trials[2].why == "design"


@pytest.mark.slow
def test_a_search_knows_what_earlier_runs_have_measured(ask: Ask) -> None:
    space = ("x=interval(0,1)", "kind=choice(a,b)", "search.budget.max_trials=4")
    first = ask("search=random", *space)
    warm = ask(
        "search=asha", "search.rungs=[1,3]", *space, f"search.from={first.spec.id}", "search.seed=1", start=False
    )
    assert len(warm.spec.priors) == 4
    assert all(prior.values.keys() == {0, 1, 2} for prior in warm.spec.priors)
    assert any("4 earlier runs are known" in text for text in warm.said)
    same = ask("search=asha", "search.rungs=[1,3]", *space, "search.from=x<2", "search.seed=1", start=False)
    assert same.folder == warm.folder


def test_the_specimen_of_format_1_is_read_and_decided_again(tmp_path: Path) -> None:
    folder = tmp_path / "toy-specimen"
    shutil.copytree(ASSETS, folder)
    spec = read_spec(folder)
    state = Journal(folder, spec).read()
    best = state.best()
    assert (len(state.trials), best and best.number, spec.sampler, state.odd) == (9, 3, "tpe", {})
    again = verify.verify(folder)
    assert (again.different, again.broken) == ([], {})


def test_a_search_of_a_later_format_is_refused_and_a_damaged_one_named(tmp_path: Path) -> None:
    shutil.copytree(ASSETS, tmp_path / "s")
    body = json.loads(path_of(ASSETS).read_text())
    path_of(tmp_path / "s").write_text(json.dumps(body | {"format": 2}))
    with pytest.raises(NewerFormat):
        read_spec(tmp_path / "s")
    path_of(tmp_path / "s").write_text(json.dumps({"format": 1}))
    with pytest.raises(CorruptError):
        read_spec(tmp_path / "s")
