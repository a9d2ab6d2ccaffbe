"""`hpctool runs` as people and programs call it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from hpctool import config, files
from hpctool.cli.output import print_table
from hpctool.cli.runs import group
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.errors import InputError, UnknownName
from hpctool.export import aliases
from hpctool.export.bundle import Bundle, manifest_digest
from hpctool.launch.result import write_ended
from hpctool.rundir import RunDir
from hpctool.track.metrics import MetricWriter
from hpctool.world import World
from tests.track.samples import CODE, Sample, sweep_of


def call(*arguments: str) -> Result:
    return CliRunner().invoke(group, arguments, catch_exceptions=False)


def data(*arguments: str) -> Any:
    return json.loads(call(*arguments, "--json").stdout)


def three_runs(root: Path) -> list[Sample]:
    runs = root / "runs"
    return [
        Sample(runs, "1", lr=0.001).submit().begin().log(range(10, 101, 10), 0.9).complete("aa" * 32),
        Sample(runs, "2", lr=0.1).submit().begin().log(range(10, 51, 10), 0.3).end("failed", "rank 0: ValueError: no"),
        Sample(runs, "3", lr=0.01).submit().begin().log(range(10, 101, 10), 0.95, noise=1e-12).complete("bb" * 32),
    ]


def test_a_piped_list_has_one_uncut_line_per_run_and_nothing_but_the_table(root: Path) -> None:
    three_runs(root)
    cause = "a cause " * 60
    Sample(root / "runs", "4").begin().end("failed", cause)
    answer = call("list")
    head, rule, *lines = answer.stdout.splitlines()
    assert head.split()[:6] == ["id", "job", "state", "step", "val/accuracy", "train/loss"]
    assert set(rule) == {"─"}
    assert len(lines) == 4
    assert any(cause.strip() in line for line in lines)
    assert "\x1b" not in answer.stdout
    assert "4 runs: 2 completed, 2 failed" in answer.stderr


def test_the_list_fits_into_a_narrow_terminal(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    three_runs(root)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    for width in (80, 100):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = call("list").stdout.splitlines()
        assert all(len(line) <= width for line in lines)
        assert "val/accuracy" in lines[0]


def test_the_best_runs_come_first_when_sorted_and_the_limit_says_of_how_many(root: Path) -> None:
    one, two, three = three_runs(root)
    answer = call("list", "--sort", "-val/accuracy", "--limit", "2")
    assert [line.split()[0] for line in answer.stdout.splitlines()[2:]] == [three.id, one.id]
    assert "2 of 3 runs" in answer.stderr
    assert [row["id"] for row in data("list", "--sort", "optim.lr")] == [one.id, three.id, two.id]


def test_columns_can_be_chosen(root: Path) -> None:
    three_runs(root)
    head, _, *lines = call("list", "--cols", "optim.lr,model.width", "--state", "failed").stdout.splitlines()
    assert head.split() == ["id", "state", "optim.lr", "model.width"]
    assert [line.split()[1:] for line in lines] == [["failed", "0.1", "8"]]
    assert data("list", "--cols", "model.width", "--limit", "1")[0]["model.width"] == 8
    with pytest.raises(UnknownName, match=r"Did you mean optim\.lr"):
        call("list", "--cols", "lr")


def test_a_sweep_shows_what_it_varies_and_the_cells_that_wait(root: Path) -> None:
    sweep_of(root / "runs", "train-5eee0000", [digit * 64 for digit in "12"])
    Sample(root / "runs", "1", sweep="train-5eee0000", cell=0, varied=["optim.lr"], lr=0.001).begin()
    answer = call("list", "--sweep", "train-5e", "--sort", "optim.lr")
    head, _, *lines = answer.stdout.splitlines()
    assert "optim.lr" in head
    assert [line.split()[2] for line in lines] == ["running", "queued"]
    with pytest.raises(UnknownName, match="train-5eee0000"):
        call("list", "--sweep", "nothing")


def test_only_what_tells_the_runs_apart_is_shown_as_changed(root: Path) -> None:
    three_runs(root)
    lines = call("list").stdout.splitlines()
    assert "optim.lr=0.1" in "".join(lines)
    assert "model=cnn" not in "".join(lines)
    (line,) = call("list", "--limit", "1").stdout.splitlines()[2:]
    assert "model=cnn optim.lr=0.01" in line


def test_a_broken_run_is_a_row_and_a_word_on_stderr(root: Path) -> None:
    one, *_ = three_runs(root)
    one.rundir.run_json.write_text("{")
    answer = call("list", "--json")
    assert {row["id"]: row["state"] for row in json.loads(answer.stdout)}[one.id] == "broken"
    assert f"run {one.id}: " in answer.stderr
    assert "run.json is damaged" in answer.stderr


def test_an_empty_folder_says_so(root: Path) -> None:
    answer = call("list")
    assert answer.stdout == ""
    assert f"There are no runs in {root / 'runs'}." in answer.stderr
    assert data("list") == []
    nowhere = CliRunner().invoke(group, ["list", "--root", str(root / "nowhere")])
    assert nowhere.exit_code == 2
    assert f"Directory '{root / 'nowhere'}' does not exist." in " ".join(nowhere.stderr.split())


def test_show_tells_the_whole_story(root: Path) -> None:
    run = Sample(root / "runs").submit("4711").begin().log(range(10, 91, 10)).checkpoint(50)
    run.begin(50, where="slurm", slurm_job_id="4711").log(range(60, 101, 10)).fail("the loss is nan", step=100).end(
        "failed", "rank 0: the loss is nan", 50
    )
    text = call("show", run.id[:8]).stdout
    for words in ("optim.lr = 0.01", "digits@main", "9f2c1e0a9f2c", "lost", "the loss is nan", "Traceback", "job 4711"):
        assert words in text
    assert "checkpoints: 1 committed, 1 kept" in text
    assert str(run.rundir.path) in text
    assert data("show", run.id)["history"][1]["from_step"] == 50


def test_show_says_where_a_server_answers_and_prints_what_came_of_a_job_in_words(root: Path) -> None:
    pinned = [{"kind": "model", "name": "digits@production", "id": "digits@production"}]
    server = Sample(root / "runs", job="serve", inputs=pinned).submit().begin()
    body = {"url": "http://127.0.0.1:8080", "token_file": "", "pid": 1, "model": "digits@production"}
    files.write_json(server.rundir.artifact("endpoint.json"), body)
    text = call("show", server.id).stdout
    assert re.search(r"answers at +http://127.0.0.1:8080/v2/models/digits *\n", text)
    assert re.search(r"inputs +digits@production *\n", text)
    server.end("cancelled", "Ctrl-C")
    assert "answers at" not in call("show", server.id).stdout
    done = Sample(root / "runs", "c").begin()
    outputs = {"splits": {"train": 1108, "val": 165}, "notes": [], "unchanged": False, "tags": ["v1", "v2"]}
    write_ended(done.rundir, "completed", "", {"step": 0, "outputs": outputs})
    done.end("completed", "")
    text = call("show", done.id).stdout
    assert re.search(r"outputs +splits = train 1,108, val 165 *\n +tags = v1, v2 *\n", text)


def test_two_runs_are_compared_down_to_the_bit(root: Path) -> None:
    one, _, three = three_runs(root)
    text = call("compare", one.id, three.id).stdout
    assert "optim.lr" in text
    assert "They part at step 10: " in text
    assert "The same: data, code, environment, hardware." in text
    assert "Their parameters are different" in text
    assert data("compare", one.id, three.id)["parting"]["step"] == 10


def test_what_is_compared_stands_in_the_order_of_the_runs_and_is_the_same_only_where_it_is_known(root: Path) -> None:
    one, _, three = three_runs(root)
    one.rundir.environment_txt.unlink()
    text = call("compare", three.id, one.id).stdout
    assert f"({'bb' * 6}, {'aa' * 6})" in text
    assert "The same: data, code, hardware." in text
    assert f"The environment was not recorded for {one.id}." in text


def test_metrics_that_differ_never_look_the_same(root: Path) -> None:
    one, _, three = three_runs(root)
    (line,) = [
        line
        for line in call("compare", one.id, three.id).stdout.splitlines()
        if "train/loss" in line and "part" not in line
    ]
    _, ours, theirs = line.split()
    assert ours != theirs


def test_settings_that_differ_never_look_the_same(root: Path) -> None:
    ids = [Sample(root / "runs", digit, lr=lr).begin().complete().id for digit, lr in (("1", 1000.1), ("2", 1000.4))]
    (line,) = [line for line in call("compare", *ids).stdout.splitlines() if "optim.lr" in line]
    assert line.split() == ["optim.lr", "1000.1", "1000.4"]


def test_names_with_brackets_and_colons_are_shown_as_they_are(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = []
    for digit, value in (("1", 0.5), ("2", 0.25)):
        sample = Sample(root / "runs", digit).begin()
        with MetricWriter(sample.rundir, World()) as writer:
            writer.log(1, {"f1[/cat]": value, "f1[red] :dog:": value})
        sample.rundir.artifact("x[red].png").parent.mkdir(parents=True, exist_ok=True)
        sample.rundir.artifact("x[red].png").write_bytes(b"x")
        runs.append(sample.complete().id)
    compared = call("compare", *runs).stdout
    assert "f1[/cat]" in compared
    assert "f1[red] :dog:" in compared
    assert "x[red].png" in call("show", runs[0]).stdout
    print_table(["class [b]", "train"], [["[red] fox", 3], ["smile [/]", 4]], title="[bold] classes")
    shown = capsys.readouterr().out
    for words in ("class [b]", "[red] fox", "smile [/]", "[bold] classes"):
        assert words in shown


def test_comparing_a_run_with_itself_is_refused(root: Path) -> None:
    one, *_ = three_runs(root)
    with pytest.raises(InputError, match="two runs or more"):
        call("compare", one.id, one.id)


def test_logs_are_printed_byte_by_byte(root: Path) -> None:
    run = Sample(root / "runs").begin().say("eins\nzwei ü\n").complete()
    assert call("logs", run.id, "-n", "1").stdout == "zwei ü\n"
    assert call("logs", run.id, "-f").stdout == "eins\nzwei ü\n"


# ---------------------------------------------------------------------------------------------- lineage


def make_dataset(root: Path, run: str) -> str:
    asked = ["data.name=digits", "data.message=the digits", f"paths.root={root}"]
    cfg = config.typed(config.compose("prepare", asked).cfg, PrepareConfig)
    return prepare(cfg, World(), run=run).commit


def make_bundle(root: Path, run: RunDir, commit: str) -> Bundle:
    """What a bundle's lineage needs of it."""
    path = root / "models" / "digits" / "0001"
    path.mkdir(parents=True)
    lineage = {
        "format": 1,
        "model": {"name": "digits", "version": "0001"},
        "run": run.id,
        "run_identity": run.record()["identity"],
        "data": {"name": "digits", "commit": commit},
        "code": CODE,
        "config_digest": files.sha256_file(run.config_yaml),
    }
    files.write_json(path / "lineage.json", lineage)
    manifest = {"format": 1, "created": "2026-01-01T00:00:00Z", "files": {}, "content": "cc" * 32}
    files.write_json(path / "MANIFEST.json", {**manifest, "digest": manifest_digest(manifest)})
    return Bundle(path)


