"""One owner of every path, and a story that entries tell the same way whoever reads them."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpctool import files
from hpctool.errors import CorruptError, InputError, NewerFormat, OperationError, UnknownName
from hpctool.log import Entry
from hpctool.rundir import STATES, RunDir, Story, check_private, create_run, find_run, fold, list_run_ids, now, who

Spawn = Callable[..., "subprocess.Popen[str]"]
IDENTITY = "0123456789abcdef" * 4


def submitted(slurm_job_id: str = "") -> dict[str, Any]:
    return {"kind": "submitted", "where": "slurm" if slurm_job_id else "local", "slurm_job_id": slurm_job_id}


def begun(attempt: int, slurm_job_id: str = "") -> dict[str, Any]:
    return {"kind": "begun", "attempt": attempt, "slurm_job_id": slurm_job_id}


def checkpoint(attempt: int, step: int) -> dict[str, Any]:
    return {"kind": "checkpoint", "attempt": attempt, "step": step, "path": "", "digest": ""}


def ended(attempt: int, state: str, cause: str = "", step: int = 0) -> dict[str, Any]:
    return {"kind": "ended", "attempt": attempt, "state": state, "cause": cause, "step": step}


CANCEL = {"kind": "cancel", "by": "ada@login"}


def story(*bodies: dict[str, Any]) -> Story:
    return fold([Entry(number, body) for number, body in enumerate(bodies, start=1)])


@pytest.mark.parametrize(
    ("bodies", "state", "cause", "attempt", "step"),
    [
        ([], "queued", "", 0, 0),
        ([submitted()], "queued", "", 0, 0),
        ([submitted(), begun(1)], "running", "", 1, 0),
        ([submitted(), begun(1), checkpoint(1, 50)], "running", "", 1, 50),
        ([begun(1), checkpoint(1, 50), ended(1, "completed", step=80)], "completed", "", 1, 80),
        ([begun(1), ended(1, "failed", "out of memory", 7)], "failed", "out of memory", 1, 7),
        # preempted, requeued, back again, lost, back again, done
        ([begun(1), checkpoint(1, 10), ended(1, "requeued", "preempted", 12)], "requeued", "preempted", 1, 12),
        ([begun(1), checkpoint(1, 10), ended(1, "requeued", "preempted", 12), begun(2)], "running", "", 2, 12),
        ([begun(1), checkpoint(1, 10), begun(2), checkpoint(2, 20), begun(3)], "running", "", 3, 20),
        ([begun(1), begun(2), ended(2, "completed", step=30)], "completed", "", 2, 30),
        # a zombie: what attempt 1 says after attempt 2 has begun
        ([begun(1), begun(2), ended(1, "failed", "lost its peers", 99)], "running", "", 2, 0),
        ([begun(1), begun(2), checkpoint(1, 99)], "running", "", 2, 0),
        ([begun(1), begun(2), ended(2, "completed", step=5), ended(1, "failed", "late")], "completed", "", 2, 5),
        # cancelled in every state
        ([submitted(), CANCEL], "cancelled", "cancelled by ada@login", 0, 0),
        ([begun(1), CANCEL], "stopping", "cancelled by ada@login", 1, 0),
        ([begun(1), CANCEL, CANCEL], "stopping", "cancelled by ada@login", 1, 0),
        ([begun(1), CANCEL, ended(1, "requeued", "preempted", 4)], "cancelled", "cancelled by ada@login", 1, 4),
        ([begun(1), CANCEL, ended(1, "failed", "killed")], "cancelled", "cancelled by ada@login", 1, 0),
        ([begun(1), CANCEL, ended(1, "completed", step=9)], "completed", "", 1, 9),
        ([begun(1), ended(1, "requeued", "timeout"), CANCEL], "cancelled", "cancelled by ada@login", 1, 0),
        ([begun(1), ended(1, "completed", step=9), CANCEL], "completed", "", 1, 9),
        ([submitted(), CANCEL, {**CANCEL, "by": "bob"}], "cancelled", "cancelled by ada@login", 0, 0),
        # asked for again after it was over
        ([begun(1), ended(1, "failed", "bug", 7), submitted()], "queued", "", 1, 7),
        ([submitted(), CANCEL, submitted(), begun(1)], "running", "", 1, 0),
        ([begun(1), ended(1, "failed", "bug"), submitted(), begun(2)], "running", "", 2, 0),
        # a second submission that never began ends under the number of the attempt before
        ([begun(1), ended(1, "failed", "a"), submitted(), ended(1, "failed", "no node")], "failed", "no node", 1, 0),
        # the job began before the one who submitted it wrote that down
        ([begun(1, "77"), submitted("77")], "running", "", 1, 0),
        ([begun(1, "77"), ended(1, "completed", step=3), submitted("78")], "queued", "", 1, 3),
        # kinds that this version does not know
        ([begun(1), {"kind": "resumed", "attempt": 1, "step": 4}, {"kind": "from the future"}], "running", "", 1, 0),
    ],
)
def test_the_story_of_a_run(bodies: list[dict[str, Any]], state: str, cause: str, attempt: int, step: int) -> None:
    told = story(*bodies)
    assert (told.state, told.cause, told.attempt, told.step) == (state, cause, attempt, step)
    assert told.state in STATES


def test_a_story_knows_where_the_run_is() -> None:
    told = story(submitted("77"), begun(1, "77"), begun(2, "77"))
    assert (told.where, told.slurm_job_id) == ("slurm", "77")
    assert [body["attempt"] for body in told.of_kind("begun")] == [1, 2]


def test_checkpoints_of_a_fenced_attempt_do_not_count() -> None:
    told = story(begun(1), checkpoint(1, 10), begun(2), checkpoint(1, 20), checkpoint(2, 15))
    assert [(body["attempt"], body["step"]) for body in told.checkpoints] == [(1, 10), (2, 15)]


def record(name: str = "train", identity: str = IDENTITY) -> dict[str, Any]:
    return {"name": name, "job": "train", "identity": identity}


def test_a_run_folder_says_who_it_is(tmp_path: Path) -> None:
    run = create_run(tmp_path / "runs", record(), {"config.yaml": "seed: 1\n", "overrides.txt": ""})
    assert run.id == "train-01234567"
    told = run.record()
    assert {"format": 1, "id": run.id, **record()}.items() <= told.items()
    assert told["by"] == who()
    assert told["created"] <= now()
    assert run.config_yaml.read_text() == "seed: 1\n"
    assert run.path.stat().st_mode & 0o777 == 0o700
    assert run.result() is None
    assert run.story().state == "queued"
    assert sorted(os.listdir(run.path)) == ["config.yaml", "overrides.txt", "run.json"]


def test_asking_again_finds_the_run_and_changes_nothing(tmp_path: Path) -> None:
    first = create_run(tmp_path, record(), {"config.yaml": "first"})
    before = first.run_json.read_bytes()
    again = create_run(tmp_path, record(), {"config.yaml": "second"})
    assert again.path == first.path
    assert again.run_json.read_bytes() == before
    assert again.config_yaml.read_text() == "first"


def test_an_attempt_removes_what_a_killed_one_left_between_the_pictures(tmp_path: Path) -> None:
    run = create_run(tmp_path, {"identity": IDENTITY, "job": "train", "name": "one"}, {})
    run.begin({})
    left = run.artifact(files.temporary_name())
    for path in (left, run.artifact(".t-shirt.png"), run.artifact("confusion.png")):
        path.touch()
    run.begin({})
    assert sorted(os.listdir(left.parent)) == [".t-shirt.png", "confusion.png"]


def test_another_identity_with_the_same_beginning_is_refused(tmp_path: Path) -> None:
    create_run(tmp_path, record(), {})
    with pytest.raises(InputError, match=r"train-01234567 exists with another identity .*another name="):
        create_run(tmp_path, record(identity="01234567" + "f" * 56), {})
    assert create_run(tmp_path, record("other", "01234567" + "f" * 56), {}).id == "other-01234567"


def test_a_folder_that_was_left_half_made_is_made_whole(tmp_path: Path) -> None:
    (tmp_path / "train-01234567").mkdir(mode=0o700)
    (tmp_path / "train-01234567" / "config.yaml").write_text("half")
    assert list_run_ids(tmp_path) == []
    assert create_run(tmp_path, record(), {"config.yaml": "whole"}).config_yaml.read_text() == "whole"
    assert list_run_ids(tmp_path) == ["train-01234567"]


@pytest.mark.slow
def test_many_that_ask_for_the_same_run_get_the_same_one(tmp_path: Path, spawn: Spawn) -> None:
    code = """
