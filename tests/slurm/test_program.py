"""Somebody's own program on the real cluster: ranks on several hosts, and everything that stops them."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hpctool.rundir import RunDir
from tests.slurm.survive import Lab

pytestmark = pytest.mark.timeout(400)

#: A plain PyTorch script: it knows torchrun's variables, nothing else. Once in a hundred times torch itself aborts
#: while such a process ends ("terminate called without an active exception"), and Slurm runs it again.
DDP = """
import os, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
model(torch.ones(3, 4)).sum().backward()
total = torch.tensor([dist.get_rank()])
dist.all_reduce(total)
print(dist.get_rank(), dist.get_world_size(), os.environ["LOCAL_RANK"], int(total), os.uname().nodename, flush=True)
dist.barrier()
del model
dist.destroy_process_group()
"""

#: Counts, saves by its own means when it is told to stop, and goes on from there. With `until-told` it goes on counting
#: until it has been stopped once.
SAVER = """
import json, os, signal, sys, time
run, rank = os.environ["HPCTOOL_RUN"], os.environ["RANK"]
path = f"{run}/artifacts/{rank}.json"
state = json.load(open(path)) if os.path.exists(path) else {"step": 0, "told": []}
told = []
signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
while state["step"] < int(sys.argv[1]) or (sys.argv[2:] == ["until-told"] and not state["told"]):
    time.sleep(0.1)
    state["step"] += 1
    if told:
        time.sleep(1.0)
        state["told"].append(len(told))
        json.dump(state, open(path, "w"))
        sys.exit(75)
json.dump(state, open(path, "w"))
"""


@pytest.fixture
def lab(cluster: Any) -> Lab:
    """A project of the ordinary user's with these two scripts."""
    folder = cluster.new_folder()
    (folder / "ddp.py").write_text(DDP)
    (folder / "saver.py").write_text(SAVER)
    return Lab(cluster, folder)


def submitted(lab: Lab, *words: str) -> RunDir:
    limits = ("cluster=slurm", "resources.time=10", "cluster.signal_delay_s=20")
    done = lab.hpctool("run", *limits, *words, "--json")
    return RunDir(lab.runs / json.loads(done.stdout)["runs"][0])


def running(lab: Lab, run: RunDir, attempt: int = 1, seconds: float = 3.0) -> None:
    """Wait until an attempt's programs run."""
    lab.until(run, lambda story: story.attempt == attempt and story.state == "running")
    time.sleep(seconds)


def counted(run: RunDir, num_ranks: int = 1) -> list[dict[str, Any]]:
    return [json.loads((run.path / "artifacts" / f"{rank}.json").read_text()) for rank in range(num_ranks)]


SHAPES = [(1, 1), (2, 2), (4, 1)]


@pytest.mark.parametrize(("nodes", "tasks"), SHAPES)
def test_a_plain_ddp_script_runs_on_several_hosts(lab: Lab, nodes: int, tasks: int) -> None:
    run = submitted(lab, "script=ddp.py", f"resources.nodes={nodes}", f"resources.tasks_per_node={tasks}")
    story = lab.until_ended(run, attempts=1, at_least=True)
    assert story.state == "completed", lab.words(run)
    size = nodes * tasks
    lines = [run.log(rank, story.attempt).read_text().splitlines()[-1].split() for rank in range(size)]
    assert [line[:4] for line in lines] == [
        [str(rank), str(size), str(rank % tasks), str(sum(range(size)))] for rank in range(size)
    ]
    assert len({line[4] for line in lines}) == nodes


def test_two_programs_on_one_host_do_not_meet(lab: Lab) -> None:
    one = [submitted(lab, "script=ddp.py", f"name=run{n}", "resources.tasks_per_node=2") for n in range(3)]
    for run in one:
        lab.until_ended(run, attempts=1, at_least=True)
        assert run.story().state == "completed", lab.words(run)


@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_preempted_program_saves_once_and_is_continued(lab: Lab, mode: Any) -> None:
    lab.cluster.policy(mode, 10)
    run = submitted(lab, "script=saver.py", "args=[80]", "resources.nodes=2", "resources.tasks_per_node=2")
    running(lab, run)
    lab.cluster.preempt()
    story = lab.until_ended(run, attempts=2)
    assert [body["cause"] for body in story.of_kind("ended")] == ["preempted", ""], lab.words(run)
    assert [(one["step"], one["told"]) for one in counted(run, 4)] == [(80, [1])] * 4