def whole_circle(root: Path) -> tuple[Sample, Sample, Bundle]:
    prepare = Sample(root / "runs", "1", job="prepare", inputs=[], overrides=["source=digits"])
    commit = make_dataset(root, prepare.id)
    inputs = [{"kind": "dataset", "name": "digits@main", "id": commit}]
    train = Sample(root / "runs", "2", inputs=inputs).begin().log([10]).complete()
    return prepare, train, make_bundle(root, train.rundir, commit)


@pytest.mark.slow
def test_a_model_is_traced_to_the_run_the_data_and_the_run_that_made_the_data(root: Path) -> None:
    prepare, train, bundle = whole_circle(root)
    aliases.promote(root / "models", bundle, "production", check=lambda path: None)
    for name in ("digits@production", "digits@0001", "digits:0001", "digits"):
        node = data("lineage", name)
        assert (node["kind"], node["name"]) == ("model", "digits@0001")
        (run,) = node["made_from"]
        (dataset,) = run["made_from"]
        (made_by,) = dataset["made_from"]
        assert [run["name"], dataset["name"], made_by["name"]] == [train.id, "digits@main", prepare.id]
        assert dataset["facts"]["message"] == "the digits"
        assert [one["problems"] for one in (node, run, dataset, made_by)] == [[], [], [], []]
    text = call("lineage", "digits").stdout
    for words in (train.id, prepare.id, "the digits", "source=digits", "9f2c1e0a9f2c", "model=cnn optim.lr=0.01"):
        assert words in text


