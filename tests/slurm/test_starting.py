"""Ranks on the real cluster start where they should and know their place, whoever starts them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import RunDir
from tests.slurm.survive import TRAIN, Lab

JOB_SBATCH = Path(__file__).parents[2] / "jobs" / "job.sbatch"

#: What a rank sees, as JSON, one file a rank.
LOOK = """
import json, os, socket
from pathlib import Path
names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "CUDA_VISIBLE_DEVICES")
seen = {name: os.environ.get(name) for name in names} | {"host": socket.gethostname()}
Path(os.environ["HPCTOOL_RUN"], f"seen-{os.environ['RANK']}.json").write_text(json.dumps(seen))
"""


def look(lab: Lab, name: str, *overrides: str) -> list[dict[str, Any]]:
    """What the ranks of a job see, in order of rank."""
    (lab.folder / "look.py").write_text(LOOK)
    arguments = ["run", "script=look.py", "cluster=slurm", f"name={name}", "resources.time=10", "--json"]
    done = lab.hpctool(*arguments, "cluster.signal_delay_s=20", *overrides)
    run = RunDir(lab.runs / json.loads(done.stdout)["runs"][0])
    assert lab.until_ended(run, attempts=1).state == "completed", lab.words(run)
    return [json.loads(path.read_text()) for path in sorted(run.path.glob("seen-*.json"))]


@pytest.mark.parametrize(("nodes", "tasks"), [(1, 4), (2, 2), (4, 1)])
def test_every_rank_knows_its_place(lab: Lab, nodes: int, tasks: int) -> None:
    seen = look(lab, f"places-{nodes}", f"resources.nodes={nodes}", f"resources.tasks_per_node={tasks}")
    assert [int(one["RANK"]) for one in seen] == [0, 1, 2, 3]
    assert {one["WORLD_SIZE"] for one in seen} == {"4"}
    assert [int(one["LOCAL_RANK"]) for one in seen] == [rank % tasks for rank in range(4)]
    assert len({one["host"] for one in seen}) == nodes
    assert len({(one["MASTER_ADDR"], one["MASTER_PORT"]) for one in seen}) == 1


@pytest.mark.parametrize(
    ("style", "devices"),
    [
        ("resources.gpus_per_node=2", ["0,1", "0,1"]),
        ("resources.gpus_per_task=1", ["0", "0"]),
        ("resources.gres='gpu:2'", ["0,1", "0,1"]),
        ("resources.gpus=2", ["0,1", "0,1"]),
    ],
)
def test_the_devices_are_those_of_the_gres_style(lab: Lab, style: str, devices: list[str]) -> None:
    key = style.partition("=")[0].partition(".")[2]
    seen = look(lab, f"devices-{key}", "resources.tasks_per_node=2", style)
    found = [one["CUDA_VISIBLE_DEVICES"] for one in seen]
    # Where each task has devices of its own, Slurm numbers them from 0 only with cgroups; here they are 0 and 1.
    assert found == devices or (key == "gpus_per_task" and sorted(found) == ["0", "1"])


def test_two_jobs_on_one_node_do_not_collide(lab: Lab) -> None:
    one_node = ["resources.nodes=1", "cluster.nodelist=n1"]
    runs = [lab.train(name, *one_node) for name in ("left", "right")]
    for run in runs:
        assert lab.until_ended(run, attempts=1).state == "completed"
        assert lab.node_of(run) == "n1"
    assert lab.digest(runs[0]) == lab.digest(runs[1])


def test_the_network_interface_can_be_chosen(lab: Lab) -> None:
    run = lab.train("interface", "cluster.interface=eth0", "resources.tasks_per_node=1")
    assert lab.until_ended(run, attempts=1).state == "completed"
    run = lab.train("no-interface", "cluster.interface=ib7", "resources.tasks_per_node=1")
    assert "ib7" in lab.until_ended(run, attempts=1).cause + lab.words(run)


def test_four_mpi_ranks_on_two_nodes_prepare_the_same_version_as_one(lab: Lab) -> None:
    arguments = ["prepare", "source=digits", "name=by-mpi", "data.name=by_mpi", "cluster=slurm", "cluster.mpi=pmix"]
    shape = ["resources.nodes=2", "resources.tasks_per_node=2", "resources.time=10", "cluster.signal_delay_s=20"]
    done = lab.hpctool(*arguments, *shape, "--json")
    run = RunDir(lab.runs / json.loads(done.stdout)["runs"][0])
    # MPI_Init dies of SIGSEGV once in a while on a busy machine; then it is tried again, and the version is the same.
    assert lab.until_ended(run, attempts=1, at_least=True).state == "completed", lab.words(run)
    assert run.story().of_kind("begun")[0]["world_size"] == 4
    shown = [lab.hpctool("data", "show", name, "--rows", "all", "--json") for name in ("digits", "by_mpi")]
    rows = [json.loads(one.stdout) for one in shown]
    assert len(rows[0]) == 1797
    assert rows[0] == rows[1]


def test_a_job_by_hand_survives_preemption_too(lab: Lab) -> None:
    lab.cluster.policy("CANCEL", 10)
    keys = [*(key for key in TRAIN if not key.startswith(("cluster", "resources"))), "name=hand", "+task.run=hand"]
    shape = ["--nodes=2", "--ntasks-per-node=2", "--time=10", "--signal=USR2@20"]
    job_id = lab.cluster.sbatch(*shape, str(JOB_SBATCH), *keys, cwd=lab.folder)
    run = lab.appears("hand")
    lab.until_training(run)
    lab.cluster.preempt()
    story = lab.until_ended(run, attempts=2)
    assert (story.state, story.slurm_job_id) == ("completed", job_id)
    assert story.of_kind("resumed")[1]["step"] == story.of_kind("ended")[0]["step"] > 0


def test_srun_starts_ranks_that_find_each_other(lab: Lab) -> None:
    keys = [*(key for key in TRAIN if not key.startswith(("cluster", "resources"))), "name=srun", "+task.run=srun"]
    shape = ["resources.nodes=2", "resources.tasks_per_node=2"]
    lab.cluster.run(*("srun", "-N2", "--ntasks-per-node=2", "hpctool"), *keys, "cluster=inline", *shape, cwd=lab.folder)
    run = lab.appears("srun")
    assert run.story().state == "completed"
    assert run.story().of_kind("begun")[0]["world_size"] == 4
