"""The index of runs: the same table with it and without, few file-system calls, and nothing that it is believed in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hpctool.launch.handover import mark_submitted
from hpctool.log import Log
from hpctool.rundir import RunDir, index_folder, now
from hpctool.track.index import Index
from hpctool.track.row import Row
from hpctool.track.runs import list_rows
from hpctool.track.underway import Underway
from tests.track.samples import Sample

Spawn = Callable[..., "subprocess.Popen[str]"]

#: of ten thousand runs, so many are not over
NUM_UNDERWAY = 100
ASSETS = Path(__file__).parent.parent / "assets"


def table(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.to_json() | {"lr": row.value("optim.lr"), "model": row.value("model")} for row in rows]


def three(runs: Path) -> list[Sample]:
    """One that completed, one that failed, one that runs."""
    done = Sample(runs, "aa", lr=0.1).begin().log([1, 2]).complete()
    failed = Sample(runs, "bb", lr=0.2).begin().fail("no such lamp").end("failed", "ValueError: no such lamp", 1)
    return [done, failed, Sample(runs, "cc", lr=0.3).begin().log([1])]


def opened(action: Callable[[], Any], where: Path) -> list[str]:
    """The files below a folder that an action opens, lists or makes, by the interpreter's own account."""
    seen: list[str] = []
    is_on = [True]

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        kinds = ("open", "os.listdir", "os.scandir", "os.mkdir", "os.link", "os.rename")
        if is_on[0] and event in kinds and str(arguments[0]).startswith(str(where)):
            seen.append(f"{event} {arguments[0]}")

    sys.addaudithook(note)
    action()
    is_on[0] = False
    return seen


def test_a_table_from_the_index_is_the_table_from_the_folders(tmp_path: Path) -> None:
    three(tmp_path)
    first = table(list_rows(tmp_path))
    assert index_folder(tmp_path).is_dir()
    assert table(list_rows(tmp_path)) == first == table(list_rows(tmp_path, scan=True))
    assert [row["state"] for row in first].count("running") == 1


def test_runs_that_are_over_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done, _, running = three(tmp_path)
    monkeypatch.setattr("hpctool.track.index.NUM_COMPARED", 0)
    list_rows(tmp_path)
    seen = opened(lambda: list_rows(tmp_path), tmp_path)
    assert not [one for one in seen if done.id in one]
    assert [one for one in seen if running.id in one]


@pytest.mark.parametrize("how", ["retried", "begun by hand", "deleted"])
def test_what_happened_to_a_run_since_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    _, failed, _ = three(tmp_path)
    monkeypatch.setattr("hpctool.track.index.NUM_COMPARED", 0)
    list_rows(tmp_path)
    if how == "retried":
        mark_submitted(failed.rundir, "slurm", "77")
    elif how == "begun by hand":
        RunDir(failed.rundir.path).begin({"where": "inline"})
    else:
        shutil.rmtree(failed.rundir.path)
    assert table(list_rows(tmp_path)) == table(list_rows(tmp_path, scan=True))
    assert "failed" not in {row.state for row in list_rows(tmp_path)}
    if how == "deleted":
        assert failed.id not in Index.read(tmp_path).rows


KILLED = """
import os, signal, sys
from pathlib import Path
from hpctool.rundir import RunDir
from hpctool.launch.handover import mark_submitted
honest = os.link
def link(source, target):
    honest(source, target)
    if "ledger" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
os.link = link
run = RunDir(Path(sys.argv[1]))
mark_submitted(run, "local") if sys.argv[2] == "submitted" else run.begin({"where": "inline"})
"""


@pytest.mark.parametrize("before", [[], ["submitted"]], ids=["as it was", "after its submitter was, too"])
def test_a_run_that_is_killed_as_it_begins_again_is_seen_to_have_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spawn: Spawn, before: list[str]
) -> None:
    _, failed, _ = three(tmp_path)
    monkeypatch.setattr("hpctool.track.index.NUM_COMPARED", 0)
    list_rows(tmp_path)
    for what in before:
        assert spawn(KILLED, failed.rundir.path, what).wait(60) == -signal.SIGKILL
    assert spawn(KILLED, failed.rundir.path, "begun").wait(60) == -signal.SIGKILL
    assert failed.rundir.story().attempt == 2
    assert table(list_rows(tmp_path)) == table(list_rows(tmp_path, scan=True))


def test_an_index_that_somebody_else_has_made_is_said_where_a_run_begins_again(unprivileged: Path) -> None:
    _, failed, _ = three(unprivileged)
    list_rows(unprivileged)
    os.chmod(index_folder(unprivileged), 0o555)
    with pytest.warns(UserWarning, match=rf"\.index cannot be written.* {failed.id} .*Move that folder away"):
        RunDir(failed.rundir.path).begin({"where": "inline"})
    os.chmod(index_folder(unprivileged), 0o755)


