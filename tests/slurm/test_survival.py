"""Every row of the table of things that end a job: it comes back where it should, and ends with the same bits."""

from __future__ import annotations

import contextlib
import datetime
import re
import time
from pathlib import Path
from typing import Literal

import pytest

from tests.slurm.survive import STEPS, Lab

pytestmark = pytest.mark.timeout(300)

Mode = Literal["REQUEUE", "CANCEL"]


# ------------------------------------------------------------------------------------------------------ preempted


@pytest.mark.parametrize(("mode", "job_requeue"), [("REQUEUE", True), ("CANCEL", False)])
def test_a_preempted_run_saves_in_its_grace_time_and_loses_no_step_also_where_the_cluster_says_jobrequeue_0(
    lab: Lab, undisturbed: str, mode: Mode, job_requeue: bool
) -> None:
    lab.cluster.limits(job_requeue=job_requeue)
    run = lab.train(f"preempted-{mode}", "task.step_s=0.6")
    signals: list[Literal["on", "off"]] = ["off", "on"]
    for attempt, user_signal in enumerate(signals, 1):
        lab.cluster.policy(mode, 10, user_signal)
        lab.until_training(run, attempt)
        lab.cluster.preempt()
        lab.until_attempt(run, attempt + 1)
    story = lab.until_ended(run, attempts=3)
    assert [body["cause"] for body in story.of_kind("ended")] == ["preempted", "preempted", ""]
    assert [lab.steps_lost(run, attempt) for attempt in (1, 2)] == [0, 0]
    assert lab.digest(run) == undisturbed


def test_without_grace_time_it_resumes_from_the_newest_verified_checkpoint(lab: Lab, undisturbed: str) -> None:
    run = lab.train("no-grace", "task.step_s=0.4")
    modes: list[Mode] = ["REQUEUE", "CANCEL"]
    for attempt, mode in enumerate(modes, 1):
        lab.cluster.policy(mode, 0)
        lab.until_checkpoint(run, 8 * attempt)
        lab.cluster.preempt()
        lab.until_attempt(run, attempt + 1)
    lab.until_ended(run, attempts=3)
    assert max(lab.steps_lost(run, attempt) for attempt in (1, 2)) <= 8
    assert lab.digest(run) == undisturbed


def test_only_the_preempted_cell_of_an_array_is_requeued(lab: Lab) -> None:
    lab.cluster.policy("REQUEUE", 10)
    first, second = lab.sweep("cells", "loop.max_steps=16,24")
    lab.until_training(first)
    lab.until_training(second)
    node = lab.node_of(first)
    lab.cluster.preempt(nodes=node)
    lab.until_ended(first, attempts=2)
    assert lab.until_ended(second, attempts=1).state == "completed"
    assert first.story().slurm_job_id.endswith("_0")
    assert lab.steps_lost(first) == 0


# ------------------------------------------------------------------------------------------------- the time limit


def test_at_its_time_limit_a_run_saves_and_comes_back(lab: Lab, undisturbed: str) -> None:
    run = lab.train("limit", "task.step_s=2")
    lab.until_training(run)
    job_id = run.story().slurm_job_id
    # Slurm looks every 30 s who is near the end, and tells it at most 30 s before it was asked to.
    lab.cluster.scontrol("update", f"JobId={job_id}", "EndTime=now+45seconds")
    story = lab.until(run, lambda story: story.of_kind("ended"))
    assert story.of_kind("ended")[0]["cause"] == "timeout"
    # Slurm has made the limit of the next attempts as short.
    lab.cluster.scontrol("update", f"JobId={job_id}", "TimeLimit=10")
    assert lab.until_ended(run, attempts=2).state == "completed"
    assert lab.steps_lost(run) == 0
    assert lab.digest(run) == undisturbed


def test_after_the_configured_number_of_time_limits_it_gives_up_and_says_so(lab: Lab) -> None:
    slow = ["resources.time=1", "cluster.signal_delay_s=58", "task.step_s=3", "cluster.max_timeouts=1"]
    run = lab.train("too-often", *slow)
    story = lab.until_ended(run, attempts=2, timeout_s=200)
    assert story.state == "failed"
    assert "cluster.max_timeouts=1" in story.cause
    assert lab.cluster.wait_state(story.slurm_job_id, {"FAILED"})


# --------------------------------------------------------------------------------------------- people and admins


def test_a_cancelled_run_saves_and_stays_cancelled(lab: Lab) -> None:
    run = lab.train("cancelled")
    lab.until_training(run)
    lab.cluster.run("scancel", run.story().slurm_job_id)
    story = lab.until_ended(run, attempts=1)
    assert (story.state, story.cause) == ("cancelled", "cancelled in Slurm")
    assert story.checkpoints, "there was time to save"
    lab.stays_away(run)


