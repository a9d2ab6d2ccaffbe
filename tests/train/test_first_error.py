"""The first real error of a run whose ranks die of each other: which rank it was, and what it said."""

from __future__ import annotations

import pytest

from hpctool.launch.result import rank_errors
from tests.train.conftest import Attempt, MakeRun

pytestmark = pytest.mark.slow

LOOP = "loop={max_steps: 12, global_batch_size: 24}"


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("raise", "rank 2: ValueError: row 17 is not what it was"),
        ("exit3", "rank 2: OperationError: Something that the job called has left the program: sys.exit(3)."),
        ("exit0", "rank 2: OperationError: Something that the job called has left the program: sys.exit(0)."),
        ("kill", "rank 2: its process "),
    ],
)
def test_the_rank_that_failed_is_named_and_not_those_that_lost_it(
    make_run: MakeRun, attempt: Attempt, kind: str, fault: str, cause: str
) -> None:
    run = make_run(LOOP, "task._target_=usersown.Faulty", f"parallel={kind}")
    # Not under a queue, which would see by itself who went first.
    codes = attempt(run, 3, FAULT=f"{fault} 2 6", where="inline")
    assert codes == [1, 1, -9 if fault == "kill" else 1]
    errors = {error["rank"]: error["type"] for error in rank_errors(run, 1)}
    assert {errors[0], errors[1]} == {"WorldError"}
    assert run.story().cause.startswith(cause), run.story().cause
