"""Slurm's programs are asked so that their answers can be read, whatever a user likes to see."""

from __future__ import annotations

import pytest

from hpctool.launch.slurm import ask
from tests.launch.slurm.stand_ins import StandIns

OF_USERS = (
    "SQUEUE_STATES",
    "SACCT_FORMAT",
    "SINFO_FORMAT",
    "SCANCEL_STATE",
    "SCONTROL_ALL",
    "SACCTMGR_X",
    "SLURM_JOB_ID",
)
OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")


@pytest.fixture
def slurm(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> StandIns:
    return StandIns(tmp_path_factory.mktemp("stand-ins") / "bin", monkeypatch)


def test_no_format_or_filter_of_a_users_own_reaches_them(slurm: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*OF_USERS, *OF_THE_SITE, "SLURM_TIME_FORMAT", "SLURM_BITSTR_LEN", "LANG"):
        monkeypatch.setenv(name, "theirs")
    slurm.says("JobId=7 StartTime=2026-11-28T10:00:00", name="scontrol")
    assert ask.show("job", "7") == [{"JobId": "7", "StartTime": "2026-11-28T10:00:00"}]
    environ = slurm.environ("scontrol")
    assert not set(OF_USERS) & environ.keys()
    assert {environ[name] for name in (*OF_THE_SITE, "LANG")} == {"theirs"}
    assert (environ["SLURM_TIME_FORMAT"], environ["SLURM_BITSTR_LEN"]) == ("standard", "0")


def test_what_starts_jobs_is_given_its_environment(slurm: StandIns, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    monkeypatch.setenv("SQUEUE_FORMAT", "theirs")
    slurm.says("", name="scontrol")
    ask.call("scontrol", env=ask.outside())
    environ = slurm.environ("scontrol")
    assert environ["SQUEUE_FORMAT"] == "theirs", "a job's own programs see it"
    assert "SLURM_TIME_FORMAT" not in environ
