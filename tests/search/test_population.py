"""A population that really trains: generations of runs, and the checkpoints that they go on from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hpctool import config
from hpctool.checkpoint.commits import committed
from hpctool.checkpoint.pins import kept
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.errors import InputError
from hpctool.launch.plan import Request
from hpctool.rundir import RunDir
from hpctool.search import retention, submit, verify
from hpctool.search.journal import Journal
from hpctool.search.spec import read_spec
from hpctool.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def dataset(root: Path) -> None:
    """`dots`: 4×4 images of two classes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 60)
    images = rng.integers(0, 120, (60, 4, 4), np.uint8)
    images[np.arange(60), labels] += 100
    np.savez(root / "dots.npz", image=images, label=np.array(["top", "upper"])[labels])
    source = ["source=npz", f"source.path={root}/dots.npz", "source.label=label"]
    splits = ["data.splits={train: 0.6, val: 0.4, test: 0, production: 0}"]
    composed = config.compose("prepare", ["data.name=dots", f"paths.root={root}", *source, *splits])
    prepare(config.resolved(config.typed(composed.cfg, PrepareConfig)), World())


def test_each_generation_goes_on_from_checkpoints_that_stay_until_it_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset(tmp_path)
    words = ["search=pbt", "search.pbt.population=3", "search.pbt.interval=2", "search.pbt.quantile=0.34"]
    words += ["search.metric=val/loss", "search.mode=min", "search.keep_paused_gb=1e-9", "optim.lr=interval(1e-4,1e-1)"]
    words += ["data.name=dots", "model=mlp", "loop.max_steps=6", "loop.eval_every_steps=2", "loop.global_batch_size=12"]
    answer = submit.submit(Request("train", [*words, f"paths.root={tmp_path}"]), True, say=print)
    assert answer.exit_code == 0
    folder = Path(answer.folder)
    spec = read_spec(folder)
    state = Journal(folder, spec).read()
    assert spec.rungs == [2, 4]
    assert [trial.state for _, trial in sorted(state.trials.items())] == ["paused"] * 6 + ["completed"] * 3
    runs = folder.parent.parent
    exploited = 0
    for number, trial in state.trials.items():
        record = RunDir(runs / trial.run).record()
        if number < 3:
            assert "continues" not in record
            continue
        assert trial.parent is not None
        assert trial.parent // 3 == number // 3 - 1
        assert record["continues"]["run"] == state.trials[trial.parent].run
        # Whoever is told to stop at a step does so after the next one.
        assert record["continues"]["step"] == state.trials[trial.parent].step == 2 * (number // 3) + 1
        exploited += trial.parent % 3 != number % 3
    assert exploited >= 1
    assert verify.verify(folder).different == []
    # Nobody needs them any more, and they were to take next to nothing.
    assert not list(runs.glob("*/checkpoints/.pin-*"))
    waiting = [RunDir(runs / trial.run) for trial in state.trials.values() if trial.state == "paused"]
    assert [made.path for run in waiting for made in committed(run) if made.path.exists()] == []
    best = [RunDir(runs / state.trials[number].run) for number in (6, 7, 8)]
    assert all(made.path.exists() for run in best for made in committed(run)[-1:])
    _what_is_pinned_stays(best[0])


def _what_is_pinned_stays(run: RunDir) -> None:
    newest = committed(run)[-1].path
    with kept(newest, "somebody"):
        retention.drop(run)
        assert newest.exists()
    retention.drop(run)
    assert not newest.exists()


@pytest.mark.parametrize(("population", "least"), [(2, "0.5"), (3, "0.34")])
def test_a_quantile_that_is_nobody_is_refused_with_the_one_that_is_somebody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, population: int, least: str
) -> None:
    monkeypatch.chdir(tmp_path)
    dataset(tmp_path)
    words = ["search=pbt", f"search.pbt.population={population}", "search.pbt.interval=2", "optim.lr=interval(1e-4,1)"]
    words += ["data.name=dots", "model=mlp", "loop.max_steps=6", "loop.eval_every_steps=2", "loop.global_batch_size=12"]
    with pytest.raises(InputError, match=rf"quantile.*0\.25 of a population of {population} is.*Take {least} or"):
        submit.plan(Request("train", [*words, f"paths.root={tmp_path}"]), True)
    asked = submit.plan(Request("train", [*words, f"search.pbt.quantile={least}", f"paths.root={tmp_path}"]), True)
    assert asked.spec.rungs == [2, 4]
