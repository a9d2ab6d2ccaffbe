"""A save counts wholly or not at all, whatever happens while it runs."""

from __future__ import annotations

import errno
import os
import random
import resource
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from hpctool.checkpoint import Checkpointer, committed, state_digest
from hpctool.errors import InputError
from hpctool.rundir import RunDir
from hpctool.world import World

Begin = Callable[[RunDir], RunDir]
Spawn = Callable[..., "subprocess.Popen[str]"]


def state_of(step: int, size: int = 100) -> dict[str, object]:
    return {"w": np.full(size, step), "lr": 0.1 / step, "step": step}


def names(run: RunDir) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir()) if run.checkpoints.exists() else []


def restored_step(run: RunDir) -> int:
    """The newest step a reader finds; its content is that of the step."""
    found = Checkpointer(RunDir(run.path), World()).restore()
    if found is None:
        return 0
    assert state_digest(found.state) == state_digest(state_of(found.step, found.state["w"].size))
    return found.step


def test_a_state_comes_back_with_what_belongs_to_it(run: RunDir, begin: Begin) -> None:
    saver = Checkpointer(run, World())
    path = saver.save(state_of(3), 3, per_rank={"rng": [1, (2, 2**100)]}, info={"samples": 96})
    found = Checkpointer(begin(run), World()).restore()
    assert found is not None
    assert (found.step, found.attempt, found.info, found.path) == (3, 1, {"samples": 96}, path)
    assert found.per_rank == {"rng": [1, (2, 2**100)]}
    assert not found.world_size_changed
    assert state_digest(found.state) == state_digest(state_of(3))


def test_folders_and_files_are_for_their_owner_alone(run: RunDir) -> None:
    path = Checkpointer(run, World()).save(state_of(1), 1, per_rank={"w": np.ones(1)})
    assert {stat.S_IMODE(folder.stat().st_mode) for folder in (path, path.parent)} == {0o700}
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o600}


def test_a_step_that_is_committed_is_not_written_again(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    path = saver.save(state_of(1), 1)
    before = (path / "MANIFEST.json").stat()
    assert saver.save(state_of(1), 1) == path
    assert (path / "MANIFEST.json").stat() == before
    assert len(committed(run)) == 1


def test_a_folder_that_never_became_a_checkpoint_is_not_in_the_way(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    run.checkpoint(1).mkdir(parents=True)
    (run.checkpoint(1) / "state.json").touch()
    saver.save(state_of(1), 1)
    assert restored_step(run) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"state": {"model": {"f": print}}}, "The state at 'model/f'"),
        ({"state": {}, "per_rank": {"rng": b""}}, "The state at 'rng'"),
        ({"state": {}, "info": {"loss": float("nan")}}, "not plain JSON"),
    ],
)
def test_a_state_that_cannot_be_stored_leaves_nothing(run: RunDir, arguments: dict[str, object], message: str) -> None:
    saver = Checkpointer(run, World())
    with pytest.raises(InputError, match=message):
        saver.save(step=1, **arguments)  # type: ignore[arg-type]
    assert names(run) == []
    saver.save(state_of(1), 1)
    assert restored_step(run) == 1


def test_info_comes_back_as_json_has_it(run: RunDir) -> None:
    saver = Checkpointer(run, World())
    saver.save({}, 1, info={"by_epoch": {2: "b", 10: "a"}})
    found = saver.restore()
    assert found is not None
    assert found.info == {"by_epoch": {"2": "b", "10": "a"}}


@pytest.fixture
def small_files() -> Iterator[None]:
    """A quota: no file may pass 64 KB."""
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, was[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, was)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_file_that_hits_a_limit_fails_the_save_and_the_one_before_stays(run: RunDir, small_files: None) -> None:
    saver = Checkpointer(run, World())
    saver.save(state_of(1), 1)
    with pytest.raises(OSError, match=r"step 2 was not saved .*the one before it stays") as failure:
        saver.save(state_of(2, size=10_000), 2)
    assert failure.value.errno == errno.EFBIG
    assert names(run) == ["step-00000001.a1"]
    saver.save(state_of(2), 2)
    assert restored_step(run) == 2


def test_a_full_disk_fails_the_save_at_whatever_file_and_the_one_before_stays(small_disk: Path, begin: Begin) -> None:
    (small_disk / "run").mkdir(mode=0o700)
    run = begin(RunDir(small_disk / "run"))
    saver = Checkpointer(run, World())
    saver.save(state_of(1), 1)
    filler = small_disk / "filler"
    failures = []
    # state.json, tensors, manifest, ledger entry: each is the one that no longer fits.
    for free_pages in range(5):
        used = os.statvfs(small_disk)
        filler.write_bytes(bytes((used.f_bavail - free_pages) * used.f_bsize))
        try:
            saver.save(state_of(2), 2)
        except OSError as error:
            failures.append(error.errno)
            assert names(run) == ["step-00000001.a1"]
            assert restored_step(run) == 1
        filler.unlink()
    assert failures == [errno.ENOSPC] * 4
    assert restored_step(run) == 2
    assert not [name for name in os.listdir(run.path / "ledger") if name.startswith(".e")]


TRAINER = """
import sys
from pathlib import Path
import numpy as np
from hpctool.checkpoint import Checkpointer
from hpctool.rundir import RunDir
from hpctool.world import World

run = RunDir(Path(sys.argv[1]), int(sys.argv[2]))
run.ledger.append({"kind": "begun", "attempt": run.attempt, "step": 0})
saver = Checkpointer(run, World())
found = saver.restore()
step = found.step if found else 0
print(step, flush=True)
save = saver.async_save if sys.argv[3] == "async" else saver.save
while True:
    step += 1
    save({"w": np.full(200_000, step), "lr": 0.1 / step, "step": step}, step)
    # A save beside the training is known to be committed when the next one begins.
    print(step - (sys.argv[3] == "async"), flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sync", "async"])
def test_killed_at_any_moment_nothing_acknowledged_is_lost(run: RunDir, spawn: Spawn, how: str) -> None:
    rng = random.Random(1)
    acknowledged, unfinished = 0, 0
    for attempt in range(2, 34):
        process = spawn(TRAINER, run.path, attempt, how)
        assert process.stdout
        assert process.stderr
        resumed = int(process.stdout.readline())
        assert resumed >= acknowledged
        for _ in range(rng.randrange(4)):
            acknowledged = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        assert process.stderr.read() == ""
        acknowledged = max([resumed, acknowledged, *map(int, process.stdout.read().split())])
        unfinished += any(name.startswith(".") for name in names(run))
        assert acknowledged <= restored_step(run) <= acknowledged + (2 if how == "async" else 1)
    assert unfinished > 0  # otherwise no kill came while it saved
    Checkpointer(RunDir(run.path, 34), World()).save(state_of(1), acknowledged + 2)
    assert names(run) == sorted(made.path.name for made in committed(run)[-2:])


@pytest.mark.slow
def test_the_room_works_without_torch() -> None:
    code = "import sys, hpctool.checkpoint; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