def test_a_run_that_was_deleted_and_made_anew_is_another_one(tmp_path: Path) -> None:
    _, failed, _ = three(tmp_path)
    list_rows(tmp_path)
    shutil.rmtree(failed.rundir.path)
    Sample(tmp_path, "bb", lr=0.2).begin().log([1, 2]).complete()
    assert {row.id: row.state for row in list_rows(tmp_path)}[failed.id] == "completed"
    assert table(list_rows(tmp_path)) == table(list_rows(tmp_path, scan=True))


def test_a_row_that_is_wrong_is_found_said_and_mended(tmp_path: Path) -> None:
    done, *_ = three(tmp_path)
    right = table(list_rows(tmp_path))
    result = json.loads(done.rundir.result_json.read_text())
    done.rundir.result_json.write_text(json.dumps(result | {"metrics": {"val/accuracy": 0.5}}))
    mended = {row.id: row for row in list_rows(tmp_path)}[done.id]
    assert mended.metrics == {"val/accuracy": 0.5}
    assert "the index of runs said otherwise" in mended.problems[0]
    again = {row.id: row for row in list_rows(tmp_path)}[done.id]
    assert (again.metrics, again.problems) == ({"val/accuracy": 0.5}, [])
    assert len(right) == 3


@pytest.mark.parametrize("damage", ["flipped", "empty", "newer", "a file"])
def test_an_index_that_is_damaged_changes_no_table(tmp_path: Path, damage: str) -> None:
    three(tmp_path)
    right = table(list_rows(tmp_path))
    folder = index_folder(tmp_path)
    entry = next(folder.iterdir())
    if damage == "a file":
        shutil.rmtree(folder)
        folder.write_text("not a folder")
    else:
        texts = {"flipped": entry.read_bytes().replace(b"0.9", b"0.8", 1), "empty": b"", "newer": b"x\n#format 9 new\n"}
        entry.write_bytes(texts[damage])
    assert table(list_rows(tmp_path)) == right
    assert table(list_rows(tmp_path)) == right


def test_where_nothing_can_be_written_the_table_is_read_from_the_folders(unprivileged: Path) -> None:
    three(unprivileged / "runs")
    os.chmod(unprivileged / "runs", 0o555)
    assert len(list_rows(unprivileged / "runs")) == 3
    assert not index_folder(unprivileged / "runs").exists()
    os.chmod(unprivileged / "runs", 0o755)


CHANGES: dict[str, Callable[[Sample], Any]] = {
    "nothing": lambda run: None,
    "went on": lambda run: run.checkpoint(2).checkpoint(3).checkpoint(5),
    "in the same tick": lambda run: in_the_same_tick(run, lambda: run.checkpoint(7)),
    "resumed": lambda run: run.checkpoint(2).log([3]).begin(resumed=2).log([3], accuracy=0.5),
    "resumed twice": lambda run: run.checkpoint(2).begin(resumed=2).log([3]).checkpoint(3).begin(resumed=3),
    "completed": lambda run: run.log([9]).complete(),
    "cancelled": lambda run: run.rundir.ledger.append({"kind": "cancel", "by": "me", "time": now()}),
    "a gap": lambda run: run.checkpoint(2).checkpoint(3).rundir.ledger.path(6).unlink(),
    "truncated": lambda run: os.truncate(run.checkpoint(2).checkpoint(3).rundir.ledger.path(6), 9),
    "by symbolic links": lambda run: Log(run.rundir.ledger.folder, "symlink").append(
        {"kind": "checkpoint", "attempt": 2, "step": 6}
    ),
    "made anew": lambda run: made_anew(run),
    "deleted": lambda run: shutil.rmtree(run.rundir.path),
    "memory flipped": lambda run: flip(run.rundir.path.parent),
}


def in_the_same_tick(run: Sample, action: Callable[[], Any]) -> None:
    """As a file system with a coarse clock shows it."""
    before = os.stat(run.rundir.ledger.folder)
    action()
    os.utime(run.rundir.ledger.folder, ns=(before.st_atime_ns, before.st_mtime_ns))


def made_anew(run: Sample) -> None:
    """Within the same folders, as their inodes may be given again."""
    for path in (one for one in run.rundir.path.rglob("*") if one.is_file()):
        path.unlink()
    Sample(run.rundir.path.parent, "cc", lr=0.7).begin(where="slurm").checkpoint(6)


def flip(runs: Path) -> None:
    path = index_folder(runs) / "underway.json"
    path.write_bytes(path.read_bytes().replace(b'"step":1', b'"step":4'))


