"""What a cluster cannot run is refused before submission, with what there is instead."""

import functools
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hpctool import config
from hpctool.errors import ConfigError, InputError, UnknownName
from hpctool.launch.slurm import check
from tests.launch.slurm.sites import PARTITIONS, ToySite


@functools.cache
def shipped() -> dict[str, Any]:
    whole = config.compose("train", ["cluster=slurm"]).cfg
    return {key: config.to_plain(whole[key]) for key in ("cluster", "resources")}


def judge(values: dict[str, Any]) -> list[str]:
    """Check a run with these values; returns what is said aloud."""
    cfg = OmegaConf.create(shipped())
    for key, value in values.items():
        OmegaConf.update(cfg, key, value)
    said: list[str] = []
    check.check([config.to_plain(cfg)], said.append)
    return said


GPU = {"cluster.partition": "gpu"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cluster.partition": "bacth"}, ["no partition 'bacth'", "batch, gpu", "Did you mean batch"]),
        ({"cluster.partition": "batch,gpus"}, ["no partition 'gpus'", "batch, gpu"]),
        ({"cluster.account": "nobody"}, ["no account of yours 'nobody'", "lab, paid"]),
        ({"cluster.qos": "hihg"}, ["no QOS 'hihg'", "normal, short, wide, private"]),
        ({"cluster.qos": "private"}, ["your accounts may not use 'private'", "normal, short, wide"]),
        ({"cluster.qos": "short", "cluster.account": "paid"}, ["account 'paid' may not use 'short'", "normal"]),
        ({"resources.nodes": 5}, ["resources.nodes", "5 are asked for", "has 4"]),
        ({"resources.time": "2-00:00:00"}, ["2-00:00:00 is longer than partition 'batch' allows, which is 1-00:00:00"]),
        ({"cluster.qos": "short"}, ["1:00:00 is longer than QOS 'short' allows, which is 0:10:00"]),
        ({"cluster.qos": "wide", "resources.nodes": 3}, ["node=3", "QOS 'wide' gives it 2"]),
        ({"resources.gpus_per_node": 1}, ["resources.gpus_per_node", "'batch' has no gpu", "fit into partition gpu"]),
        ({**GPU, "resources.gpus_per_node": "v100:1"}, ["no gpu:v100", "gpu:a100:4, gpu:h100:8, nvme:1"]),
        ({**GPU, "resources.gpus_per_node": "a100:5"}, ["resources.gpus_per_node", "gpu:a100:5", "is 4"]),
        ({**GPU, "resources.gpus_per_task": 3, "resources.tasks_per_node": 3}, ["gpus_per_task", "gpu:9", "is 8"]),
        ({**GPU, "resources.gres": "shard:1"}, ["resources.gres", "no shard"]),
        ({**GPU, "resources.gpus_per_node": "h100:1", "resources.nodes": 2}, ["2 are asked for", "has 1 with all"]),
        ({"resources.cpus_per_task": 3, "resources.tasks_per_node": 3}, ["9 CPUs", "is 8", "partition gpu"]),
        ({**GPU, "resources.gpus": 8, "resources.cpus_per_task": None, "resources.cpus_per_gpu": 9}, ["72 CPUs"]),
        ({"resources.mem_gb": 16}, ["16384 MB of memory", "16000"]),
        ({"resources.mem_per_cpu_gb": 4, "resources.cpus_per_task": 4}, ["16384 MB of memory"]),
        ({**GPU, "resources.gpus": 8, "resources.mem_per_gpu_gb": 63}, ["516096 MB of memory"]),
        ({"cluster.constraint": "nwe"}, ["feature 'nwe'", "there is old"]),
        ({**GPU, "cluster.constraint": "new&old"}, ["feature 'old'", "ib, new"]),
        ({**GPU, "cluster.constraint": "[ib*1&odd*1]"}, ["feature 'odd'"]),
        ({**GPU, "cluster.constraint": "ib", "resources.gpus_per_node": "h100:1"}, ["no gpu:h100"]),
        ({**GPU, "cluster.constraint": "ib", "resources.nodes": 3}, ["3 are asked for", "has 2 with all"]),
    ],
)
def test_what_cannot_run_is_refused_with_what_there_is(
    toy_site: ToySite, values: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises((ConfigError, UnknownName)) as caught:
        judge(values)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"cluster.account": "LAB", "cluster.qos": "short", "resources.time": "10"},
        {"resources.nodes": 4, "resources.tasks_per_node": 8, "resources.mem_gb": 15},
        {**GPU, "resources.gpus_per_node": "A100:4", "resources.nodes": 2, "cluster.constraint": "ib&new"},
        {**GPU, "resources.gpus_per_node": 4, "resources.nodes": 3, "cluster.constraint": "ib|new"},
        {**GPU, "resources.gpus": 9, "resources.nodes": 3},
        {**GPU, "cluster.constraint": "[ib*1&new*1]", "resources.nodes": 2},
        {**GPU, "cluster.constraint": "(ib&new)|new"},
        {"resources.mem_gb": 0},
    ],
)
def test_what_can_run_is_let_through_in_silence(toy_site: ToySite, values: dict[str, Any]) -> None:
    assert judge(values) == []


def test_of_several_partitions_one_that_takes_the_job_is_enough(toy_site: ToySite) -> None:
    values = {"cluster.partition": "gpu,batch", "resources.time": "12:00:00"}
    assert judge(values) == []
    toy_site.says(config={"EnforcePartLimits": "ALL"})
    with pytest.raises(ConfigError, match="longer than partition 'gpu' allows"):
        judge(values)


