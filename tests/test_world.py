"""Ranks find each other, agree, and are told when one of them is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.errors import ConfigError, WorldError
from hpctool.world import FakeWorld, World, make_world

RANKS = Path(__file__).with_name("ranks.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

Start = Callable[..., list["subprocess.Popen[str]"]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start the ranks 0..size-1 (or those named) of a scenario as a hand-written script would."""
    started: list[subprocess.Popen[str]] = []

    def go(size: int, *arguments: object, ranks: list[int] | None = None, **variables: str) -> list[Any]:
        variables = variables or {"HPCTOOL_RENDEZVOUS": str(tmp_path / "meet" / "here.json")}
        for rank in range(size) if ranks is None else ranks:
            place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
            environment = {**os.environ, **{k: str(v) for k, v in place.items()}, **variables, "OMP_NUM_THREADS": "1"}
            command = [sys.executable, str(RANKS), *map(str, arguments)]
            pipe = subprocess.PIPE
            started.append(subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True))
        return started

    yield go
    for process in started:
        process.kill()
        process.communicate()


def answers(folder: Path, size: int) -> list[Any]:
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(size)]


def finish(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        said = process.communicate(timeout=60)
        assert process.returncode == 0, said


def check_collectives(told: list[Any], backend: str) -> None:
    size = len(told)
    assert all("result" in answer for answer in told), told
    everything = [answer["result"] for answer in told]
    total = sum(range(1, size + 1))
    for rank, result in enumerate(everything):
        assert result["backend"] == backend
        assert result["place"] == [rank, size, rank, size]
        assert result["broadcast"] == {"from": 1, "text": "é", "none": None}
        assert result["gather"] == [{"rank": r, "filler": "x" * 100 * r} for r in range(size)]
        assert result["empty"] == [""] * size
        assert list(result["sums"].values()) == [[[total] * 3] * 2] * 5
        assert result["shapes"] == [[2, 0, 3], "float32", [], "int64"]
        assert result["max"] == size - 1
        assert result["min"] == [0, 1 - size]
        assert result["on_main"] == ["only", 0]


def check_errors(told: list[Any]) -> None:
    first, *others = (answer["result"] for answer in told)
    wrong_input, missing_file, not_json, bug = first
    assert wrong_input == "ConfigError: Config 'optim.lr': there is no such key."
    assert missing_file == "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"
    assert not_json.startswith("TypeError: Object of type set is not JSON serializable")
    assert bug == "ZeroDivisionError: division by zero"
    for other in others:
        assert other == [
            wrong_input,
            missing_file,
            f"OperationError: Rank 0 failed: {not_json}",
            f"OperationError: Rank 0 failed: {bug}",
        ]


# -- torch


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_meet_through_a_file_and_agree(tmp_path: Path, start: Start, size: int) -> None:
    finish(start(size, "collectives", tmp_path))
    check_collectives(answers(tmp_path, size), "torch")


@pytest.mark.slow
def test_ranks_meet_at_an_address(tmp_path: Path, start: Start) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    finish(start(2, "fails_on_main", tmp_path, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)))
    check_errors(answers(tmp_path, 2))


@pytest.mark.slow
def test_ranks_succeed_together_or_fail_together(tmp_path: Path, start: Start) -> None:
    finish(start(3, "fails_on_some", tmp_path))
    first, second, third = (answer["result"] for answer in answers(tmp_path, 3))
    assert first[0] == second[0] == third[0] == [{"rank": 0}, {"rank": 1}, {"rank": 2}]
    wrong_input = "ConfigError: Config 'optim.lr': there is no such key."
    missing_file = "FileNotFoundError: [Errno 2] No such file or directory: '/nowhere/at/all'"
    not_json = "TypeError: Object of type set is not JSON serializable"
    assert first[1:] == [wrong_input, missing_file, f"OperationError: Rank 2 failed: {not_json}"]
    assert second[1:] == first[1:]
    # who failed says so itself
    assert third[1:] == [wrong_input, wrong_input, not_json]