def test_a_program_without_a_handler_is_begun_again(lab: Lab) -> None:
    (lab.folder / "plain.sh").write_text("#!/bin/bash\necho began\nsleep 6\necho done\n")
    (lab.folder / "plain.sh").chmod(0o755)
    run = submitted(lab, "script=plain.sh")
    running(lab, run, seconds=2.0)
    lab.cluster.preempt()
    story = lab.until_ended(run, attempts=2)
    assert (story.state, [body["cause"] for body in story.of_kind("ended")]) == ("completed", ["preempted", ""])
    assert [run.log(0, attempt).read_text().splitlines()[0] for attempt in (1, 2)] == ["began", "began"]


def test_the_time_limit_is_said_in_the_programs_own_word(lab: Lab) -> None:
    limits = ("resources.time=1", "cluster.signal_delay_s=50", "resources.nodes=2")
    run = submitted(lab, "script=saver.py", "args=[1,until-told]", *limits)
    story = lab.until_ended(run, attempts=2, at_least=True, timeout_s=150)
    ended = story.of_kind("ended")
    assert (story.state, {body["cause"] for body in ended[:-1]}) == ("completed", {"timeout"}), lab.words(run)
    assert [one["told"] for one in counted(run, 2)] == [[1]] * 2


def test_a_program_may_ask_to_be_continued_by_itself(lab: Lab) -> None:
    (lab.folder / "own.py").write_text("import os\nraise SystemExit(75 if os.environ['HPCTOOL_RESUMED'] == '0' else 0)")
    run = submitted(lab, "script=own.py")
    story = lab.until_ended(run, attempts=2)
    assert [body["cause"] for body in story.of_kind("ended")] == ["it asked to be continued", ""], lab.words(run)


def test_a_cancelled_program_saves_and_stays_away(lab: Lab) -> None:
    run = submitted(lab, "script=saver.py", "args=[600]")
    running(lab, run)
    lab.cluster.run("scancel", run.story().slurm_job_id)
    story = lab.until_ended(run, attempts=1)
    assert story.state == "cancelled"
    assert counted(run)[0]["told"] == [1]
    lab.stays_away(run)


def test_a_program_that_fails_on_one_rank_fails_in_slurm(lab: Lab) -> None:
    words = "import os, time\nif os.environ['RANK'] == '3': raise ValueError('boom')\ntime.sleep(600)"
    (lab.folder / "own.py").write_text(words)
    run = submitted(lab, "script=own.py", "resources.nodes=2", "resources.tasks_per_node=2")
    story = lab.until_ended(run, attempts=1)
    assert story.cause == "rank 3: ProgramError: own.py ended with exit code 1: ValueError: boom", lab.words(run)
    lab.cluster.wait_state(story.slurm_job_id, "FAILED")
    job = lab.cluster.job(story.slurm_job_id)
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "1:0")
    shown = lab.hpctool("runs", "show", run.id).stdout
    assert "raise ValueError('boom')" in shown


def test_a_program_that_is_killed_is_begun_again_once(lab: Lab) -> None:
    (lab.folder / "own.py").write_text(
        "import os, signal, time\nif os.environ['RANK'] == '1': os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(600)"
    )
    run = submitted(lab, "script=own.py", "resources.nodes=2")
    story = lab.until_ended(run, attempts=2)
    assert story.state == "failed"
    assert "SIGKILL" in story.cause
    assert "without progress" in story.cause


def test_a_sweep_over_params_is_one_array(lab: Lab) -> None:
    (lab.folder / "own.py").write_text(
        "import json, os, sys\n"
        "json.dump({'loss': float(sys.argv[2])}, open(os.environ['HPCTOOL_RUN'] + '/metrics.json', 'w'))"
    )
    done = lab.hpctool("run", "-m", "cluster=slurm", "script=own.py", "params.lr=0.1,0.2,0.3", "--json")
    answer = json.loads(done.stdout)
    runs = [RunDir(lab.runs / run) for run in answer["runs"]]
    deadline_s = time.monotonic() + 90
    while not all(run.result_json.exists() for run in runs):
        assert time.monotonic() < deadline_s, done.stderr
        time.sleep(0.2)
    assert [(run.result() or {})["metrics"] for run in runs] == [{"loss": lr} for lr in (0.1, 0.2, 0.3)]
    assert Path(answer["folder"]).name in lab.hpctool("sweep", "list").stdout


