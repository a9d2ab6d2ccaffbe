"""`hpctool review`: from the journal to the next version of the data, in commands."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner, Result

from hpctool.cli.review import group
from hpctool.errors import HpctoolError, InputError, SourceError, UnknownName
from hpctool.review.queue import Queue, list_queues
from tests.review.conftest import folders, make, original, queue

__all__ = ["folders", "make", "original", "queue"]

Run = Callable[..., Result]


@pytest.fixture
def run(folders: Any, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setenv("HPCTOOL_ROOT", str(folders.runs.parent))
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: CliRunner().invoke(group, [str(one) for one in arguments])


def done(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.output


def refused(result: Result, kind: type[HpctoolError]) -> str:
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return str(result.exception)


def fill_in(table: Path, answers: Path, rows: int, shift: int = 0) -> None:
    """An oracle: the first rows of the table with the truth (or something else) as their label."""
    with open(table, newline="") as file:
        items = list(csv.DictReader(file))
    with open(answers, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["item", "label"])
        for item in items[:rows]:
            truth = int(item["request"].removeprefix("truth-").partition(":")[0])
            writer.writerow([item["item"], (truth + shift) % 10])


@pytest.mark.slow
def test_the_whole_way_through_csv(run: Run, tmp_path: Path) -> None:
    table, answers = tmp_path / "items.csv", tmp_path / "answers.csv"
    asked = ("queue", "digits@0001", "--source", "worn", "--uncertain", "8", "--audit", "4")
    made = done(run(*asked, "--csv", table, "--json"))
    assert (made["model"], made["dataset"], made["num_uncertain"], made["num_audit"]) == (
        *("digits@0001", "digits@main"),
        *(8, 4),
    )
    name = made["review"]
    assert f"Review {name}: 8 uncertain and 4 for the audit, of 60 inputs" in done(run(*asked))
    fill_in(table, answers, 10)
    assert done(run("label", name, "--from", answers, "--who", "oracle", "--json"))["num_new"] == 10
    assert "0 new answers by oracle, 10 were there already" in done(
        run("label", name[:9], "--from", answers, "--who", "oracle")
    )
    said = done(run("apply", name, "--tag", "v2", "-m", "worn scans"))
    assert "digits@main: 10 rows appended; commit" in said
    assert "Left out: 2 without an answer, 0 skipped." in said
    assert "unchanged, review" in done(run("apply", name, "--tag", "v2", "-m", "worn scans"))
    again = done(run("apply", name, "--tag", "v2", "-m", "worn scans", "--json"))
    assert (again["num_rows"], again["num_there"]) == (0, 10)


@pytest.mark.slow
def test_status_lists_reviews_and_shows_one(run: Run, tmp_path: Path) -> None:
    assert "There is no review in" in done(run("status"))
    table, answers = tmp_path / "items.csv", tmp_path / "answers.csv"
    name = done(run("queue", "digits", "--uncertain", "4", "--audit", "6", "--csv", table, "--json"))["review"]
    assert "no audit item is decided yet" in done(run("status", name))
    fill_in(table, answers, 10)
    done(run("label", name, "--from", answers, "--who", "ann"))
    fill_in(table, answers, 2, shift=1)
    done(run("label", name, "--from", answers, "--who", "bob"))
    shown = done(run("status", name))
    assert re.search(r"ann +10 +0", shown)
    assert re.search(r"ann, bob +2 +0 +", shown)
    assert re.search(r"model's accuracy +\d+\.\d% \(95 %: \d+\.\d% to \d+\.\d%, \d random items\)", shown)
    assert re.search(r"ann: \d, bob: \d", shown)
    (listed,) = done(run("status", "--json"))
    assert (listed["review"], listed["num_decided"], listed["num_disputed"]) == (name, 8, 2)
    assert name in done(run("status"))
    left = done(run("apply", name, "-m", "agreed"))
    assert "Left out: 2 on which people disagree" in left
    assert "2 rows appended" in done(run("apply", name, "-m", "decided", "--accept", "bob"))


def test_what_was_asked_wrongly_is_one_sentence(run: Run, folders: Any, tmp_path: Path) -> None:
    assert "no version or alias" in refused(run("queue", "digits@production"), UnknownName)
    assert "'soon' is not a time" in refused(run("queue", "digits", "--since", "soon"), InputError)
    assert "holds no prediction" in refused(run("queue", "digits", "--since", "2999-01-01"), InputError)
    assert "no review 'nothing'" in refused(run("status", "nothing"), UnknownName)
    assert list_queues(folders.reviews) == []
    name = done(run("queue", "digits", "--json"))["review"]
    answers = tmp_path / "answers.csv"
    answers.write_text("item,label\nffffffff-000001,3\n")
    assert "answers.csv, line 2: There is no item" in refused(
        run("label", name, "--from", answers, "--who", "ann"), SourceError
    )
    assert "is decided yet" in refused(run("apply", name, "-m", "why"), InputError)
    shutil.rmtree(folders.journals)
    assert "no journal of a model called 'digits'" in refused(run("queue", "digits"), UnknownName)


@pytest.mark.slow
def test_serve_prints_a_url_that_works_and_an_answer_survives_its_kill(queue: Queue, folders: Any) -> None:
    command = [sys.executable, "-m", "hpctool.cli.main", "review", "serve", queue.id, "--root", folders.runs.parent]
    for stop in (signal.SIGKILL, signal.SIGINT):
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            lines = [process.stderr.readline() for _ in range(7)]
            url = httpx.URL(lines[2].strip())
            assert re.search(rf"ssh -N -L {url.port}:127\.0\.0\.1:{url.port} \S+@\S+", lines[6])
            with httpx.Client() as client:
                assert client.get(url).status_code == 200
                fact = {"item": queue.items[0].prediction, "label": 3, "who": "ann", "client": stop.name}
                assert client.post(url.join("/answers"), json=fact).status_code == 200
            process.send_signal(stop)
            rest = process.stderr.read()
        assert process.returncode == (-9 if stop is signal.SIGKILL else 0)
        assert ("Stopped; every answer" in rest) == (stop is signal.SIGINT)
    assert [answer.client for answer in queue.history("ann")] == ["SIGKILL", "SIGINT"]


@pytest.mark.slow
def test_a_busy_port_ends_with_exit_code_2_and_one_sentence(queue: Queue, folders: Any) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "hpctool.cli.main", "review", "serve", queue.id, "--port", port]
        found = subprocess.run([*command, "--root", folders.runs.parent], capture_output=True, text=True)
    assert found.returncode == 2
    assert found.stderr.count("\n") == 1
    assert f"Port {port} of 127.0.0.1 cannot be had: somebody else uses it." in found.stderr
