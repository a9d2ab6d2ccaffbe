"""What was submitted is what runs, whatever happens to the checkout meanwhile."""

import errno
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool.errors import InputError
from hpctool.launch import snapshot
from hpctool.rundir import RunDir
from hpctool.track import report
from hpctool.track.runs import list_rows
from tests.track.samples import Sample


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    (folder / "pkg").mkdir(parents=True)
    (folder / "pkg" / "__init__.py").write_text("VALUE = 1\n")
    (folder / "runs" / "old").mkdir(parents=True)
    (folder / "runs" / "old" / "copied.py").write_text("")
    (folder / "data.bin").write_bytes(b"x" * 100)
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def names(runs: Path, code: snapshot.Code) -> set[str]:
    root = runs / ".code" / code.snapshot / "project"
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_without_git_the_code_files_are_copied_and_results_are_not(project: Path) -> None:
    code = snapshot.take(project / "runs", project)
    assert names(project / "runs", code) == {"pkg/__init__.py"}
    assert (code.commit, code.patch) == ("", "")


@pytest.mark.slow
def test_with_git_untracked_files_count_and_ignored_ones_do_not(project: Path) -> None:
    (project / ".gitignore").write_text("runs/\nsecret.py\n")
    git(project, "init")
    git(project, "add", ".")
    git(project, "commit", "-m", "one")
    (project / "new.py").write_text("")
    (project / "secret.py").write_text("")
    (project / "pkg" / "__init__.py").write_text("VALUE = 2\n")
    code = snapshot.take(project / "runs", project)
    assert names(project / "runs", code) == {"pkg/__init__.py", "new.py"}
    assert len(code.commit) == 40
    assert "+VALUE = 2" in code.patch
    assert code.dirty


@pytest.mark.slow
def test_equal_code_shares_one_copy_and_a_changed_line_makes_another(project: Path) -> None:
    first = snapshot.take(project / "runs", project)
    assert snapshot.take(project / "runs", project).snapshot == first.snapshot
    (project / "pkg" / "__init__.py").write_text("VALUE = 2\n")
    assert snapshot.take(project / "runs", project).snapshot != first.snapshot


@pytest.mark.slow
def test_what_an_editor_saves_while_it_is_copied_has_the_name_of_what_was_copied(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, source = shutil.copy, project / "pkg" / "__init__.py"

    def saved_just_now(path: Path, target: Path) -> None:
        source.write_text("VALUE = 2\n")
        honest(path, target)

    monkeypatch.setattr(shutil, "copy", saved_just_now)
    edited = snapshot.take(project / "runs", project).snapshot
    monkeypatch.undo()
    assert snapshot.take(project / "runs", project).snapshot == edited
    source.write_text("VALUE = 1\n")
    first = snapshot.take(project / "runs", project)
    copy = project / "runs" / ".code" / first.snapshot / "project" / "pkg" / "__init__.py"
    assert (first.snapshot == edited, copy.read_text()) == (False, "VALUE = 1\n")


@pytest.mark.slow
def test_a_copy_is_on_the_disk_before_it_has_its_name(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[str] = set()
    before: list[set[str]] = []
    fsync, rename = os.fsync, os.rename

    def note_file(handle: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def note_name(old: Path, new: Path) -> None:
        before.append(set(synced))
        rename(old, new)

    monkeypatch.setattr(os, "fsync", note_file)
    monkeypatch.setattr(os, "rename", note_name)
    code = snapshot.take(project / "runs", project)
    copied = {path.name for path in (project / "runs" / ".code" / code.snapshot).rglob("*")}
    assert copied <= before[0]


@pytest.mark.slow
def test_a_copy_that_fails_leaves_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copy", full)
    with pytest.raises(OSError, match="No space left"):
        snapshot.take(project / "runs", project)
    assert os.listdir(project / "runs" / ".code") == []


@pytest.mark.slow
def test_a_report_that_hpctool_has_written_is_no_code(project: Path) -> None:
    Sample(project / "runs", "aa", lr=0.1).begin().log([1]).complete()
    before = snapshot.take(project / "runs", project)
    (project / "page.html").write_text("<!doctype html><title>mine</title>")
    code = snapshot.take(project / "runs", project)
    assert code.snapshot != before.snapshot
    page = report.render(report.build(list_rows(project / "runs"), report.Asked("A week", "hpctool runs report")))
    (project / "report.html").write_text(page)
    assert snapshot.take(project / "runs", project).snapshot == code.snapshot


@pytest.mark.slow
def test_a_job_imports_the_snapshot_even_where_it_stands_in_the_edited_checkout(project: Path) -> None:
    code = snapshot.take(project / "runs", project)
    (project / "pkg" / "__init__.py").write_text("VALUE = 2\n")
    extra = snapshot.environment_of(project / "runs", code.record(), str(project))
    program = [sys.executable, "-m", "pkg_reader"]
    (project / "pkg_reader.py").write_text("print('the edited checkout')")
    done = subprocess.run(program, cwd=project, env=os.environ | extra, capture_output=True, text=True, check=False)
    assert "No module named pkg_reader" in done.stderr
    shown = "import pkg, hpctool.conf, hpctool.jobs; print(pkg.VALUE, hpctool.jobs.__path__[0])"
    done = subprocess.run(
        [sys.executable, "-c", shown], cwd=project, env=os.environ | extra, capture_output=True, text=True, check=True
    )
    value, jobs = done.stdout.split()
    assert value == "1"
    assert jobs.startswith(str(project / "runs" / ".code"))


@pytest.mark.slow
def test_all_that_the_package_ships_is_in_the_copy(project: Path) -> None:
    copy = project / "runs" / ".code" / snapshot.take(project / "runs", project).snapshot / "site"
    for package in ("hpctool", "hpctool.conf", "hpctool.jobs"):
        root = Path(next(iter(importlib.import_module(package).__path__)))
        shipped = [p.relative_to(root) for p in root.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        there = copy / package.replace(".", "/")
        assert [str(path) for path in shipped if not (there / path).exists()] == []


def test_a_runs_folder_that_would_split_pythons_path_is_refused(project: Path) -> None:
    with pytest.raises(InputError, match=r"10:30.* would not find their code.*paths\.runs="):
        snapshot.take(project / "runs" / "at 10:30", project)
    assert not (project / "runs" / "at 10:30").exists()


def test_a_working_folder_with_too_many_files_is_not_copied_and_says_so(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "MAX_FILES", 1)
    (project / "second.py").write_text("")
    (project / "third.py").write_text("")
    code = snapshot.take(project / "runs", project)
    assert "not copied" in code.note
    extra = snapshot.environment_of(project / "runs", code.record(), str(project))
    assert str(project) in extra["PYTHONPATH"].split(os.pathsep)


@pytest.mark.slow
def test_the_environment_is_one_line_a_package() -> None:
    lines = snapshot.installed_packages().splitlines()
    assert lines[0].startswith("# Python 3.")
    assert any(line.startswith("numpy==") for line in lines)


@pytest.mark.slow
def test_an_environment_that_changed_since_the_submission_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path)
    text = snapshot.installed_packages()
    run.environment_txt.write_text(text)
    snapshot.say_changes(run)
    assert capsys.readouterr().out == ""
    torch = next(line for line in text.splitlines() if line.startswith("torch=="))
    changed = text.replace(torch, "torch==1.0").replace("# modules: none", "# modules: cuda/12") + "gone==3\n"
    run.environment_txt.write_text(changed)
    snapshot.say_changes(run)
    said = capsys.readouterr().out
    assert "gone 3 → absent, modules cuda/12 → none, torch 1.0 →" in said
