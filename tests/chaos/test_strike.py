"""What is done at the very first moment of a run, when there is no attempt yet, is done, too."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from hpctool.chaos.faults import PHASES, draw
from tests.chaos.scenarios import Scenario, rehearse_one

PROGRAM = """
import numpy
import hpctool

total = numpy.zeros(1)
job = hpctool.Preemptible(every_steps=2)
job.register(total=total)
for step in job.steps(6):
    total += step
"""
SEEN: dict[str, list[int]] = {moment: [0] for moments in PHASES.values() for moment in moments}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stale", "clock", "kill"])
def test_before_the_first_attempt_has_begun(project: Path, kind: str) -> None:
    (project / "count.py").write_text(PROGRAM)
    one = Scenario("run", ("script=count.py",), 1, kinds=(kind,), config_dirs=())

    def is_at_the_start(seed: int) -> bool:
        fault = draw(seed, [kind], 1, max_steps=6, num_ranks=1, seen=SEEN)[0]
        return fault.moment == "start" and fault.form != "supervisor"

    verdict = rehearse_one(one, project / "chaos", 1, next(filter(is_at_the_start, itertools.count())))
    assert verdict.faults[0].moment == "start"
    assert verdict.is_good, "\n".join(verdict.sentences())