def test_a_qos_may_be_above_its_partitions_time_limit(toy_site: ToySite) -> None:
    assert judge({"cluster.qos": "wide", "resources.time": "2-00:00:00"}) == []


def test_limits_that_are_not_enforced_refuse_nothing(toy_site: ToySite) -> None:
    toy_site.says(config={"AccountingStorageEnforce": "none"}, users=[])
    assert judge({"cluster.qos": "short", "cluster.account": "anything"}) == []


def test_a_partition_may_be_closed_to_an_account(toy_site: ToySite) -> None:
    toy_site.says(partitions=PARTITIONS | {"gpu": {"AllowAccounts": "paid", "TotalNodes": "3"}})
    assert judge({**GPU, "cluster.account": "paid"}) == []
    with pytest.raises(ConfigError, match=r"'lab' may not use partition 'gpu'; paid may\."):
        judge({**GPU, "cluster.account": "lab"})


def test_without_a_default_partition_one_must_be_named(toy_site: ToySite) -> None:
    toy_site.says(partitions={"batch": {}})
    with pytest.raises(ConfigError, match=r"cluster\.partition.*Name one of batch"):
        judge({})


def test_without_accounting_it_is_said_that_accounts_are_not_checked(toy_site: ToySite) -> None:
    toy_site.says(config={"AccountingStorageType": "accounting_storage/none"})
    [said] = judge({"cluster.account": "lab", "cluster.qos": "high"})
    assert "cluster.account and cluster.qos cannot be checked" in said


def test_a_controller_that_is_down_is_said_in_one_sentence_and_sbatch_judges(toy_site: ToySite) -> None:
    toy_site.fails("scontrol")
    [said] = judge({"resources.nodes": 500})
    assert said == (
        "Slurm did not say what it has (scontrol show config: slurm_load_ctl_conf error: Unable to contact slurm "
        "controller); sbatch judges."
    )


def test_a_database_that_is_down_leaves_the_other_checks(toy_site: ToySite) -> None:
    toy_site.fails("sacctmgr", text="Unable to contact slurmdbd")
    [said] = judge({"cluster.account": "nobody"})
    assert "Accounts and QOS are not checked (sacctmgr: Unable to contact slurmdbd)" in said
    with pytest.raises(ConfigError, match="longer than partition"):
        judge({"resources.time": "2-00:00:00"})


def test_each_shape_is_checked_and_slurm_is_asked_once(toy_site: ToySite, tmp_path: Path) -> None:
    shapes = []
    for nodes in (1, 2, 5):
        cfg = OmegaConf.create(shipped())
        cfg.resources.nodes = nodes
        shapes.append(config.to_plain(cfg))
    with pytest.raises(ConfigError, match="5 are asked for"):
        check.before_submission(tmp_path, shapes, print)
    programs = [call.split(" ")[0] for call in toy_site.calls()]
    assert sorted(programs) == ["sacctmgr", "sacctmgr", "scontrol", "scontrol", "sinfo"]


def test_cells_that_share_an_allocation_must_fit_into_it_together(toy_site: ToySite, tmp_path: Path) -> None:
    plain = shipped()
    cell = {"cluster": plain["cluster"] | {"cells_at_once": 9}, "resources": plain["resources"]}
    check.before_submission(tmp_path, [cell] * 8, print)
    with pytest.raises(ConfigError, match="9 CPUs"):
        check.before_submission(tmp_path, [cell] * 9, print)


def test_where_nothing_goes_to_slurm_it_is_not_asked(toy_site: ToySite, tmp_path: Path) -> None:
    plain = shipped()
    for kind in ("inline", "local"):
        check.before_submission(tmp_path, [{**plain, "cluster": {**plain["cluster"], "kind": kind}}], print)
    assert not (toy_site.folder / "calls").exists()


def test_a_folder_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    check.check_folder(tmp_path / "not" / "yet" / "there")
    assert list(tmp_path.iterdir()) == []


def test_a_read_only_folder_is_refused_with_what_to_do(unprivileged: Path) -> None:
    (unprivileged / "closed").mkdir(mode=0o555)
    wanted = r"cannot be written to \(Permission denied\).*Nothing was submitted.*HPCTOOL_ROOT"
    with pytest.raises(InputError, match=wanted):
        check.check_folder(unprivileged / "closed" / "runs")


@pytest.mark.parametrize("name", ["50%u", "a\\b"])
def test_a_folder_whose_name_slurm_would_change_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"a % or a backslash.*Nothing was submitted"):
        check.check_folder(tmp_path / name / "runs")


def test_a_file_where_the_folder_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    with pytest.raises(InputError, match="Not a directory"):
        check.check_folder(tmp_path / "runs")


def test_a_disk_without_room_is_refused_and_nothing_is_left_there(tmp_path: Path, small_files: int) -> None:
    with pytest.raises(InputError, match=r"cannot be written to \(File too large\)"):
        check.check_folder(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_nearly_full_is_refused_with_what_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "NEEDED_BYTES", 2**62)
    with pytest.raises(InputError, match="MB left"):
        check.check_folder(tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr(check, "NEEDED_FILES", 2**62)
    if os.statvfs(tmp_path).f_files:
        with pytest.raises(InputError, match="more files"):
            check.check_folder(tmp_path)