def test_a_run_cancelled_within_the_grace_time_of_a_preemption_stays_cancelled(lab: Lab) -> None:
    lab.cluster.policy("REQUEUE", 30)
    run = lab.train("cancelled-in-grace", "task.step_s=1")
    lab.until_training(run, seconds=3)
    job_id = run.story().slurm_job_id
    lab.cluster.preempt()
    while not (moment := re.match(r"\d.*", lab.cluster.job(job_id)["PreemptTime"])):
        time.sleep(0.1)
    # In the very second in which the preemption begins Slurm's answers are the same as for its end.
    began_s = datetime.datetime.fromisoformat(moment[0]).timestamp()
    time.sleep(max(0.0, began_s + 1.5 - time.time()))
    lab.cluster.run("scancel", job_id)
    assert lab.until_ended(run, attempts=1).state == "cancelled"
    lab.stays_away(run)


def test_a_cancelled_run_that_has_no_time_to_save_is_called_cancelled_all_the_same(lab: Lab) -> None:
    run = lab.train("no-time", "task.step_s=20")
    lab.until_training(run, seconds=3)
    lab.cluster.run("scancel", run.story().slurm_job_id)
    story = lab.until_ended(run, attempts=1)
    assert (story.state, story.cause) == ("cancelled", "cancelled; there was no time to save")


def test_hpctools_own_cancel_saves_and_retry_goes_on_from_there(lab: Lab, undisturbed: str) -> None:
    run = lab.train("own-cancel")
    lab.until_training(run)
    lab.hpctool("runs", "cancel", run.id)
    cancelled = lab.until_ended(run, attempts=1)
    assert cancelled.state == "cancelled"
    lab.stays_away(run)
    lab.hpctool("runs", "retry", run.id)
    lab.until(run, lambda story: story.attempt == 2)
    lab.until_ended(run, attempts=2)
    # A busy machine may need longer than Slurm's KillWait, and then the run says so.
    assert lab.steps_lost(run) == 0 or "no time to save" in cancelled.cause
    assert lab.digest(run) == undisturbed


def test_a_suspension_a_restarted_controller_and_an_admins_requeue_lose_nothing(lab: Lab, undisturbed: str) -> None:
    run = lab.train("long-life", "task.step_s=1")
    lab.until_training(run)
    job_id = run.story().slurm_job_id
    lab.cluster.scontrol("suspend", job_id)
    time.sleep(8)
    lab.cluster.scontrol("resume", job_id)

    lab.cluster.stop_controller()
    down = lab.hpctool("runs", "show", run.id, check=False)
    assert "Traceback" not in down.stdout + down.stderr
    assert run.id in down.stdout
    lab.cluster.start_controller()

    lab.until_checkpoint(run, 8)
    assert run.story().attempt == 1
    lab.cluster.scontrol("requeue", job_id)
    lab.until_ended(run, attempts=2)
    assert lab.steps_lost(run) <= 8
    assert lab.digest(run) == undisturbed


# ----------------------------------------------------------------------------------------------- nodes and ranks


def test_a_node_cut_off_and_healed_leaves_no_zombies_writing(lab: Lab, undisturbed: str) -> None:
    run = lab.train("node-lost", "task.step_s=0.5")
    lab.until_training(run, seconds=10 * 0.5)
    lab.cluster.fail("n2")
    story = lab.until(run, lambda story: story.attempt == 2, timeout_s=150, hurry=True)
    lab.cluster.heal("n2")
    story = lab.until_ended(run, attempts=2)
    begun = [entry.number for entry in story.entries if entry.body["kind"] == "begun"]
    late = [e for e in story.entries if e.number > begun[1] and e.body["attempt"] == 1 and e.body["kind"] != "ended"]
    assert not late, "the zombie attempt has committed something"
    assert lab.digest(run) == undisturbed


@pytest.mark.parametrize("fault", ["read-only", "unmounted"])
def test_a_node_that_cannot_do_the_work_is_left_out_when_the_job_comes_back(
    lab: Lab, undisturbed: str, fault: str
) -> None:
    run = lab.train(f"unfit-{fault}", "+cluster.extra={hold: null}")
    job_id = run.story().slurm_job_id
    if fault == "read-only":
        lab.cluster.read_only("n2", run.path / "logs")
        problem = "it cannot write into the run's folder (Read-only file system)"
    else:
        lab.cluster.unmount("n2", run.path)
        problem = f"it does not see {run.run_json}"
    lab.cluster.scontrol("release", job_id)
    story = lab.until_ended(run, attempts=2)
    assert [body["cause"] for body in story.of_kind("ended")] == [f"start check: n2: {problem}", ""]
    job = lab.cluster.job(job_id)
    assert (job["Restarts"], job["ExcNodeList"]) == ("1", "n2")
    assert "2" not in job["NodeList"]
    assert lab.digest(run) == undisturbed


def test_a_killed_rank_ends_the_job_at_once_and_it_is_tried_again(lab: Lab, undisturbed: str) -> None:
    run = lab.faulty("killed", "kill", rank=2, at=12)
    story = lab.until_ended(run, attempts=2)
    first = story.of_kind("ended")[0]
    assert (first["state"], first["cause"]) == ("requeued", "rank 2 was killed by SIGKILL")
    assert lab.steps_lost(run) <= 8
    assert lab.digest(run) == undisturbed


