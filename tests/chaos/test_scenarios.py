"""Broken more than sixty times, single, DDP, FSDP2 and MPI: the same bits, and no commit lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.scenarios import MPIRUN, SCENARIOS, rehearse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Ranks of torch cost seconds each to start, those of MPI a fraction.
FAULTS = {"single": 20, "ddp": 12, "fsdp": 10, "mpi": 24}


@pytest.mark.parametrize("name", sorted(SCENARIOS))
def test_broken_at_random_moments_it_ends_with_the_same_bits(project: Path, name: str) -> None:
    if name == "mpi" and MPIRUN is None:
        pytest.skip("there is no mpirun")
    verdict = rehearse(name, project / "chaos" / name, FAULTS[name], seed=1)
    words = "\n".join(verdict.sentences())
    assert verdict.is_good, words
    # One may find the run over: what is drawn for its very end, on a machine that was slow to strike.
    assert len(verdict.struck) >= FAULTS[name] - 1, words
    assert verdict.attempts > FAULTS[name] // 2


def test_enough_faults_are_tried() -> None:
    assert sum(FAULTS.values()) - len(FAULTS) >= 60
    assert FAULTS.keys() == SCENARIOS.keys()
