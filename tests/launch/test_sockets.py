"""Ranks joined by plain sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool import files
from hpctool.errors import WorldError
from hpctool.launch.sockets import SocketWorld
from hpctool.place import Place

RANK = """
import sys; sys.path.insert(0, {root!r})
from pathlib import Path
from tests import ranks
from hpctool.launch.sockets import SocketWorld
from hpctool.place import place_from_environment
ranks.make_world = lambda kind, timeout_s: SocketWorld(place_from_environment(), Path(sys.argv[3]), timeout_s)
ranks.main(sys.argv[1], Path(sys.argv[2]), "auto", "30")
assert "torch" not in sys.modules or sys.argv[1] != "collectives"
"""
ROOT = Path(__file__).parent.parent.parent


def told(scenario: str, folder: Path, size: int = 3) -> list[dict[str, Any] | None]:
    """What each rank of a scenario of tests/ranks.py came to; None for one that died."""
    started = []
    for rank in range(size):
        environ = {**os.environ, "RANK": str(rank), "WORLD_SIZE": str(size)}
        command = [sys.executable, "-c", RANK.format(root=str(ROOT)), scenario, str(folder), str(folder / "meet.json")]
        started.append(subprocess.Popen(command, env=environ))
    for process in started:
        process.wait(60)
    paths = [folder / f"{rank}.json" for rank in range(size)]
    return [json.loads(path.read_text()) if path.exists() else None for path in paths]


@pytest.mark.slow
def test_every_collective_gives_every_rank_its_answer(tmp_path: Path) -> None:
    for rank, answer in enumerate(told("collectives", tmp_path)):
        assert answer is not None
        found = answer["result"]
        assert (found["backend"], found["place"][:2]) == ("sockets", [rank, 3])
        assert found["broadcast"] == {"from": 1, "text": "é", "none": None}
        assert [(one["rank"], len(one["filler"])) for one in found["gather"]] == [(0, 0), (1, 100), (2, 200)]
        assert found["sums"] == {name: [[6, 6, 6], [6, 6, 6]] for name in found["sums"]}
        assert (found["shapes"], found["max"], found["min"]) == ([[2, 0, 3], "float32", [], "int64"], 2, [0, -2])
        assert found["on_main"] == ["only", 0]
    assert not (tmp_path / "meet.json").exists()


@pytest.mark.slow
def test_a_rank_that_dies_is_noticed_at_once_by_all_others(tmp_path: Path) -> None:
    first, second, last = told("last_is_killed", tmp_path)
    assert last is None
    for answer in (first, second):
        assert answer is not None
        assert (answer["error"], answer["seconds"] < 20) == ("WorldError", True)
        assert "lost its peers" in answer["text"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_nobody_joins_says_for_whom_it_waited(tmp_path: Path, rank: int) -> None:
    place = Place(rank=rank, size=2, local_rank=rank, local_size=2)
    with pytest.raises(WorldError, match=f"waited 1 s for rank {1 - rank}"):
        SocketWorld(place, tmp_path / "meet.json", timeout_s=0.6)


@pytest.mark.slow
def test_an_earlier_meeting_at_the_same_file_is_seen_through(tmp_path: Path) -> None:
    files.write_json(tmp_path / "meet.json", {"host": "127.0.0.1", "port": 9, "word": "x" * 32})
    began = time.monotonic()
    with pytest.raises(WorldError, match="waited"):
        SocketWorld(Place(rank=1, size=2, local_rank=1, local_size=2), tmp_path / "meet.json", timeout_s=0.6)
    assert time.monotonic() - began < 5
