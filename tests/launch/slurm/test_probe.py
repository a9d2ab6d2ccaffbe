"""What the nodes of the doctor's probe find, and what is made of it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hpctool.launch.slurm import probe
from hpctool.launch.slurm.findings import Finding
from hpctool.launch.slurm.probe_node import versions

HERE: dict[str, Any] = {
    "python": ".".join(map(str, sys.version_info[:3])),
    "executable": sys.executable,
    "versions": versions(),
}


def node(rank: int, **values: Any) -> dict[str, Any]:
    """What a node finds where all is well."""
    won = [number % 2 == rank for number in range(4)]
    usual = {
        **{"rank": rank, "host": f"n{rank + 1}", "scontrol": True, "interfaces": {"eth0": f"10.0.0.{rank}"}, **HERE},
        **{"not_importable": {}, "token": "token", "unseen": [], "won": {"link": won, "symlink": won}},
        "clock": {"ahead_s": 0.001, "uncertain_s": 0.01} if rank == 0 else {},
    }
    return usual | values


def judged(*nodes: dict[str, Any]) -> list[Finding]:
    return list(probe.judge(list(nodes), "token"))


def bad(found: list[Finding]) -> Finding:
    """The one finding that is not OK."""
    [one] = [one for one in found if one.level != "OK"]
    return one


def test_where_all_is_well_nothing_is_to_be_changed() -> None:
    found = judged(node(0), node(1))
    assert {one.level for one in found} == {"OK"}
    texts = " ".join(one.text for one in found)
    for words in ("n1 and n2 see what each other", "hard links", "scontrol is there", "agree (within 0.01 s)"):
        assert words in texts


@pytest.mark.parametrize(
    ("values", "level", "words"),
    [
        ({"unseen": [0]}, "CHANGE", "n2 did not see what the others wrote"),
        ({"token": None}, "CHANGE", "n2 did not see what the others wrote"),
        ({"scontrol": False}, "CHANGE", "no scontrol on n2"),
        ({"not_importable": {"torch": "ImportError: libcudart.so"}}, "CHANGE", "n2 cannot import torch (ImportError"),
        ({"versions": HERE["versions"] | {"numpy": "1.0"}}, "NOTE", "n2 has numpy 1.0, and this machine"),
        ({"python": "3.8.1"}, "NOTE", "n2 has Python 3.8.1"),
    ],
)
def test_what_a_node_lacks_is_said_with_its_name(values: dict[str, Any], level: str, words: str) -> None:
    found = bad(judged(node(0), node(1, **values)))
    assert found.level == level
    assert words in found.text
    assert found.advice


def test_a_file_system_without_hard_links_may_have_symbolic_ones() -> None:
    won = [{"link": "Operation not permitted", "symlink": [rank == 0] * 4} for rank in range(2)]
    found = judged(node(0, won=won[0]), node(1, won=won[1]))
    assert {one.level for one in found} == {"OK"}
    assert "symbolic links" in " ".join(one.text for one in found)


def test_a_file_system_on_which_two_win_is_refused() -> None:
    won = {"link": [True, True], "symlink": "Operation not permitted"}
    found = bad(judged(node(0, won=won), node(1, won=won)))
    assert found.level == "CHANGE"
    assert "link: two nodes created the same name; symlink: Operation not permitted" in found.text


@pytest.mark.parametrize(
    ("ahead_s", "uncertain_s", "level"), [(3.0, 0.1, "NOTE"), (3.0, 2.0, "OK"), (-5.0, 1.0, "NOTE")]
)
def test_clocks_are_compared_as_far_as_that_can_be_known(ahead_s: float, uncertain_s: float, level: str) -> None:
    found = judged(node(0, clock={"ahead_s": ahead_s, "uncertain_s": uncertain_s}), node(1))
    [clock] = [one for one in found if "clocks" in one.text]
    assert clock.level == level


@pytest.mark.slow
def test_two_nodes_tell_what_they_are_and_race_for_names(tmp_path: Path) -> None:
    (tmp_path / "token.json").write_text('"token"')
    started = []
    for rank in range(2):
        # As srun leaves it on two nodes with one task each.
        step = {"SLURM_PROCID": str(rank), "SLURM_STEP_NUM_TASKS": "2", "SLURM_LOCALID": "0", "SLURM_NODEID": str(rank)}
        environ = {**os.environ, **step, "SLURM_STEP_TASKS_PER_NODE": "1(x2)"}
        command = [sys.executable, "-m", "hpctool.launch.slurm.probe_node", str(tmp_path)]
        started.append(subprocess.Popen(command, env=environ, cwd=tmp_path))
    assert [one.wait(timeout=100) for one in started] == [0, 0]
    found = [json.loads((tmp_path / f"found-{rank}.json").read_text()) for rank in range(2)]
    for primitive in ("link", "symlink"):
        wins = list(zip(*(one["won"][primitive] for one in found), strict=True))
        assert len(wins) == 20
        assert all(sum(pair) == 1 for pair in wins)
    assert abs(found[0]["clock"]["ahead_s"]) <= found[0]["clock"]["uncertain_s"] + 0.01
    assert found[1]["not_importable"] == {}
    assert not [one for one in judged(*found) if one.level == "CHANGE" and "scontrol" not in one.text]
