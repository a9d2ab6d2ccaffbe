"""A run records the version that it uses, and from the record follows which step saw which row."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from hpctool.data import order as orders
from hpctool.data.exposure import exposures, runs_of
from hpctool.data.labels import relabel
from hpctool.data.usage import OWN, Order, begin_use
from hpctool.data.verify import verify
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, UnknownName
from tests.data.harm import cut
from tests.data.test_gc import make_run

BATCH = 8


def use(version: Version, tmp_path: Path, name: str = "a", split: str = "train", order: Order | None = None) -> str:
    """A run that used a version and ended after seven steps."""
    run = make_run(tmp_path / name, version.commit, "completed")
    pin = begin_use(version, run, "train", {split: order or Order(3, 0, BATCH, orders.VERSION)})
    assert pin is not None
    pin.release()
    return run.id


def test_the_steps_that_saw_a_row_are_computed_with_the_label_that_it_had(tiny: Version, tmp_path: Path) -> None:
    run = use(tiny, tmp_path)
    rows = tiny.split_rows("train")
    num_rows = len(rows)
    stream = np.concatenate([rows[orders.Order(num_rows, 3).rows(epoch, 0, num_rows)] for epoch in range(4)])
    for row in rows[:3].tolist():
        (found,) = exposures(tiny.store, tiny.uids(np.array([row]))[0])
        assert (found.run, found.state, found.step) == (run, "completed", 7)
        assert found.steps == [s + 1 for s in range(7) if row in stream[s * BATCH : (s + 1) * BATCH]]
        assert found.label == tiny.classes[int(tiny.read("label")[row])]


def test_a_label_that_was_changed_since_is_shown_as_the_run_saw_it(
    tiny: Version, datasets: Path, tmp_path: Path
) -> None:
    row = int(tiny.split_rows("train")[0])
    uid, old = tiny.uids(np.array([row]))[0], int(tiny.read("label")[row])
    use(tiny, tmp_path)
    relabel(tiny.store, "main", [(uid, (old + 1) % 4, "me", "", "t")], "look")
    use(open_version(datasets, "tiny"), tmp_path, "b")
    assert [found.label for found in exposures(tiny.store, uid)] == [str(old), str((old + 1) % 4)]
    assert len(runs_of(tiny.store, tiny.commit)) == 1
    assert len(runs_of(tiny.store)) == 2


def test_a_row_of_another_split_was_not_seen(tiny: Version, tmp_path: Path) -> None:
    use(tiny, tmp_path)
    row = int(tiny.split_rows("test")[0])
    assert list(exposures(tiny.store, tiny.uids(np.array([row]))[0])) == []
    with pytest.raises(UnknownName, match="no row of dataset 'tiny'"):
        list(exposures(tiny.store, "ab" * 16))
    with pytest.raises(InputError, match="cannot be the uid"):
        list(exposures(tiny.store, "ab"))


def test_what_cannot_be_computed_is_said(tiny: Version, tmp_path: Path) -> None:
    use(tiny, tmp_path, "a", order=Order(3, 0, BATCH, orders.VERSION + 1))
    use(tiny, tmp_path, "b")
    use(tiny, tmp_path, "c", order=Order(3, 0, BATCH, OWN))
    (tmp_path / "b" / "runs").rename(tmp_path / "b" / "gone")
    row = int(tiny.split_rows("train")[0])
    first, second, third = exposures(tiny.store, tiny.uids(np.array([row]))[0])
    assert (first.steps, second.steps, second.state) == (None, None, None)
    assert first.note.startswith("its order is of version")
    assert second.note == "how far it came cannot be read"
    assert third.note == "its own Dataset chose the rows"


def test_a_run_that_comes_back_has_one_record(tiny: Version, tmp_path: Path) -> None:
    for _ in range(2):
        use(tiny, tmp_path)
    assert len(list(tiny.store.layout.runs.iterdir())) == 1


def test_damage_names_the_runs_that_it_touches(tiny: Version, tmp_path: Path) -> None:
    run = use(tiny, tmp_path)
    cut(tiny.store.layout.object(tiny.contents.splits.id))
    (found,) = verify(tiny.store).damaged
    assert (found.versions, found.runs) == (["tiny@main"], [run])


def test_a_dataset_that_may_only_be_read_is_used_without_and_says_so_once(
    tiny: Version, readable_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    datasets = readable_folder / "datasets"
    tiny.store.root.parent.rename(datasets)
    was = os.geteuid()
    os.seteuid(65534)
    try:
        version = open_version(datasets, "tiny")
        run = make_run(readable_folder, version.commit, "running")
        assert begin_use(version, run, "train", {"train": None, "val": None}) is None
        assert len(version.read("label")) == 40
    finally:
        os.seteuid(was)
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert "cannot be written (Permission denied)" in said


@pytest.mark.slow
def test_samples_that_a_rollback_passed_over_were_not_seen(tiny: Version, tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", tiny.commit, "running")
    # Step 5 failed, whose samples begin at 32: back to step 2, and on with those at 40; then seven steps in all.
    run.ledger.append({"kind": "rollback", "attempt": 1, "step": 5, "consumed": 32, "to_step": 2})
    run.ledger.append({"kind": "ended", "attempt": 1, "state": "completed", "cause": "", "step": 7})
    begin_use(tiny, run, "train", {"train": Order(3, 0, BATCH, orders.VERSION)})
    rows = tiny.split_rows("train")
    stream = np.concatenate([rows[orders.Order(len(rows), 3).rows(e, 0, len(rows))] for e in range(5)])
    starts = [0, 8, 40, 48, 56, 64, 72]
    for row in rows.tolist():
        (found,) = exposures(tiny.store, tiny.uids(np.array([row]))[0])
        assert found.steps == [s + 1 for s, start in enumerate(starts) if row in stream[start : start + BATCH]]
