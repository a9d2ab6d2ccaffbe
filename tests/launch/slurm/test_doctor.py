"""The doctor says in plain words what a cluster does to jobs, and what to change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from omegaconf import DictConfig

from hpctool import config
from hpctool.cli.doctor import WIDTH, finding_text
from hpctool.cli.main import cli
from hpctool.errors import InputError
from hpctool.files import sha256_bytes
from hpctool.launch.schema import JobConfig
from hpctool.launch.slurm import doctor, probe, sitefile
from hpctool.launch.slurm.doctor import Report
from hpctool.launch.slurm.findings import Finding
from hpctool.rundir import create_run
from tests.launch.slurm.sites import PARTITIONS, QOS, ToySite


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return doctor.compose([], [])


@pytest.fixture
def cfg(composed: DictConfig, tmp_path: Path) -> DictConfig:
    """What a doctor is asked for whose runs lie in tmp_path/runs."""
    cfg = composed.copy()
    cfg.paths.runs = str(tmp_path / "runs")
    return cfg


def about(report: Report, word: str) -> Finding:
    """The one finding whose text holds a word."""
    [found] = [one for section in report.sections for one in section.findings if word in one.text]
    return found


def saved(runs: Path, *saves_s: float, causes: tuple[str, ...] = ()) -> None:
    """A run whose saves took so long, and whose attempts ended so."""
    record = {"name": "toy", "identity": sha256_bytes(repr((saves_s, causes)).encode()), "job": "toy"}
    run = create_run(runs, record, {})
    for step, save_s in enumerate(saves_s):
        body = {"kind": "checkpoint", "attempt": 0, "step": step, "path": "", "digest": "", "save_s": save_s}
        run.ledger.append(body)
    for cause in causes:
        run.ledger.append({"kind": "ended", "attempt": 0, "state": "requeued", "cause": cause, "step": 1})


# -- how jobs are stopped


@pytest.mark.slow
def test_grace_is_compared_with_how_long_saves_took(toy_site: ToySite, cfg: DictConfig, tmp_path: Path) -> None:
    found = about(doctor.examine(cfg), "Preemption in partition batch")
    assert found.level == "NOTE"
    assert "40 s later (10 s of GraceTime and 30 s of KillWait)" in found.text
    assert "not known yet" in found.advice
    saved(tmp_path / "runs", 3.0, 12.0)
    found = about(doctor.examine(cfg), "Preemption in partition batch")
    assert found.level == "OK"
    assert "The longest of your last 2 saves took 12.0 s. That fits." in found.text
    saved(tmp_path / "runs", 31.0)
    found = about(doctor.examine(cfg), "Preemption in partition batch")
    assert found.level == "CHANGE"
    assert "GraceTime of 72 s" in found.advice
    assert "checkpoint_every_min" in found.advice


def test_a_signal_that_comes_too_late_before_the_time_limit_is_to_be_changed(
    toy_site: ToySite, cfg: DictConfig, tmp_path: Path
) -> None:
    assert about(doctor.examine(cfg), "Time limit").level == "OK"
    saved(tmp_path / "runs", 100.0)
    found = about(doctor.examine(cfg), "Time limit")
    assert (found.level, found.advice) == ("CHANGE", "Give it more time: cluster.signal_delay_s=230.")


@pytest.mark.parametrize(
    ("settings", "signal"),
    [
        ({}, "SIGTERM"),
        ({"SlurmctldParameters": "cloud_dns,preempt_send_user_signal"}, "SIGUSR2"),
        ({"PreemptParameters": "send_user_signal"}, "SIGUSR2"),
        ({"SchedulerParameters": "preempt_send_user_signal"}, "SIGTERM"),
    ],
)
def test_the_signal_of_a_preemption_is_named(
    toy_site: ToySite, cfg: DictConfig, settings: dict[str, str], signal: str
) -> None:
    toy_site.says(config=settings)
    report = doctor.examine(cfg)
    assert f"told by the signal {signal}" in about(report, "Preemption in partition batch").text
    warned = [one for section in report.sections for one in section.findings if "other programs only" in one.text]
    assert bool(warned) == (signal == "SIGTERM")


def test_a_setting_in_the_wrong_place_is_told_to_the_site(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(config={"SchedulerParameters": "bf_interval=30,preempt_send_user_signal"})
    found = about(doctor.examine(cfg), "where it does nothing")
    assert found.level == "CHANGE"
    assert "SlurmctldParameters" in found.advice


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("REQUEUE", "Slurm puts it back into the queue"),
        ("CANCEL", "hpctool puts it back into the queue by itself"),
        ("SUSPEND,GANG", "frozen"),
    ],
)
def test_what_becomes_of_a_preempted_job_is_said(toy_site: ToySite, cfg: DictConfig, mode: str, words: str) -> None:
    toy_site.says(partitions=PARTITIONS | {"batch": {"Default": "YES", "PreemptMode": mode}})
    assert words in about(doctor.examine(cfg), "Preemption in partition batch").text


def test_where_nobody_is_preempted_that_is_said(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(config={"PreemptType": "preempt/none"})
    assert about(doctor.examine(cfg), "there is no preemption here").level == "OK"


def test_preemption_by_qos_goes_by_the_grace_of_the_qos(toy_site: ToySite, cfg: DictConfig) -> None:
    low = ("low", "", "00:02:00", "requeue", "", "", "", "", "")
    high = ("high", "", "00:00:00", "cluster", "low", "", "", "", "")
    toy_site.says(config={"PreemptType": "preempt/qos"}, qos=[*QOS, low, high])
    text = about(doctor.examine(cfg), "Preemption in QOS low").text
    assert "jobs of QOS high" in text
    assert "150 s later (120 s of GraceTime and 30 s of KillWait)" in text


def test_preemptions_that_left_no_time_are_counted(toy_site: ToySite, cfg: DictConfig, tmp_path: Path) -> None:
    saved(tmp_path / "runs", 1.0, causes=("preempted", "timeout", "preempted; there was no time to save", "requeued"))
    found = about(doctor.examine(cfg), "preemptions of your newest runs")
    assert found.level == "CHANGE"
    assert "Of the 3 preemptions of your newest runs, 2 left time to save" in found.text


def test_a_cluster_that_requeues_nothing_is_no_reason_to_worry(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(config={"JobRequeue": "0"})
    found = about(doctor.examine(cfg), "JobRequeue=0")
    assert (found.level, found.advice) == ("NOTE", "Scripts of your own need the line #SBATCH --requeue.")


# -- how much, and what there is


def test_limits_and_accounts_are_said(toy_site: ToySite, cfg: DictConfig) -> None:
    report = doctor.examine(cfg)
    assert "up to 1,001 tasks" in about(report, "One array").text
    assert "100 jobs in the queue at once" in about(report, "in the queue at once").text
    accounts = about(report, "Your accounts").text
    assert "lab (unless you name another), paid" in accounts
    assert "normal, short (up to 0:10:00), wide" in accounts


def test_without_accounting_it_is_said_that_nothing_is_missing(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(config={"AccountingStorageType": "accounting_storage/none"})
    assert about(doctor.examine(cfg), "no slurmdbd").level == "NOTE"


def test_who_has_no_account_is_told_so(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(users=[])
    assert about(doctor.examine(cfg), "knows no account of yours").level == "CHANGE"


def test_a_cluster_without_a_default_partition_wants_one_named(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(partitions={"a": {}, "b": {}})
    assert about(doctor.examine(cfg), "must name its partition").advice == "cluster.partition= a, b"


def test_gpus_mpi_and_memory_are_said(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.says(config={"SelectTypeParameters": "CR_CPU_MEMORY", "DefMemPerCPU": "2000"})
    report = doctor.examine(cfg)
    found = about(report, "GPUs of type a100, h100 are on 3 nodes").text
    assert "resources.gpus_per_node=a100:1" in found
    assert "2000 MB for each of its CPUs" in about(report, "asks for no memory").text
    assert report.mpi_plugins == ["pmix", "pmi2"]
    assert about(report, "srun starts MPI programs").advice.endswith("cluster.mpi=pmix.")


def test_partitions_are_a_table(toy_site: ToySite) -> None:
    from hpctool.launch.slurm import site

    assert doctor.partition_rows(site.read()) == [
        ("batch (default)", "1-00:00:00", "4", "8", "16", "none", "yes"),
        ("gpu", "8:00:00", "3", "64", "500", "a100:4, h100:8", "no"),
    ]


# -- where Slurm does not answer


def test_a_machine_without_slurm_is_told_what_it_can_do(
    cfg: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    report = doctor.examine(cfg)
    assert report.title == "A machine without Slurm"
    assert about(report, "There is no Slurm here").level == "OK"
    assert "cluster=local" in about(report, "background").text
    with pytest.raises(InputError, match="no Slurm here"):
        probe.run_probe(report, cfg, 1.0, print)


def test_a_controller_that_is_down_is_said_in_plain_words(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.fails("scontrol", "sinfo")
    found = about(doctor.examine(cfg), "does not answer")
    assert found.level == "CHANGE"
    assert "Unable to contact slurm controller" in found.text


def test_where_slurm_is_silent_the_doctor_fails_and_sends_nobody_to_a_probe(
    toy_site: ToySite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    toy_site.fails("scontrol", "sinfo")
    done = CliRunner().invoke(cli, ["doctor", f"paths.runs={tmp_path}/runs"])
    assert done.exit_code == 1
    assert "--probe" not in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= max(60, len(str(tmp_path)) + 30)


def test_a_database_that_is_down_leaves_the_rest(toy_site: ToySite, cfg: DictConfig) -> None:
    toy_site.fails("sacctmgr", text="Connection refused")
    report = doctor.examine(cfg)
    assert about(report, "database of accounts does not answer (Connection refused)").level == "NOTE"
    assert about(report, "One array").level == "OK"


def test_a_folder_that_one_may_not_write_is_to_be_changed(
    composed: DictConfig, unprivileged: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (unprivileged / "closed").mkdir(mode=0o555)
    monkeypatch.setenv("PATH", str(unprivileged))
    cfg = composed.copy()
    cfg.paths.runs = str(unprivileged / "closed" / "runs")
    assert about(doctor.examine(cfg), "You may not write there").level == "CHANGE"


# -- what is printed and written


def test_lines_fit_and_numbers_keep_their_units() -> None:
    text = finding_text(Finding("CHANGE", "word " * 18 + "10 s and so on " * 20, "--do-it " * 30))
    lines = text.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if line.rstrip().endswith(" 10")]
    assert lines[0].startswith("  CHANGE  word")
    assert [line for line in lines if line.lstrip().startswith("→")]


def call(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpctool.cli.main", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=100)


@pytest.mark.slow
def test_the_command_prints_for_people_and_for_programs(toy_site: ToySite, tmp_path: Path) -> None:
    done = call("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 100
    assert "When a job is told to stop" in done.stdout
    done = call("doctor", "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert told["partitions"][1]["GPUs"] == "a100:4, h100:8"
    assert {one["level"] for found in told["sections"].values() for one in found} <= {"OK", "NOTE", "CHANGE"}


def test_the_command_is_listed() -> None:
    import click

    command = cli.get_command(click.Context(cli), "doctor")
    assert command is not None
    assert "doctor" in cli.list_commands(click.Context(cli))


@pytest.mark.slow
def test_a_site_file_composes_and_holds_what_was_found(toy_site: ToySite, cfg: DictConfig, tmp_path: Path) -> None:
    path = tmp_path / "conf" / "cluster" / "mysite.yaml"
    saved(tmp_path / "runs", 200.0)
    toy_site.says(users=[("lab", "lab", "", "normal,short", "normal", "100", "12", "")])
    cfg.cluster.account = "lab"
    assert sitefile.write(path, doctor.examine(cfg), cfg) == "mysite"
    text = path.read_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "# To change: Preemption in partition batch" in text
    assert "gpu: up to 8:00:00; 3 nodes of 64 CPUs, 500 GB, GPUs: a100:4, h100:8" in text
    whole = config.compose("train", ["cluster=mysite"], [tmp_path / "conf"]).cfg
    cluster = config.typed(DictConfig({key: whole[key] for key in JobConfig.__dataclass_fields__}), JobConfig).cluster
    assert (cluster.kind, cluster.partition, cluster.account, cluster.qos) == ("slurm", "batch", "lab", None)
    assert (cluster.signal_delay_s, cluster.max_parallel) == (430, 12)


@pytest.mark.slow
def test_a_site_file_of_a_machine_without_slurm_is_a_local_one(
    cfg: DictConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "conf" / "cluster" / "laptop.yaml"
    sitefile.write(path, doctor.examine(cfg), cfg)
    assert config.compose("train", ["cluster=laptop"], [tmp_path / "conf"]).cfg.cluster.kind == "local"


def test_the_probes_fast_network_is_written_down(toy_site: ToySite, cfg: DictConfig) -> None:
    report = doctor.examine(cfg)
    report.probe = [{"interfaces": {"eth0": "", "ib0": ""}}, {"interfaces": {"ib0": "", "eth0": "", "ib1": ""}}]
    assert 'interface: "ib0"' in sitefile.text(report, cfg, "mysite").splitlines()


@pytest.mark.parametrize("name", ["mysite.yaml", "cluster/mysite", "cluster/_base.yaml"])
def test_a_site_file_has_its_place(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"conf/cluster/mysite\.yaml"):
        sitefile.check(tmp_path / name)


def test_a_site_file_that_is_there_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster" / "mysite.yaml").touch()
    with pytest.raises(InputError, match="exists already"):
        sitefile.check(tmp_path / "cluster" / "mysite.yaml")