@pytest.mark.slow
def test_a_dataset_is_traced_to_the_run_that_made_it(root: Path) -> None:
    prepare, _, _ = whole_circle(root)
    node = data("lineage", "digits@main")
    # A model of the same name is meant where both have the revision; only the dataset has main.
    assert node["kind"] == "dataset"
    assert node["made_from"][0]["name"] == prepare.id


@pytest.mark.slow
def test_a_model_outlives_its_run(root: Path) -> None:
    _, train, _ = whole_circle(root)
    train.rundir.run_json.unlink()
    (run,) = data("lineage", "digits@0001")["made_from"]
    assert run["facts"]["code"]["commit"] == CODE["commit"]
    assert run["made_from"][0]["facts"]["message"] == "the digits"
    assert "Its folder is not in" in run["problems"][0]


@pytest.mark.slow
def test_a_config_that_was_edited_after_the_export_is_said(root: Path) -> None:
    _, train, _ = whole_circle(root)
    train.rundir.config_yaml.write_text(train.rundir.config_yaml.read_text() + "seed2: 1\n")
    assert "config.yaml is not the one" in data("lineage", "digits@0001")["made_from"][0]["problems"][0]


@pytest.mark.slow
def test_a_damaged_commit_is_said_in_the_tree(root: Path) -> None:
    _, train, _ = whole_circle(root)
    for path in (root / "datasets" / "digits" / "commits").glob("*/*.json"):
        path.chmod(0o644)
        path.write_text("{}")
    assert "do not fit its checksum" in call("lineage", train.id).stdout


@pytest.mark.slow
def test_a_name_that_nothing_has_is_refused_with_what_there_is(root: Path) -> None:
    whole_circle(root)
    with pytest.raises(UnknownName, match="digits"):
        call("lineage", "digit@main")
    with pytest.raises(UnknownName, match="train-22222222"):
        call("lineage", "trian")


@pytest.mark.slow
def test_the_list_imports_no_torch(root: Path) -> None:
    three_runs(root)
    code = (
        "import sys; from hpctool.cli.runs import group\n"
        "try: group(['list'])\n"
        "finally: print({'torch', 'tensorboard', 'h5py'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "set()"
