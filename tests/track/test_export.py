"""Runs for other tools: tables that hold what the rows say, and folders of links that TensorBoard takes."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
from click.testing import CliRunner

from hpctool.cli.runs import group
from hpctool.errors import InputError
from hpctool.track.export import curve_table, link_event_files, table, write_csv, write_parquet
from hpctool.track.row import Row, read_row
from hpctool.track.runs import list_rows
from tests.track.samples import Sample


@pytest.fixture
def rows(tmp_path: Path) -> list[Row]:
    Sample(tmp_path / "runs", "aa", lr=0.1).begin().log([10, 20]).complete()
    Sample(tmp_path / "runs", "bb", lr=0.2).begin().fail("no, such lamp").end("failed", 'no, such "lamp"', 1)
    return sorted(list_rows(tmp_path / "runs"), key=lambda row: row.id)


def test_a_csv_has_a_line_for_each_run_and_a_column_for_each_key_and_metric(tmp_path: Path, rows: list[Row]) -> None:
    write_csv(*table(rows), tmp_path / "runs.csv")
    with open(tmp_path / "runs.csv", newline="") as file:
        done, failed = csv.DictReader(file)
    assert (done["id"], done["metric/val/accuracy"], done["config/optim.lr"]) == ("train-aaaaaaaa", "0.9", "0.1")
    assert (failed["state"], failed["cause"], failed["metric/val/accuracy"]) == ("failed", 'no, such "lamp"', "")


def test_curves_are_a_line_for_each_metric_and_step(rows: list[Row]) -> None:
    columns, lines = curve_table(rows)
    assert columns == ["id", "metric", "step", "value"]
    assert ["train-aaaaaaaa", "val/accuracy", 20, 0.9] in lines
    assert len(lines) == 4


def test_a_parquet_holds_the_same_with_types(tmp_path: Path, rows: list[Row]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows[0].plain, rows[1].plain = {"note": 1, "lr": 0.1}, {"note": "two", "lr": 0.2}
    write_parquet(*table(rows), tmp_path / "runs.parquet")
    found = parquet.read_table(tmp_path / "runs.parquet").to_pydict()
    assert found["id"] == ["train-aaaaaaaa", "train-bbbbbbbb"]
    assert found["metric/val/accuracy"] == [0.9, None]
    assert found["config/lr"] == [0.1, 0.2]
    assert found["config/note"] == ["1", "two"]  # a key of two types becomes text


def test_a_parquet_takes_empty_dicts_lists_and_numbers_of_any_size(tmp_path: Path, rows: list[Row]) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows[0].plain = {"cluster.extra": {}, "sizes": [1, 2], "big": 2**70}
    rows[1].plain = {"cluster.extra": {}, "sizes": [0.5, "x"], "big": 1}
    write_parquet(*table(rows), tmp_path / "runs.parquet")
    found = parquet.read_table(tmp_path / "runs.parquet").to_pydict()
    assert found["config/cluster.extra"] == ["{}", "{}"]
    assert found["config/sizes"] == ["[1, 2]", '[0.5, "x"]']
    assert found["config/big"] == [str(2**70), "1"]


def test_a_curve_with_a_nan_in_it_stays_a_column_of_numbers(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    sample = Sample(tmp_path / "runs", "aa").begin().log([10, 20], math.nan)
    columns, lines = curve_table([read_row(sample.rundir)])
    write_parquet(columns, lines, tmp_path / "curves.parquet")
    values = parquet.read_table(tmp_path / "curves.parquet").to_pydict()["value"]
    assert all(isinstance(value, float) for value in values)
    assert any(map(math.isnan, values))
    write_csv(columns, lines, tmp_path / "curves.csv")
    assert ",nan\n" in (tmp_path / "curves.csv").read_text()


def test_tensorboard_gets_a_folder_of_links_named_by_run(tmp_path: Path, rows: list[Row]) -> None:
    assert rows[0].rundir is not None
    (rows[0].rundir.path / "tensorboard").mkdir()
    folder = tmp_path / "links"
    folder.mkdir()
    assert link_event_files(rows, folder) == ["train-aaaaaaaa"]
    assert (folder / "train-aaaaaaaa").is_dir()
    with pytest.raises(InputError, match="None of the 1 runs has event files"):
        link_event_files(rows[1:], folder)
    with pytest.raises(InputError, match="201 runs are more than TensorBoard's page takes"):
        link_event_files(rows[:1] * 201, folder)


def test_an_export_says_what_is_missing(tmp_path: Path, rows: list[Row], monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*words: str) -> str:
        with pytest.raises(InputError) as caught:
            CliRunner().invoke(group, [*words, "--root", str(tmp_path)], catch_exceptions=False)
        return str(caught.value)

    assert said("export", "csv").startswith("Where shall csv go? Say --to FILE")
    assert said("export", "csv", "state=queued", "--to", "x.csv").startswith("No runs fit 'state=queued'")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install mlflow" in said("export", "mlflow", "--to", "sqlite:///x.db")
    assert len(rows) == 2