import sys; from pathlib import Path; from hpctool.rundir import create_run
run = create_run(Path(sys.argv[1]), {"name": "train", "identity": sys.argv[2], "asked": sys.argv[3]}, {"a.txt": "a"})
print(run.record()["asked"])
"""
    asked = [spawn(code, tmp_path, IDENTITY, number) for number in range(6)]
    told = [process.communicate(timeout=60) for process in asked]
    assert len({said for said, _ in told}) == 1, told
    assert told[0][0].strip() in "012345"


def test_reading_what_is_not_a_run_says_which_there_are(tmp_path: Path) -> None:
    create_run(tmp_path, record(), {})
    with pytest.raises(UnknownName, match="There is no run 'train-9'; there is: train-01234567"):
        RunDir(tmp_path / "train-9").record()


def test_a_run_of_a_newer_format_and_a_broken_one_are_refused(tmp_path: Path) -> None:
    run = create_run(tmp_path, record(), {})
    files.write_json(run.run_json, {**run.record(), "format": 2})
    with pytest.raises(NewerFormat, match="of format 2; this hpctool reads up to 1"):
        run.record()
    run.run_json.write_text("{")
    with pytest.raises(CorruptError, match=r"run\.json is damaged"):
        run.record()


def test_runs_are_found_by_any_beginning_that_is_unique(tmp_path: Path) -> None:
    for name, identity in (("train", "aa" * 32), ("train", "ab" * 32), ("train-aaaa", "cc" * 32)):
        create_run(tmp_path, record(name, identity), {})
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "notes").mkdir()
    assert list_run_ids(tmp_path) == ["train-aaaa-cccccccc", "train-aaaaaaaa", "train-abababab"]
    assert find_run(tmp_path, "train-ab").id == "train-abababab"
    assert find_run(tmp_path, "train-aaaaaaaa").id == "train-aaaaaaaa"
    with pytest.raises(InputError, match=r"'train-a' is the beginning of 3 runs: train-aaaa-cccccccc, .*Type more"):
        find_run(tmp_path, "train-a")


def test_the_whole_id_counts_even_if_it_begins_another(tmp_path: Path) -> None:
    first = create_run(tmp_path, record("a", "bb" * 32), {})
    create_run(tmp_path, record("a-bbbbbbbb", "cc" * 32), {})
    assert find_run(tmp_path, "a-bbbbbbbb").id == first.id


@pytest.mark.parametrize("name", ["", "notes", "sweeps", "../runs", "evaluate", "."])
def test_what_is_no_run_is_answered_with_those_that_are(tmp_path: Path, name: str) -> None:
    create_run(tmp_path / "runs", record(), {})
    (tmp_path / "runs" / "notes").mkdir()
    with pytest.raises(UnknownName, match=re.escape(f"There is no run '{name}'; there is: train-01234567")):
        find_run(tmp_path / "runs", name)


def test_where_there_are_no_runs_there_is_none(tmp_path: Path) -> None:
    assert list_run_ids(tmp_path / "runs") == []
    with pytest.raises(UnknownName, match=r"There is no run 'x'; there is: none. They lie in .*runs\."):
        find_run(tmp_path / "runs", "x")


def test_the_private_run_of_somebody_else_does_not_stop_a_listing(tmp_path: Path, unprivileged: Path) -> None:
    mine = create_run(unprivileged, record(), {})
    hidden = create_run(unprivileged, record("other"), {})
    hidden.path.chmod(0)  # what a private folder of another user looks like
    assert list_run_ids(unprivileged) == [mine.id]
    hidden.path.chmod(0o700)


def test_every_path_of_an_attempt_carries_its_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "train-01234567", attempt=2)
    root = run.path
    assert run.metrics() == root / "metrics" / "2.jsonl"
    assert run.log(3) == root / "logs" / "2" / "3.log"
    assert run.error(0, attempt=1) == root / "errors" / "1" / "0.json"
    assert run.checkpoint(1200) == root / "checkpoints" / "step-00001200.a2"
    with pytest.raises(AssertionError, match="a reader of a run"):
        RunDir(root).metrics()


def test_artifacts_have_their_folder(tmp_path: Path) -> None:
    path = RunDir(tmp_path).artifact("confusion.png")
    path.write_bytes(b"x")
    assert path == tmp_path / "artifacts" / "confusion.png"


def test_the_ledger_outlives_a_broken_entry(tmp_path: Path) -> None:
    run = create_run(tmp_path, record(), {})
    for body in (begun(1), checkpoint(1, 10), checkpoint(1, 20)):
        run.ledger.append(body)
    run.ledger.path(2).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="0000000002 is damaged"):
        told = run.story()
    assert (told.state, told.step, len(told.checkpoints)) == ("running", 20, 1)


@pytest.mark.parametrize("later", [[], [checkpoint(2, 10)]], ids=["alone", "with a checkpoint"])
def test_no_number_of_an_attempt_is_given_twice_where_its_beginning_cannot_be_read(
    tmp_path: Path, later: list[dict[str, Any]]
) -> None:
    run = create_run(tmp_path, record(), {})
    assert [run.begin({}), run.begin({})] == [1, 2]
    for body in later:
        run.ledger.append(body)
    run.ledger.path(2).write_bytes(b"torn")
    with pytest.warns(UserWarning, match="0000000002 is damaged"):
        assert run.begin({}) > 2


def test_a_folder_that_others_may_write_is_not_resumed_from(tmp_path: Path) -> None:
    run = create_run(tmp_path, record(), {})
    check_private(run.path)
    for mode in (0o770, 0o702):
        run.path.chmod(mode)
        with pytest.raises(OperationError, match=rf"Refused to resume .* mode {mode:o}, .*chmod go-w"):
            check_private(run.path)
    run.path.chmod(0o755)
    check_private(run.path)
