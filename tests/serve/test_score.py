from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from omegaconf import OmegaConf

from hpctool import config
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, Stopped, UnknownName
from hpctool.launch import signals
from hpctool.launch.submit import Request, submit
from hpctool.rundir import RunDir
from hpctool.serve.journal import Journal
from hpctool.serve.resolve import resolve_score
from hpctool.serve.schema import ScoreConfig
from hpctool.serve.score import score
from hpctool.world import World
from tests.serve.samples import Start, command, images, output, publish_model


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset `tiny` of 50 random images, made once by `hpctool prepare`."""
    root = tmp_path_factory.mktemp("dataset")
    np.savez(root / "tiny.npz", image=images(50), label=np.arange(50) % 3)
    overrides = ["data.name=tiny", "source=npz", f"source.path={root / 'tiny.npz'}", f"paths.root={root}"]
    done = submit(Request("prepare", overrides), say=lambda _: None)
    assert done.exit_code == 0
    return root / "datasets"


@pytest.fixture
def scored(project: Path, dataset: Path) -> Path:
    """The project with the dataset in it."""
    shutil.copytree(dataset, project / "datasets")
    return project


def composed(root: Path, *overrides: str) -> Any:
    here = [f"paths.root={root}", "data.name=tiny", "score.model=digits@production", "score.segment_rows=16"]
    return config.typed(config.compose("score", [*here, *overrides]).cfg, ScoreConfig)


def run(root: Path, *overrides: str, world: World | None = None, name: str = "score-0123abcd") -> dict[str, Any]:
    """Score as the job does, without its process."""
    cfg = composed(root, *overrides)
    resolve_score(cfg)
    typed = cast(ScoreConfig, OmegaConf.to_object(config.resolved(cfg)))
    return score(RunDir(root / "runs" / name), world or World(), typed)


def journal(root: Path) -> Journal:
    return Journal(root / "journals" / "digits")


@pytest.mark.slow
def test_scores_are_the_servers_answers_for_the_same_rows(scored: Path, start: Start) -> None:
    run(scored)
    found = journal(scored).read()
    version = open_version(scored / "datasets", "tiny")
    x = version.read("image")
    assert found.request == version.uids()
    np.testing.assert_array_equal(found.input, x)
    answer = start().ask(x)
    for name in ("probabilities", "logits"):
        np.testing.assert_allclose(found.arrays[name], output(answer, name), rtol=1e-5, atol=1e-6)
    origin = journal(scored).segments()[0].origin
    assert (origin.origin, origin.model, origin.data_commit) == ("score", "digits@0001", version.commit)


@pytest.mark.slow
def test_the_job_runs_on_two_ranks_and_writes_what_one_writes(scored: Path) -> None:
    arguments = ["data.name=tiny", "score.model=digits", "score.segment_rows=16"]
    there = ["cluster=local", "cluster.wait=true", "resources.tasks_per_node=2"]
    process = command(scored, *arguments, *there, job="score")
    said, _ = process.communicate(timeout=110)
    assert process.returncode == 0, said
    two = journal(scored)
    assert sorted(s.first for s in two.segments()) == [0, 16, 32, 48]
    ids = sorted(two.read().ids)
    assert len(ids) == 50
    result = next((scored / "runs").glob("score-*/result.json")).read_text()
    assert '"score/num_new": 50' in result
    shutil.rmtree(scored / "journals")
    run(scored)
    assert sorted(journal(scored).read().ids) == ids


@pytest.mark.slow
def test_scored_again_it_finds_what_is_there(scored: Path) -> None:
    first = run(scored)
    again = run(scored, name="score-4567cdef")
    assert first["metrics"] == {"score/num_rows": 50, "score/num_new": 50}
    assert again["metrics"] == {"score/num_rows": 50, "score/num_new": 0}
    assert len(journal(scored).read()) == 50
    # Another size of the segments is no reason to do anything again.
    assert run(scored, "score.segment_rows=7")["metrics"]["score/num_new"] == 0


@pytest.mark.slow
def test_another_model_split_or_source_is_scored_by_itself(scored: Path) -> None:
    run(scored)
    publish_model(scored / "models", seed=2)
    assert run(scored, "score.model=digits@0002")["metrics"]["score/num_new"] == 50
    num_test = open_version(scored / "datasets", "tiny").splits["test"]
    assert run(scored, "data.split=test", "score.source=test")["metrics"]["score/num_new"] == num_test
    assert len(journal(scored).read(source="test")) == num_test
    assert len(journal(scored).read(model="digits@0002")) == 50


@pytest.mark.slow
def test_a_damaged_segment_is_scored_again_and_only_that(scored: Path) -> None:
    run(scored)
    before = journal(scored).read()
    path = journal(scored).layout.object(journal(scored).segments()[1].stored.id)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.warns(UserWarning, match="It held 16 predictions"):
        assert run(scored)["metrics"]["score/num_new"] == 16
    after = journal(scored)
    with pytest.warns(UserWarning, match="set aside"):
        found = after.read()
    assert sorted(found.ids) == sorted(before.ids)
    assert after.lost_rows == 0


@pytest.mark.slow
def test_told_to_stop_it_says_where_it_is_and_goes_on_there(scored: Path) -> None:
    class Stopping(World):
        """The signal comes while the rows are handed out."""

        def on_main(self, action: Any) -> Any:
            found = super().on_main(action)
            signals.request_stop("timeout")
            return found

    try:
        with pytest.raises(Stopped) as caught:
            run(scored, world=Stopping())
    finally:
        signals.clear()
    assert (caught.value.cause, caught.value.step) == ("timeout", 0)
    assert run(scored)["metrics"]["score/num_new"] == 50


@pytest.mark.slow
def test_what_does_not_fit_is_said_before_anything_starts(scored: Path) -> None:
    publish_model(scored / "models", seed=1, name="wide", shape=(5, 4, 1))
    with pytest.raises(ConfigError, match=r"takes a column 'image' of uint8 \[5, 4, 1\]; in tiny@main it is uint8"):
        resolve_score(composed(scored, "score.model=wide"))
    with pytest.raises(UnknownName, match="split of tiny@main"):
        resolve_score(composed(scored, "data.split=later"))
    with pytest.raises(UnknownName, match="model"):
        resolve_score(composed(scored, "score.model=letters"))
    with pytest.raises(ConfigError, match="more than 32 bytes"):
        resolve_score(composed(scored, f"score.source={'x' * 33}"))


@pytest.mark.slow
def test_version_and_dataset_are_pinned(scored: Path) -> None:
    cfg = composed(scored)
    inputs = {one.kind: one for one in resolve_score(cfg).inputs}
    assert cfg.score.model == "digits@0001"
    assert cfg.data.name == open_version(scored / "datasets", "tiny").pinned
    assert len(inputs["model"].id) == len(inputs["dataset"].id) == 64