def test_where_the_policy_says_so_a_killed_rank_is_a_failure(lab: Lab) -> None:
    run = lab.faulty("killed-for-good", "kill", 3, 4, "cluster.max_failures=0")
    began_s = time.monotonic()
    story = lab.until_ended(run, attempts=1)
    assert "rank 3 was killed by SIGKILL" in story.cause
    assert lab.cluster.wait_state(story.slurm_job_id, {"FAILED"})
    assert time.monotonic() - began_s < 60


def test_the_same_death_at_the_same_step_stops_the_run_with_the_reason(lab: Lab) -> None:
    run = lab.faulty("again", "kill", 1, 4, times=5)
    story = lab.until_ended(run, attempts=2)
    assert story.state == "failed"
    assert "the same happened before at step 0" in story.cause


def test_a_hanging_rank_is_named_and_the_job_comes_back_with_the_same_bits(lab: Lab, undisturbed: str) -> None:
    limits = "cluster.hang={step_s: 5, step_p95: 1, first_step_min: 0.1}"
    run = lab.faulty("hanging", "hang", 2, 15, limits)
    story = lab.until_ended(run, attempts=2)
    first = story.of_kind("ended")[0]
    assert first["cause"] == "hang: rank 2 stands in step 13 (forward), the others wait in step 13 (backward)"
    assert first["failure"]
    assert "do_hang" in run.stacks(2, 1).read_text()
    assert lab.digest(run) == undisturbed


def test_an_exception_on_one_rank_is_failed_in_slurm_and_its_traceback_is_shown(lab: Lab) -> None:
    run = lab.faulty("raised", "raise", rank=3, at=5)
    dependent = lab.cluster.sbatch(f"--dependency=afterok:{run.story().slurm_job_id}", wrap="true", cwd=lab.folder)
    story = lab.until_ended(run, attempts=1)
    assert story.cause == "rank 3: ValueError: the label of row 7 is a banana"
    lab.cluster.wait_state(story.slurm_job_id, {"FAILED"})
    assert lab.cluster.job(story.slurm_job_id)["ExitCode"] == "1:0"
    assert lab.cluster.state(dependent) == "PENDING"
    # Slurm finds that out when it next looks through its queue.
    deadline_s = time.monotonic() + 60
    while (why := lab.cluster.job(dependent)["Reason"]) != "DependencyNeverSatisfied":
        assert (why, time.monotonic() < deadline_s) == ("Dependency", True)
        time.sleep(0.5)
    shown = lab.hpctool("runs", "show", run.id).stdout
    assert "rank 3" in shown
    assert "in do_raise" in shown


def test_out_of_memory_is_named_and_not_tried_again(lab: Lab) -> None:
    run = lab.faulty("memory", "memory", 1, 4, "resources.mem_gb=3", times=5)
    story = lab.until_ended(run, attempts=1)
    assert story.state == "failed"
    assert "out of memory, says Slurm" in story.cause


# ------------------------------------------------------------------------------------------------ odd moments


def test_a_signal_during_start_up_only_repeats_the_attempt_and_one_in_an_evaluation_loses_nothing(
    lab: Lab, undisturbed: str
) -> None:
    lab.cluster.policy("CANCEL", 3)
    # An evaluation takes longer than the steps before it.
    run = lab.train("odd", "+task.eval_s=4", "loop.eval_batch_size=42", "loop.eval_every_steps=6")
    lab.until_attempt(run, 1)
    lab.cluster.preempt()
    lab.until_attempt(run, 2)
    lab.cluster.policy("CANCEL", 10)
    lab.until_training(run, attempt=2, seconds=3)
    lab.cluster.preempt()
    lab.until_ended(run, attempts=3)
    assert lab.digest(run) == undisturbed


def test_signals_before_our_handlers_stand_kill_nobody(lab: Lab, undisturbed: str) -> None:
    importing = lab.folder / "importing"
    run = lab.train("imports", f"cluster.setup=['export HPCTOOL_LAB_IMPORTING={importing}']")
    for before, number in enumerate(("USR2", "TERM")):
        while not Path(f"{importing}.{before}").exists():
            lab.start_now(run.story())
            time.sleep(0.1)
        assert run.story().attempt == before
        lab.cluster.run("scancel", f"--signal={number}", f"{run.story().slurm_job_id}.0")
    Path(f"{importing}.2").touch()
    lab.until_ended(run, attempts=3)
    said = lab.words(run)
    assert "User defined signal" not in said
    assert lab.digest(run) == undisturbed


def test_signals_in_a_row_during_saves_lose_nothing(lab: Lab, undisturbed: str) -> None:
    run = lab.train("saving", "loop.checkpoint_every_steps=1")
    lab.until_training(run)
    job_id = run.story().slurm_job_id
    for _ in range(8):
        with contextlib.suppress(Exception):
            lab.cluster.run("scancel", "--signal=USR2", f"{job_id}.0")
        time.sleep(0.05)
    story = lab.until_ended(run, attempts=2)
    assert story.of_kind("ended")[0]["step"] < STEPS
    assert lab.steps_lost(run) == 0
    assert lab.digest(run) == undisturbed
