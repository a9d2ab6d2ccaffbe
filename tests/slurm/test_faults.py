"""Faults in a run on the real cluster: a rank that hangs, and a node that cannot do the work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from hpctool.launch.endings import unfit_nodes
from tests.slurm.survive import STEP_S, Lab, make_lab, private_folder

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab(cluster: Any) -> Iterator[Lab]:
    """A project of the ordinary user's, for all tests of this file."""
    folder = private_folder()
    yield make_lab(cluster, folder)
    shutil.rmtree(folder)


def slurmd(lab: Lab, node: str) -> str:
    """The process id of a node's daemon, whose view of the file system its jobs have."""
    return str(lab.cluster.as_root("pgrep", "-o", "-f", f"slurmd .*-N {node}")).strip()


def test_a_hanging_rank_is_named_and_the_job_comes_back_with_the_same_bits(lab: Lab) -> None:
    undisturbed = lab.train("undisturbed")
    lab.until_ended(undisturbed, attempts=1)
    limits = "cluster.hang={step_s: 5, step_p95: 1, first_step_min: 0.1}"
    run = lab.faulty("hanging", "hang", 2, 15, limits)
    story = lab.until_ended(run, attempts=2)
    first = story.of_kind("ended")[0]
    assert first["cause"] == "hang: rank 2 stands in step 13 (forward), the others wait in step 13 (backward)"
    assert first["failure"]
    assert "do_hang" in run.stacks(2, 1).read_text()
    assert lab.digest(run) == lab.digest(undisturbed)


def test_a_node_where_the_run_cannot_be_written_is_left_out_from_then_on(lab: Lab) -> None:
    first, second = "n1", "n2"
    pid = slurmd(lab, second)
    inside = ["nsenter", "--mount", f"--target={pid}"]
    lab.runs.mkdir(exist_ok=True)
    lab.cluster.as_root(*inside, "mount", "--bind", str(lab.runs), str(lab.runs))
    lab.cluster.as_root(*inside, "mount", "-o", "remount,bind,ro", str(lab.runs))
    try:
        run = lab.train("unfit", f"cluster.nodelist={first}", "+task.fault=")
        story = lab.until(run, lambda story: bool(story.of_kind("ended")))
        ended = story.of_kind("ended")[0]
        assert ended["state"] == "requeued"
        cause = "start check: n2: it cannot write into the run's folder (Read-only file system)"
        assert ended["cause"] == cause
        assert unfit_nodes(story) == ["n2"]
        story = lab.until_ended(run, attempts=2)
        assert story.state == "completed"
        nodes = lab.cluster.job(story.slurm_job_id)
        assert re.search("n2", nodes["ExcNodeList"]), nodes
        assert "n2" not in nodes["NodeList"].replace("n[1,", "n1,n")
    finally:
        lab.cluster.as_root(*inside, "umount", str(lab.runs))
    assert STEP_S > 0
