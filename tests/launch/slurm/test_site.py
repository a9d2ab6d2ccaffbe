"""A cluster's own description is read as Slurm prints it."""

import pytest

from hpctool.errors import SchedulerError
from hpctool.launch.gres import Gres
from hpctool.launch.slurm import site
from tests.launch.slurm.sites import QOS, ToySite


def test_partitions_and_kinds_of_nodes_are_read(toy_site: ToySite) -> None:
    found = site.read()
    assert list(found.partitions) == ["batch", "gpu"]
    assert found.default_partition == "batch"
    batch, gpu = found.partitions.values()
    assert (batch.max_time_s, batch.preempt_mode, batch.grace_s, batch.max_nodes) == (86400, "REQUEUE", 10, None)
    assert (gpu.max_time_s, gpu.preempt_mode, gpu.priority_tier) == (8 * 3600, "OFF", 10)
    last = found.shapes[-1]
    assert (last.partition, last.num_nodes, last.cpus, last.memory_mb) == ("gpu", 1, 64, 512000)
    assert last.features == {"new"}
    assert last.count(Gres("gpu", "", 1)) == last.count(Gres("gpu", "h100", 1)) == 8
    assert last.count(Gres("gpu", "a100", 1)) == 0


@pytest.mark.parametrize(
    ("text", "found"),
    [("1-00:00:00", 86400), ("10:00", 600), ("00:10:00", 600), ("UNLIMITED", None), ("", None), ("0", None)],
)
def test_times_are_read_and_may_be_without_limit(text: str, found: int | None) -> None:
    assert site.seconds(text) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [("8", 8), ("8+", 8), ("1.5K", 1500), ("UNLIMITED", None), ("", None)],
)
def test_counts_are_read_and_may_be_without_limit(text: str, found: int | None) -> None:
    assert site.number(text) == found


def test_an_array_has_the_size_that_the_smaller_of_both_limits_allows(toy_site: ToySite) -> None:
    assert site.read().max_array_tasks == 1001
    toy_site.says(config={"SchedulerParameters": "bf_interval=30,max_array_tasks=50,defer"})
    assert site.read().max_array_tasks == 50
    toy_site.says(config={"MaxArraySize": "40001"})
    assert site.read().max_array_tasks == 40001


@pytest.mark.slow
def test_the_limit_of_submitted_jobs_is_the_smallest_that_is_enforced(toy_site: ToySite) -> None:
    assert site.read().max_submit_jobs(None, None) == 100
    assert site.read().max_submit_jobs("short", None) == 100
    assert site.read().max_submit_jobs(None, "paid") is None
    toy_site.says(config={"AccountingStorageEnforce": "associations"})
    assert site.read().max_submit_jobs(None, None) is None
    toy_site.says(config={"AccountingStorageType": "accounting_storage/none"})
    assert site.read().max_submit_jobs(None, None) is None


def test_the_qos_of_a_partition_limits_its_jobs_too(toy_site: ToySite) -> None:
    toy_site.says(
        partitions={"batch": {"Default": "YES", "QoS": "few"}}, qos=[*QOS, ("few", *QOS[0][1:6], "7", "", "")]
    )
    assert site.read().max_submit_jobs(None, None) == 7


def test_where_there_is_no_accounting_nobody_is_asked_for_accounts(toy_site: ToySite) -> None:
    toy_site.says(config={"AccountingStorageType": "accounting_storage/none"})
    toy_site.fails("sacctmgr")
    found = site.read()
    assert found.qos == {}
    assert found.associations == []


def test_a_controller_that_does_not_answer_is_an_error_of_one_sentence(toy_site: ToySite) -> None:
    toy_site.fails("scontrol")
    with pytest.raises(SchedulerError, match="Unable to contact slurm controller"):
        site.read()