@pytest.mark.parametrize("change", CHANGES)
def test_what_happened_to_a_run_under_way_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    monkeypatch.setattr("hpctool.track.underway.ENOUGH", 0)
    run = three(tmp_path)[-1].checkpoint(1).begin(resumed=1).log([2], accuracy=0.8).checkpoint(1)
    first = table(list_rows(tmp_path))
    memory = Underway.read(tmp_path).known[run.id]
    assert memory.before_attempt(2) == {"train/loss": (1, pytest.approx(0.9967, abs=1e-4)), "val/accuracy": (1, 0.9)}
    CHANGES[change](run)
    assert table(list_rows(tmp_path)) == table(list_rows(tmp_path, scan=True))
    assert (table(list_rows(tmp_path)) == first) == (change in ("nothing", "memory flipped"))


def test_a_few_runs_under_way_are_read_and_not_remembered(tmp_path: Path) -> None:
    three(tmp_path)
    list_rows(tmp_path)
    assert [path.name for path in index_folder(tmp_path).iterdir()] == ["0000000001"]


def many(runs: Path, number: int) -> list[RunDir]:
    """Copies of a completed run under other names, and of one under way on another host: those are returned."""
    done = Sample(runs, "aa").begin().log([1, 2]).complete().rundir.path
    running = Sample(runs, "bb").begin(host="node17").log([1, 2]).checkpoint(1).checkpoint(2)
    running = running.begin(resumed=2, host="node17").log([3]).checkpoint(3)
    for index in range(number - 2):
        source = done if index >= NUM_UNDERWAY else running.rundir.path
        path = runs / f"train-{index:08x}"
        for folder in ("ledger", "metrics"):
            (path / folder).mkdir(parents=True)
        for file in (one for one in source.rglob("*") if one.is_file() and "checkpoints" not in one.parts):
            os.link(file, path / file.relative_to(source))
    return [RunDir(runs / f"train-{index:08x}", 2) for index in range(NUM_UNDERWAY)]


def num_calls(runs: Path) -> int:
    """The system calls that a listing makes on a folder of runs, by the kernel's account; 0 where nobody can trace."""
    code = f"import pathlib\nfrom hpctool.track.runs import list_rows\nlist_rows(pathlib.Path({str(runs)!r}))"
    traced = runs.parent / "calls.txt"
    strace = ["strace", "-f", "-y", "-qq", "-o", str(traced), "-e", "trace=%file,%desc", "--"]
    if shutil.which("strace") is None or subprocess.run([*strace, "true"], capture_output=True).returncode:
        return 0
    subprocess.run([*strace, sys.executable, "-c", code], check=True)
    return sum(str(runs) in line for line in traced.read_text().splitlines())


@pytest.mark.slow
def test_ten_thousand_runs_are_listed_with_few_calls(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    underway = many(runs, 10_000)
    assert len(list_rows(runs)) == 10_000
    rows: list[Row] = []
    seen = opened(lambda: rows.extend(list_rows(runs)), runs)
    assert len(rows) == 10_000
    assert [row.step for row in rows if row.state == "running"] == [3] * (NUM_UNDERWAY + 1)
    assert len(seen) <= 500
    assert num_calls(runs) <= 1500
    for rundir in underway:
        rundir.ledger.append({"kind": "checkpoint", "attempt": 2, "step": 4, "time": now()})
    assert num_calls(runs) <= 2500
    assert sorted(row.step for row in list_rows(runs) if row.state == "running") == [3, *[4] * NUM_UNDERWAY]
    assert num_calls(runs) <= 1500


def test_an_index_of_format_1_is_read(tmp_path: Path) -> None:
    shutil.copytree(ASSETS / "index_v1", tmp_path / ".index")
    index = Index.read(tmp_path)
    assert list(index.rows) == ["train-aaaaaaaa"]  # the other one was opened again
    row = index.rows["train-aaaaaaaa"]
    assert (row.state, row.metrics["val/accuracy"], row.value("optim.lr"), row.value("model")) == (
        "completed",
        0.9,
        0.1,
        "cnn",
    )
    assert index.last == 2


def test_a_memory_of_format_1_is_read(tmp_path: Path) -> None:
    (tmp_path / ".index").mkdir()
    shutil.copy(ASSETS / "underway_v1.json", tmp_path / ".index" / "underway.json")
    (run_id, memory), *others = Underway.read(tmp_path).known.items()
    assert (run_id, others, memory.record["id"], memory.config["optim.lr"]) == ("train-cccccccc", [], run_id, 0.3)
    assert [(entry.number, entry.body["kind"]) for entry in memory.entries] == [(1, "begun"), (3, "checkpoint")]