def test_an_edited_script_changes_nothing_for_a_run_that_comes_back(lab: Lab) -> None:
    run = submitted(lab, "script=saver.py", "args=[60]")
    running(lab, run, seconds=2.0)
    (lab.folder / "saver.py").write_text("raise SystemExit('edited')")
    lab.cluster.preempt()
    assert lab.until_ended(run, attempts=2).state == "completed", lab.words(run)


#: MPI is the program's: its ranks must not have been joined by MPI before it.
MPI = """
from mpi4py import MPI
import hpctool
ranks = MPI.COMM_WORLD
job = hpctool.Preemptible()
job.register(notes={})
list(job.steps(3))
print(ranks.rank, ranks.size, ranks.allreduce(ranks.rank), flush=True)
"""


def test_an_mpi_program_has_mpi_to_itself(lab: Lab) -> None:
    (lab.folder / "mpi.py").write_text(MPI)
    run = submitted(lab, "script=mpi.py", "cluster.mpi=pmix", "resources.nodes=2", "resources.tasks_per_node=2")
    story = lab.until_ended(run, attempts=1)
    assert (story.state, story.step) == ("completed", 3), lab.words(run)
    assert [run.log(rank, 1).read_text().split() for rank in range(4)] == [[str(rank), "4", "6"] for rank in range(4)]


#: A plain PyTorch loop with five lines of ours.
LOOP = """
import time, torch, torch.distributed as dist, hpctool
torch.set_num_threads(1); torch.manual_seed(0)
dist.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Dropout(0.5)))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
torch.manual_seed(dist.get_rank())
job = hpctool.Preemptible(every_steps=15)
job.register(model=model, optimizer=optimizer)
for step in job.steps(60):
    loss = model(torch.randn(16, 8)).pow(2).mean()
    optimizer.zero_grad(); loss.backward(); optimizer.step()
    time.sleep(0.15)
from hpctool.checkpoint import param_digest
print(param_digest(model.state_dict()), flush=True)
dist.barrier()
dist.destroy_process_group()
"""


def test_a_loop_with_preemptible_ends_with_the_same_bits(lab: Lab) -> None:
    (lab.folder / "loop.py").write_text(LOOP)
    undisturbed, preempted = (
        submitted(lab, "script=loop.py", f"name={name}", "resources.nodes=2", "resources.cpus_per_task=8")
        for name in ("undisturbed", "preempted")
    )
    lab.until(preempted, lambda story: story.of_kind("resumed"))
    time.sleep(3.0)
    lab.cluster.preempt()
    # Slurm takes whom it likes, or both.
    ends = [lab.until_ended(run, attempts=1, at_least=True) for run in (undisturbed, preempted)]
    assert [story.state for story in ends] == ["completed", "completed"], lab.words(preempted)
    assert max(story.attempt for story in ends) >= 2
    digests = [
        run.log(rank, run.story().attempt).read_text().splitlines()[-1]
        for run in (undisturbed, preempted)
        for rank in (0, 1)
    ]
    assert len(set(digests)) == 1
    assert [story.step for story in ends] == [60, 60]


HEAT = Path(__file__).parent.parent.parent / "examples" / "heat" / "heat.py"


def test_the_heat_example_is_preempted_and_draws_the_same_picture(lab: Lab) -> None:
    (lab.folder / "heat.py").write_text(HEAT.read_text())
    # More ranks than cores: who waits lets others work.
    shape = ("cluster.mpi=pmix", 'cluster.setup=["export OMPI_MCA_mpi_yield_when_idle=1"]')
    where = ("resources.nodes=2", "resources.tasks_per_node=2")
    run = submitted(lab, "script=heat.py", "args=[--size,512,--steps,1500,--every,50]", *shape, *where)
    lab.until(run, lambda story: story.checkpoints, timeout_s=240)
    lab.cluster.preempt()
    story = lab.until_ended(run, attempts=2, at_least=True, timeout_s=240)
    assert (story.state, story.step) == ("completed", 1500), lab.words(run)
    assert story.of_kind("ended")[0]["cause"] == "preempted"
    assert [body["step"] for body in story.of_kind("resumed")][-1] > 0
    assert "off the exact solution" in run.log(0, story.attempt).read_text()
    # Each point depends on its neighbours alone, so one rank that nobody disturbed comes to the same bits.
    alone = [sys.executable, str(lab.folder / "heat.py"), "--size", "512", "--steps", "1500"]
    lab.cluster.run(*alone, cwd=lab.folder)
    assert (run.path / "artifacts" / "heat.png").read_bytes() == (lab.folder / "heat.png").read_bytes()
