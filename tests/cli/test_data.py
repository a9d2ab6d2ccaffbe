"""`hpctool data`: tables for people, JSON for programs, one sentence and the right exit code when it cannot be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hpctool.cli.main import cli
from hpctool.data.version import open_version
from hpctool.errors import InputError, OperationError, SourceError

STORE_V1 = Path(__file__).parents[1] / "assets" / "store_v1"
UID = "52283fba1cfe71ddba8231710351aa38"

Ask = Callable[..., Any]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the dataset `tiny`: twelve rows, tagged v1, relabelled and tagged v2."""
    shutil.copytree(STORE_V1, tmp_path / "datasets")
    return tmp_path


@pytest.fixture
def tell(root: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """`hpctool data …` in this process: what it prints into a pipe. Errors are raised as they are."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def go(*arguments: object) -> str:
        done = CliRunner().invoke(cli, ["data", *map(str, arguments), "--root", str(root)], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return go


@pytest.fixture
def ask(tell: Callable[..., str]) -> Ask:
    """`hpctool data … --json`."""
    return lambda *arguments: json.loads(tell(*arguments, "--json"))


def test_list_shows_every_dataset(ask: Ask, tell: Callable[..., str], root: Path) -> None:
    (found,) = ask("list")
    assert (found["name"], found["branches"], sorted(found["tags"])) == ("tiny", ["main", "other"], ["v1", "v2"])
    assert found["num_rows"] == 12
    shutil.copytree(root / "datasets" / "tiny", root / "datasets" / "broken")
    (root / "datasets" / "broken" / "FORMAT").write_text("{}")
    assert "tiny" in tell("list")
    assert [bool(row["problem"]) for row in ask("list")] == [True, False]


def test_log_shows_who_did_what_newest_first(ask: Ask, tell: Callable[..., str]) -> None:
    second, first = ask("log", "tiny")
    assert (second["message"], second["refs"], second["operation"]["kind"]) == (
        "second look",
        ["main", "v2"],
        "relabel",
    )
    assert (first["message"], first["refs"], first["author"]) == ("the first", ["other", "v1"], "ann@cluster")
    assert second["parents"] == [first["commit"]]
    assert "second look" in tell("log", "tiny")


def test_show_gives_uid_split_and_label_of_rows(ask: Ask, tell: Callable[..., str]) -> None:
    rows = ask("show", "tiny@v1", "--rows", 3)
    assert rows[0] == {"row": 0, "uid": UID, "split": "test", "label": "dog"}
    assert len(rows) == 3
    everything = ask("show", "tiny", "--rows", "all")
    assert len(everything) == 12
    assert everything[9]["label"] is None
    assert UID in tell("show", "tiny", "--rows", 1)
    with pytest.raises(InputError, match="a number or 'all', not 'many'"):
        tell("show", "tiny", "--rows", "many")


def test_show_describes_a_version(ask: Ask, tell: Callable[..., str]) -> None:
    found = ask("show", "tiny@v1")
    assert found["classes"] == ["cat", "dog"]
    assert found["splits"] == {"train": 6, "val": 0, "test": 2, "production": 4}
    assert found["columns"]["image"]["shape"] == [2, 3, 1]
    assert "2×3×1" in tell("show", "tiny@v1")


def test_stats_count_classes_in_each_split(ask: Ask, tell: Callable[..., str]) -> None:
    found = ask("stats", "tiny")
    assert found["splits"]["train"]["classes"] == [3, 2]
    assert found["splits"]["train"]["unlabelled"] == 1
    assert "(no label)" in tell("stats", "tiny")


def test_diff_shows_labels_from_and_to(ask: Ask, tell: Callable[..., str]) -> None:
    found = ask("diff", "tiny@v1", "tiny@v2")
    assert found["labels"] == [{"from": "dog", "to": "cat", "count": 1}, {"from": "cat", "to": "", "count": 1}]
    assert "labels changed: 2" in tell("diff", "tiny@v1", "tiny")


def test_relabel_blame_and_diff_tell_one_story(ask: Ask, tell: Callable[..., str], root: Path, tmp_path: Path) -> None:
    rows = ask("show", "tiny", "--rows", 3)
    fixes = tmp_path / "fixes.csv"
    fixes.write_text("uid,label\n" + "".join(f"{row['uid']},dog\n" for row in rows))
    done = ask("relabel", "tiny", "--from", fixes, "-m", "third look", "--tag", "v3")
    assert (done["num_labels"], done["tag"]) == (2, "v3")
    assert open_version(root / "datasets", "tiny@v3").commit == done["commit"]
    assert {(row["from"], row["to"]) for row in ask("diff", "tiny@v2", "tiny")["relabelled"]} == {("cat", "dog")}
    told = ask("blame", "tiny", UID)
    assert [entry["new"] for entry in told] == ["dog", "cat", "dog"]
    assert told[0]["why"] == "third look"
    assert "third look" in tell("blame", "tiny", UID)
    again = ask("relabel", "tiny", "--from", fixes, "-m", "once more")
    assert (again["num_labels"], again["commit"]) == (0, done["commit"])


@pytest.mark.slow
def test_labels_taken_away_are_told_apart_from_an_empty_cell(
    ask: Ask, tell: Callable[..., str], tmp_path: Path
) -> None:
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(f"uid,label\n{UID},\n")
    with pytest.raises(SourceError, match=r"line 2: it gives the row no label\. --allow-missing takes labels away"):
        tell("relabel", "tiny", "--from", fixes, "-m", "x")
    asked = ("relabel", "tiny", "--from", fixes, "-m", "blurred", "--allow-missing", "--tag", "v3")
    assert (done := ask(*asked))["num_taken_away"] == done["num_labels"] == 1
    assert ask("diff", "tiny@v2", "tiny")["labels"] == [{"from": "cat", "to": "", "count": 1}]
    assert re.search(r"cat +\(no label\) +1", tell("diff", "tiny@v2", "tiny"))
    assert re.search(r"\(no label\) +cat .* blurred", tell("blame", "tiny", UID))
    assert sum(part["unlabelled"] for part in ask("stats", "tiny")["splits"].values()) == 2
    # The branch `other` is behind: it goes on to that, label and all.
    ask("merge", "tiny@other", "main")
    assert ask("blame", "tiny@other", UID)[0]["new"] == ""


def test_labels_go_onto_a_branch_only(tell: Callable[..., str], tmp_path: Path, root: Path) -> None:
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(f"uid,label\n{UID},mouse\n")
    with pytest.raises(InputError, match=r"'v1' is no branch.*hpctool data branch tiny@v1 NAME"):
        tell("relabel", "tiny@v1", "--from", fixes, "-m", "x")
    before = open_version(root / "datasets", "tiny").commit
    with pytest.raises(SourceError, match=r"line 2: label 'mouse' is out of range: .* cat, dog \(or 0 to 1\)"):
        tell("relabel", "tiny", "--from", fixes, "-m", "x")
    assert open_version(root / "datasets", "tiny").commit == before


def test_tags_and_branches_begin_at_any_version(ask: Ask, tell: Callable[..., str]) -> None:
    first = ask("show", "tiny@v1")["commit"]
    assert ask("tag", f"tiny@{first[:12]}", "good") == {"tag": "good", "commit": first}
    assert ask("branch", "tiny@good", "mine")["mine"] == first
    assert set(ask("branch", "tiny")) == {"main", "mine", "other"}
    assert "mine" in tell("branch", "tiny")


def test_verify_names_what_is_damaged(ask: Ask, tell: Callable[..., str], root: Path) -> None:
    assert ask("verify", "tiny", "--deep")["damaged"] == []
    whole = CliRunner().invoke(cli, ["data", "verify", "tiny", "--deep", "--root", str(root)])
    assert "read; nothing is damaged." in whole.stderr
    version = open_version(root / "datasets", "tiny")
    path = version.store.layout.object(version.contents.row_groups[0].holder("image").id)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    done = CliRunner().invoke(cli, ["data", "verify", "tiny", "--root", str(root)])
    assert isinstance(done.exception, OperationError)
    assert f"{path.name} is damaged: it has" in done.stdout
    assert "tiny@main" in done.stdout


BAD_INPUT = [
    (["relabel", "tiny", "--from", "{gone}", "-m", "x"], r"line 2: there is no row 0{32} in tiny@main"),
    (["relabel", "tiny", "--from", "{same}", "-m", "x", "--tag", "v1"], "tag 'v1' already; choose another name"),
    (["tag", "tiny", "v1"], "Tag 'v1' of dataset 'tiny' names .* and never moves"),
    (["tag", "tiny", "main"], "has a branch 'main' already"),
    (["branch", "tiny", "v1"], "has a tag 'v1' already"),
    (["branch", "tiny", "--delete", "main"], "is not deleted"),
    (["branch", "tiny", "--delete", "othr"], "no branch of dataset 'tiny' called 'othr'; .* Did you mean other?"),
    (["merge", "tiny", "other", "--expect", "d43ba5dd"], "tiny@main has moved: it was to be at d43ba5dd"),
    (["merge", "tiny@v1", "other"], "'v1' is no branch"),
    (["merge", "tiny@mine", "other"], "'mine' is no branch.*hpctool data branch tiny mine"),
    (["merge", "tiny", "othr"], "called 'othr'; there is: main, other, v1, v2. Did you mean other?"),
    (["diff", "tiny@v1", "tiny@v3"], "called 'v3'; .* Did you mean v"),
    (["export", "tiny", "{same}", "--as", "npz"], "is there already, and an export writes over nothing"),
    (["export", "tiny", "{root}/new", "--as", "npz", "--split", "trian"], "Did you mean train?"),
    (["restore", "tiny", "--from", "{root}"], "There is no copy of dataset 'tiny'"),
    (["restore", "tiny", "--from", "{root}/datasets"], "is the dataset itself"),
    (["exposure", "tiny", "12"], "'12' cannot be the uid of a row"),
    (["blame", "tiny", "0" * 32], "There is no row 0{32}"),
    (
        ["blame", "tiny", "5"],
        "'5' cannot be the uid of a row: a uid has 32 hex digits; hpctool data show tiny@main --rows",
    ),
    (["show", "gone"], "no dataset 'gone'; .* They lie in /.*/datasets. Make it: hpctool prepare data.name=gone"),
]


@pytest.mark.parametrize(("arguments", "sentence"), BAD_INPUT)
def test_what_cannot_be_is_said_in_one_sentence_and_changes_nothing(
    root: Path, tmp_path: Path, arguments: list[str], sentence: str
) -> None:
    texts = {"gone": f"uid,label\n{'0' * 32},dog\n", "same": f"uid,label\n{UID},dog\n", "root": ""}
    places = {name: str(tmp_path / name) if text else str(root) for name, text in texts.items()}
    for name, text in texts.items():
        if text:
            (tmp_path / name).write_text(text)
    before = sorted(path for path in (root / "datasets").rglob("*") if path.suffix not in (".h5", ".json"))
    done = CliRunner().invoke(cli, ["data", *(a.format(**places) for a in arguments), "--root", str(root)])
    assert isinstance(done.exception, InputError), done.output
    assert done.exception.exit_code == 2
    assert "\n" not in str(done.exception)
    assert re.search(sentence, str(done.exception)), str(done.exception)
    after = sorted(path for path in (root / "datasets").rglob("*") if path.suffix not in (".h5", ".json"))
    assert [path for path in after if path.is_file()] == [path for path in before if path.is_file()]


def hpctool(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpctool.cli.main", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=dict(os.environ))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["show", "tinny"], "There is no dataset 'tinny'; there is: tiny."),
        (["show", "tiny@v9"], "There is no revision of dataset 'tiny' called 'v9'; there is: main, other, v1, v2."),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(root: Path, arguments: list[str], sentence: str) -> None:
    done = hpctool("data", *arguments, "--root", root)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"hpctool: {sentence}")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_damaged_dataset_is_exit_code_1(root: Path) -> None:
    next((root / "datasets" / "tiny" / "objects").rglob("*.h5")).unlink()
    done = hpctool("data", "verify", "tiny", "--root", root, "--json")
    assert done.returncode == 1
    assert len(json.loads(done.stdout)["damaged"]) == 1
    assert "Dataset 'tiny' is damaged; files that are not what was written: 1." in done.stderr


@pytest.mark.slow
def test_merge_shows_both_sides_of_a_conflict(ask: Ask, tell: Callable[..., str], root: Path, tmp_path: Path) -> None:
    # v2 took this row's label away; the branch `other` is still at v1.
    (uid,) = [row["uid"] for row in ask("show", "tiny", "--rows", "all") if row["label"] is None]
    fixes = tmp_path / "fixes.csv"
    fixes.write_text(f"uid,label,who\n{uid},dog,eve\n{UID},cat,eve\n")
    tell("relabel", "tiny@other", "--from", fixes, "-m", "look")
    done = CliRunner().invoke(cli, ["data", "merge", "tiny", "other", "--root", str(root)])
    assert isinstance(done.exception, InputError)
    (row,) = [re.split(r"  +", line.strip()) for line in done.stdout.splitlines() if uid in line]
    assert (row[:3], row[-3:]) == ([uid, "(no label)", "bob@cluster"], ["dog", "eve", "look"])
    tell("merge", "tiny", "other", "--prefer", "theirs")
    assert "├─┐" in tell("log", "tiny", "--graph", "--all")
    assert [row["label"] for row in ask("show", "tiny", "--rows", "all") if row["uid"] == uid] == ["dog"]


@pytest.mark.slow
def test_pictures_are_drawn_and_write_over_nothing(tell: Callable[..., str], tmp_path: Path) -> None:
    tell("diff", "tiny@v1", "tiny", "--plot", tmp_path / "changes.png")
    tell("stats", "tiny", "--plot", tmp_path / "stats.svg")
    assert (tmp_path / "changes.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in (tmp_path / "stats.svg").read_bytes()
    with pytest.raises(InputError, match="is there already"):
        tell("stats", "tiny", "--plot", tmp_path / "stats.svg")
    with pytest.raises(InputError, match=r"ends with .png, .svg or .pdf, not 'x.gif'"):
        tell("stats", "tiny", "--plot", tmp_path / "x.gif")


def test_care_for_a_dataset_from_the_command_line(
    ask: Ask, tell: Callable[..., str], root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root / "datasets", tmp_path / "second")
    path = next((root / "datasets" / "tiny" / "objects").rglob("*.h5"))
    path.unlink()
    assert ask("restore", "tiny", "--from", tmp_path / "second") == {"mended": [str(path)], "left": []}
    assert {version["version"] for version in ask("size", "tiny")["versions"]} == {"main v2", "other v1"}
    assert ask("gc", "tiny")["moved"] == {}
    assert ask("runs", "tiny@v1") == []
    assert ask("exposure", "tiny", UID) == []
    assert ask("export", "tiny@v1", tmp_path / "tiny.h5", "--as", "hdf5")["num_rows"] == 12
    assert set(ask("branch", "tiny", "--delete", "other")) == {"main"}
    for arguments in (["size", "tiny"], ["gc", "tiny"]):
        tell(*arguments)
