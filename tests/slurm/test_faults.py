"""Faults in a run on the real cluster: a rank that hangs."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.slurm.survive import Lab, make_lab, private_folder

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def lab(cluster: Any) -> Iterator[Lab]:
    """A project of the ordinary user's, for all tests of this file."""
    folder = private_folder()
    yield make_lab(cluster, folder)
    shutil.rmtree(folder)


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
