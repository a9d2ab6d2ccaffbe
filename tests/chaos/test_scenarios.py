"""Broken more than sixty times, single, DDP, FSDP2 and MPI: the same bits, and no commit lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.chaos.scenarios import MPIRUN, SCENARIOS, make_project, rehearse

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

#: Ranks of torch cost seconds each to start, those of MPI a fraction.
FAULTS = {"single": 20, "ddp": 12, "fsdp": 10, "mpi": 24}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    root = make_project(tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(str(root))
    # What the ranks import, and the mpirun that they are started by.
    monkeypatch.setenv("PYTHONPATH", str(root))
    if MPIRUN is not None:
        monkeypatch.setenv("PATH", f"{Path(MPIRUN).parent}:{os.environ['PATH']}")
    for name in ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"):
        monkeypatch.setenv(name, "1")
    return root


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
