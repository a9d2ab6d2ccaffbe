"""`hpctool models`: tables for people, JSON for programs, one sentence and an exit code for what is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpctool.cli.models import group
from hpctool.errors import CorruptError, HpctoolError, InputError, UnknownName

ASSET = Path(__file__).parents[1] / "assets" / "bundle_v1"

Run = Callable[..., Result]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder of models with the golden bundle in it, as 0001 and 0002."""
    folder = tmp_path / "models"
    shutil.copytree(ASSET, folder)
    shutil.copytree(ASSET / "digits" / "0001", folder / "digits" / "0002")
    return folder


@pytest.fixture
def run(models: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a verb of the group below this root, on a terminal of some width."""
    monkeypatch.setenv("HPCTOOL_ROOT", str(models.parent))

    def invoke(*arguments: str, columns: int = 200) -> Result:
        monkeypatch.setenv("COLUMNS", str(columns))
        return CliRunner().invoke(group, list(arguments))

    return invoke


def done(result: Result) -> Any:
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout) if result.stdout.startswith(("{", "[")) else result.stdout


def refused(result: Result, kind: type[HpctoolError]) -> str:
    assert isinstance(result.exception, kind), (result.output, result.exception)
    return str(result.exception)


def test_list_shows_versions_aliases_accuracy_size_run_and_age(run: Run) -> None:
    done(run("promote", "digits@0001", "--as", "production"))
    header, _, first, second = done(run("list")).splitlines()[:4]
    assert header.split() == ["model", "version", "aliases", "val/accuracy", "size", "run", "age"]
    assert first.split()[:3] == ["digits", "0001", "production"]
    assert second.split()[:2] == ["digits", "0002"]
    listed = done(run("list", "digits", "--json"))
    assert [(one["version"], one["aliases"]) for one in listed] == [("0001", ["production"]), ("0002", [])]
    assert listed[0]["metrics"]["val/accuracy"] > 0.5
    assert listed[0]["size_bytes"] > 1000


def test_an_empty_folder_says_how_to_make_a_model(run: Run, models: Path) -> None:
    shutil.rmtree(models)
    result = run("list")
    assert result.exit_code == 0
    assert "hpctool export" in result.stderr
    assert done(run("list", "--json")) == []


def test_a_damaged_version_is_listed_and_said(run: Run, models: Path) -> None:
    (models / "digits/0002/MANIFEST.json").write_text("{}")
    result = run("list")
    assert result.exit_code == 0
    assert "0002" in result.stdout
    assert "its digest does not fit" in result.stderr


@pytest.mark.parametrize("columns", [80, 120])
def test_show_fits_the_terminal_and_leads_to_the_data(run: Run, columns: int) -> None:
    done(run("promote", "digits@0001", "--as", "production", "-m", "first"))
    text = done(run("show", "digits@production", columns=columns))
    for word in (
        "image UINT8 [-1, 8, 8, 1]",
        "probabilities FP32",
        "ToFloat",
        "temperature",
        "dataset digits",
        "first",
    ):
        assert word in text, text
    shown = done(run("show", "digits@production", "--json"))
    assert shown["lineage"]["kind"] == "model"
    assert [node["kind"] for node in shown["lineage"]["made_from"]] == ["run"]
    assert set(shown["files"]) == {"model.ts", "signature.json", "golden.npz", "reference.json", "lineage.json"}
    assert [move["message"] for move in shown["history"]["production"]] == ["first"]


def test_verify_runs_the_golden_test(run: Run, models: Path) -> None:
    assert "digits@0002 is whole and answers as it should: 34 golden rows" in done(run("verify", "digits"))
    assert done(run("verify", "digits@0001", "--json"))["ok"] is True
    data = bytearray((models / "digits/0001/model.ts").read_bytes())
    data[len(data) // 2] ^= 1
    (models / "digits/0001/model.ts").chmod(0o644)
    (models / "digits/0001/model.ts").write_bytes(bytes(data))
    result = run("verify", "digits@0001", "--json")
    assert "model.ts is damaged" in refused(result, CorruptError)
    assert json.loads(result.stdout)["ok"] is False


def test_a_damaged_version_is_not_promoted(run: Run, models: Path) -> None:
    (models / "digits/0002/golden.npz").unlink()
    assert "golden.npz is missing" in refused(run("promote", "digits@0002", "--as", "production"), CorruptError)
    assert not (models / "digits/aliases").exists()


def test_promote_and_roll_back_say_what_they_did(run: Run) -> None:
    assert done(run("promote", "digits@1", "--as", "production")) == "digits@production is now 0001.\n"
    assert done(run("promote", "digits", "--as", "production")) == "digits@production is now 0002 (was 0001).\n"
    assert done(run("promote", "digits", "--as", "production")) == "digits@production is 0002 already.\n"
    moved = done(run("rollback", "digits@production", "-m", "too slow", "--json"))
    assert (moved["version"], moved["before"], moved["message"]) == ("0001", "0002", "too slow")


def test_what_is_not_there_is_answered_with_what_is(run: Run) -> None:
    assert "there is: 0001, 0002" in refused(run("show", "digits@production"), UnknownName)
    assert "there is: digits" in refused(run("verify", "digit"), UnknownName)
    assert "hpctool models rollback digits@production" in refused(run("rollback", "digits"), InputError)