@pytest.mark.slow
def test_torchrun_starts_ranks(tmp_path: Path) -> None:
    command = [*TORCHRUN, "--standalone", "--nproc-per-node", "2", str(RANKS), "collectives", str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=100, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    check_collectives(answers(tmp_path, 2), "torch")


@pytest.mark.slow
def test_a_killed_rank_is_an_error_on_the_others_within_seconds(tmp_path: Path, start: Start) -> None:
    processes = start(3, "last_is_killed", tmp_path)
    finish(processes[:2])
    assert processes[2].wait(timeout=10) == -signal.SIGKILL
    for rank, told in enumerate(answers(tmp_path, 2)):
        assert told["error"] == "WorldError"
        assert told["text"].startswith(f"Rank {rank} lost its peers: ")
        assert told["seconds"] < 25


@pytest.mark.slow
def test_a_rank_that_is_suspended_for_longer_than_ranks_wait_to_join_goes_on(tmp_path: Path, start: Start) -> None:
    finish(start(2, "one_is_suspended", tmp_path, "auto", 10))
    told = answers(tmp_path, 2)
    assert all(answer.get("result", 0.0) > 11.5 for answer in told), told


@pytest.mark.slow
def test_whoever_leaves_gpus_alone_does_not_wait_for_the_others_there(tmp_path: Path, start: Start) -> None:
    finish(start(2, "gpus_are_left_together", tmp_path, "auto", 10))
    # Alone: it ends at once, and torch's group stays as it is; together: the other way round.
    assert [answer["result"] for answer in answers(tmp_path, 2)] == [[True, True, False, False]] * 2


@pytest.mark.slow
def test_a_rank_that_never_comes_is_named(tmp_path: Path, start: Start) -> None:
    finish(start(3, "collectives", tmp_path, "auto", 4, ranks=[0, 2]))
    told = json.loads((tmp_path / "0.json").read_text())
    assert told["error"] == "WorldError"
    assert told["text"].startswith("Rank 0 of 3 waited 4 s for rank 1.")
    assert told["seconds"] < 15
    assert json.loads((tmp_path / "2.json").read_text())["error"] == "WorldError"


@pytest.mark.slow
def test_a_rank_0_that_never_comes_is_named(tmp_path: Path, start: Start) -> None:
    finish(start(2, "collectives", tmp_path, "auto", 2, ranks=[1]))
    told = json.loads((tmp_path / "1.json").read_text())
    assert told["error"] == "WorldError"
    assert "waited 2 s" in told["text"]
    assert "which rank 0 did not write" in told["text"]


# -- MPI


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun")
@pytest.mark.parametrize("scenario", ["collectives", "fails_on_main"])
def test_mpi_ranks_agree(tmp_path: Path, scenario: str) -> None:
    assert MPIRUN is not None
    command = [MPIRUN, "--allow-run-as-root", "--oversubscribe", "-n", "3", sys.executable, str(RANKS)]
    done = subprocess.run([*command, scenario, tmp_path, "mpi"], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    told = answers(tmp_path, 3)
    check_collectives(told, "mpi") if scenario == "collectives" else check_errors(told)


# -- alone, and among fakes


def test_alone_everything_is_its_own_answer() -> None:
    with make_world("single") as world:
        assert (world.rank, world.size, world.is_main, world.backend) == (0, 1, True, "single")
        world.barrier()
        assert world.broadcast({"a": (1, 2)}) == {"a": [1, 2]}
        assert world.gather("x") == ["x"]
        assert world.on_main(lambda: {"b": 1}) == {"b": 1}
        assert world.together(lambda: (1, 2)) == [[1, 2]]


@pytest.mark.parametrize("world", [World(), FakeWorld(), FakeWorld(rank=1, size=3)])
def test_what_does_not_fit_in_json_does_not_travel_even_alone(world: World) -> None:
    sends = (world.broadcast, world.gather, lambda v: world.on_main(lambda: v), lambda v: world.together(lambda: v))
    for send in sends:
        with pytest.raises(TypeError, match="not JSON serializable"):
            send({1, 2})


@pytest.mark.parametrize("world", [World(), FakeWorld(size=2)])
def test_reduce_gives_a_new_array_of_the_same_kind(world: World) -> None:
    for array in (np.ones((2, 0, 3), np.float32), np.array(7), np.arange(6).reshape(2, 3).T, np.full(3, 5, np.uint8)):
        result = world.reduce(array)
        assert result.dtype == array.dtype
        assert result.shape == array.shape
        np.testing.assert_array_equal(result, array * array.dtype.type(world.size))
        np.testing.assert_array_equal(world.reduce(array, "max"), array)
        assert not np.shares_memory(result, array)


@pytest.mark.parametrize("dtype", ["bool", "float16", "uint32", "complex128", "U1"])
def test_reduce_refuses_what_not_every_world_can_add(dtype: str) -> None:
    with pytest.raises(TypeError, match="reduce takes uint8"):
        World().reduce(np.zeros(2, dtype))


def test_a_fake_rank_sees_others_that_do_what_it_does(tmp_path: Path) -> None:
    world = FakeWorld(rank=1, size=3)
    assert (world.rank, world.size, world.is_main) == (1, 3, False)
    assert world.gather({"n": 1}) == [{"n": 1}] * 3
    assert world.reduce(np.array([2.5])).tolist() == [7.5]
    assert world.reduce(np.array([2.5]), "min").tolist() == [2.5]
    assert world.on_main(lambda: "what rank 0 would say") == "what rank 0 would say"
    assert world.together(lambda: "what each says") == ["what each says"] * 3


@pytest.mark.parametrize("do", [World().on_main, World().together])
def test_an_own_error_is_itself(do: Callable[[Callable[[], None]], Any]) -> None:
    error = ConfigError("a", "b")

    def wrong() -> None:
        raise error

    with pytest.raises(ConfigError) as caught:
        do(wrong)
    assert caught.value is error


def test_there_is_no_other_kind_of_world() -> None:
    with pytest.raises(WorldError, match=r"no world 'horovod'; there is auto, torch, mpi and single"):
        make_world("horovod")
