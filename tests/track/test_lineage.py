"""Run → inputs → the runs before it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from hpctool.track.lineage import run_lineage
from tests.track.samples import COMMIT, Sample


def parent_of(name: str, identity: str) -> list[dict[str, Any]]:
    return [{"kind": "run", "name": name, "id": identity}]


def test_a_chain_of_runs_ends_at_the_data(tmp_path: Path) -> None:
    train = Sample(tmp_path, "1").begin().log([10]).complete()
    evaluate = Sample(tmp_path, "2", job="evaluate", inputs=parent_of(train.id, "1" * 64))
    node = run_lineage(evaluate.rundir)
    assert [(n.kind, n.name, n.id) for n in node.walk()] == [
        ("run", evaluate.id, "2" * 64),
        ("run", train.id, "1" * 64),
        ("dataset", "digits@main", COMMIT),
    ]
    assert node.made_from[0].facts["code"]["commit"].startswith("9f2c1e0a")
    json.dumps(node.to_json())


def test_a_parent_that_is_gone_is_named_and_said(tmp_path: Path) -> None:
    train = Sample(tmp_path, "1")
    evaluate = Sample(tmp_path, "2", job="evaluate", inputs=parent_of(train.id, "1" * 64))
    shutil.rmtree(train.rundir.path)
    (parent,) = run_lineage(evaluate.rundir).made_from
    assert (parent.name, parent.made_from) == (train.id, [])
    assert "is not in" in parent.problems[0]


def test_runs_that_name_each_other_end_the_walk(tmp_path: Path) -> None:
    one = Sample(tmp_path, "1", inputs=parent_of("train-22222222", "2" * 64))
    Sample(tmp_path, "2", inputs=parent_of("train-11111111", "1" * 64))
    assert len(list(run_lineage(one.rundir).walk())) == 3


def test_a_damaged_parent_is_said(tmp_path: Path) -> None:
    train = Sample(tmp_path, "1")
    train.rundir.run_json.write_text("{")
    evaluate = Sample(tmp_path, "2", job="evaluate", inputs=parent_of(train.id, "1" * 64))
    (parent,) = run_lineage(evaluate.rundir).made_from
    assert "run.json is damaged" in parent.problems[0]
