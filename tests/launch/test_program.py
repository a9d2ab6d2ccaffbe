"""Somebody's own program as the work of a rank: what it is given, which code it runs, what its end means."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool import config
from hpctool.launch import program, snapshot
from hpctool.launch.handover import mark_submitted
from hpctool.place import Place
from hpctool.rundir import RunDir
from hpctool.track.row import read_row
from hpctool.world import World
from tests.launch.conftest import Bench
from tests.launch.programs import NOTE, Rank, are_gone, ended, hpctool, log, noted, of_script, submitted, until, write

# -- what it is given


WORDS = ["--lr", "0.1", "größe, [a] {b}", 'it\'s "q"', "a\\b", "", "null", "1_000", "007", "C:\\", "\\$x", "--help",
         "-m", 'a\\"b\\\\', "true", "tab\tand\nline", "$HPCTOOL_SEED", "$HOME", "a=b,c", "  ", "ß" * 300]  # fmt: skip


@pytest.mark.slow
def test_words_after_two_dashes_reach_the_program_as_they_are(here: Path) -> None:
    write(here / "show.py", "import json, sys; print(json.dumps(sys.argv[1:]))")
    done = hpctool("script=show.py", "seed=7", "--", *WORDS)
    expected = [word.replace("$HPCTOOL_SEED", "7") for word in WORDS]
    assert json.loads(done.stdout) == expected, done.stderr
    refused = hpctool("script=show.py", "--", "${HOME}")
    assert (refused.returncode, "means something to the configuration" in refused.stderr) == (2, True)


@pytest.mark.parametrize(
    ("params_as", "words"),
    [
        ("flags", ["--lr", "0.1", "--eps", "1e-08", "--fast", "--sizes", "1", "2", "--opt.name", "ad am"]),
        (
            "assignments",
            ["lr=0.1", "eps=1e-08", "fast=true", "slow=false", "none=null", "sizes=[1,2]", "opt.name=ad am"],
        ),
        ("environment", []),
    ],
)
def test_params_become_words_or_variables(here: Path, params_as: str, words: list[str]) -> None:
    write(here / "own.py", "")
    params = ["lr=0.1", "eps=1e-8", "fast=true", "slow=false", "none=null", "sizes=[1,2]", "opt.name='ad am'"]
    run = submitted("script=own.py", f"params_as={params_as}", *(f"params.{one}" for one in params))
    cfg = config.load(run.config_yaml)
    run.attempt = 1
    environ = program.environment(run, World(), cfg, ("n1", 5))
    assert program.command(run, cfg, environ)[2:] == words
    values = {key: environ.get(key) for key in ("lr", "fast", "slow", "none", "sizes", "opt.name")}
    as_variables = {"lr": "0.1", "fast": "true", "slow": "false", "none": None, "sizes": "[1,2]", "opt.name": "ad am"}
    assert values == (as_variables if params_as == "environment" else dict.fromkeys(values))


@pytest.mark.slow
def test_a_rank_finds_what_torchrun_would_have_given_it(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = of_script(here, "", "seed=3", "num_threads=2")
    run.attempt = 2
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    world = World(Place(rank=5, size=8, local_rank=1, local_size=4))
    environ = program.environment(run, world, config.load(run.config_yaml), ("n1", 2901))
    ours = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    ours |= {"MASTER_ADDR": "n1", "MASTER_PORT": "2901", "OMP_NUM_THREADS": "2"}
    ours |= {"HPCTOOL_RUN": str(run.path), "HPCTOOL_ATTEMPT": "2", "HPCTOOL_RESUMED": "1", "HPCTOOL_SEED": "3"}
    assert {key: environ[key] for key in ours} == ours
    # Else its rank 0 would take the store of the torchrun that started us for its own.
    assert "TORCHELASTIC_USE_AGENT_STORE" not in environ


@pytest.mark.slow
@pytest.mark.parametrize(("visible", "local_rank"), [("", "3"), ("0", "0"), ("2,3", "1"), ("0,1,2,3", "3")])
def test_local_rank_is_a_device_that_the_rank_sees(
    here: Path, monkeypatch: pytest.MonkeyPatch, visible: str, local_rank: str
) -> None:
    run = of_script(here, "")
    run.attempt = 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    world = World(Place(rank=3, size=4, local_rank=3, local_size=4))
    assert program.environment(run, world, config.load(run.config_yaml), ("n1", 1))["LOCAL_RANK"] == local_rank


@pytest.mark.slow
def test_the_port_of_a_program_is_given_to_nobody_else(here: Path) -> None:
    from torch._C._distributed_c10d import TCPStore

    with program._held_port() as port, program._held_port() as other:
        assert port != other
        store = TCPStore("127.0.0.1", port, 1, True, wait_for_workers=False)
        store.set("a", "b")
        for _ in range(200):
            with socket.create_server(("", 0)) as somebody:
                assert somebody.getsockname()[1] not in (port, other)
        del store


# -- the code that it runs


@pytest.mark.slow
def test_the_program_is_the_one_that_was_submitted(here: Path, rank: Rank) -> None:
    write(here / "helper.py", "WORD = 'before'")
    write(here / "tools/near.py", "WORD = 'near'")
    run = submitted(
        f"script={write(here / 'tools/own.py', 'import helper, near, os; print(helper.WORD, near.WORD, os.getcwd())')}"
    )
    for path in (here / "helper.py", here / "tools/near.py", here / "tools/own.py"):
        path.write_text("raise SystemExit('edited')")
    assert rank(run).wait() == 0, log(run)
    assert log(run).strip() == f"before near {here}"


@pytest.mark.slow
def test_without_a_snapshot_it_is_the_one_that_lies_there(here: Path, rank: Rank) -> None:
    run = of_script(here, "raise SystemExit('old')", "snapshot=false")
    write(here / "own.py", "import helper; print(__file__)")
    write(here / "helper.py", "")
    assert rank(run).wait() == 0, log(run)
    assert log(run).strip() == str(here / "own.py")


@pytest.mark.slow
def test_a_script_elsewhere_comes_with_what_lies_beside_it(here: Path, rank: Rank) -> None:
    elsewhere = here.parent / f"{here.name}-elsewhere"
    write(elsewhere / "helper.py", "WORD = 'before'")
    script = write(elsewhere / "own.py", "import helper; print(helper.WORD)")
    run = submitted(f"script={script}")
    write(elsewhere / "helper.py", "WORD = 'edited'")
    assert rank(run).wait() == 0, log(run)
    assert log(run).strip() == "before"


@pytest.mark.slow
def test_an_executable_file_needs_no_suffix(here: Path, rank: Rank) -> None:
    program = write(here / "simulate", '#!/bin/sh\necho "$0" "$@" in "$PWD"\necho "$HPCTOOL_CODE"', 0o755)
    run = submitted("script=simulate", "cwd=run", "args=[a b]")
    program.write_text("#!/bin/sh\nexit 1")
    assert rank(run).wait() == 0, log(run)
    copy = snapshot.project(run.path.parent, run.code(), str(here))
    assert log(run).splitlines() == [f"{copy}/simulate a b in {run.path}/artifacts", str(copy)]


@pytest.mark.slow
def test_a_module_is_found_in_the_snapshot(here: Path, rank: Rank) -> None:
    write(here / "pack/__init__.py", "")
    write(here / "pack/work.py", "import sys; print(__name__, sys.argv[1:])")
    run = submitted("module=pack.work", "args=[x]")
    write(here / "pack/work.py", "raise SystemExit('edited')")
    assert rank(run).wait() == 0, log(run)
    assert log(run).strip() == "__main__ ['x']"


@pytest.mark.slow
def test_a_failed_program_that_was_repaired_goes_on_with_its_new_code(here: Path) -> None:
    write(here / "own.py", "raise SystemExit('broken')")
    first = hpctool("script=own.py")
    write(here / "own.py", "print('repaired')")
    second = hpctool("script=own.py")
    assert (first.returncode, second.returncode, second.stdout) == (1, 0, "repaired\n")
    assert "goes on with the code as it is now" in second.stderr
    write(here / "own.py", "print('better')")
    third = hpctool("script=own.py")
    assert (third.stdout, "is completed already" in third.stderr) == ("", True)
    assert "The code has changed since; code=rerun makes a new run." in third.stderr


# -- how it ends


@pytest.mark.slow
def test_a_program_that_ends_well_leaves_metrics_and_artifacts(here: Path, rank: Rank) -> None:
    run = of_script(
        here,
        """
        note("table", 5)
        numbers = {"val/accuracy": 0.5, "step": 40, "bad": float("nan"), "text": "x", "flag": True}
        json.dump(numbers, open(os.environ["HPCTOOL_RUN"] + "/metrics.json", "w"))
        """,
    )
    assert rank(run).wait() == 0, log(run)
    result = run.result()
    assert result is not None
    assert (result["state"], result["step"], result["metrics"]) == ("completed", 40, {"val/accuracy": 0.5})


@pytest.mark.slow
def test_metrics_that_are_no_metrics_are_said_and_left_out(here: Path, rank: Rank) -> None:
    run = of_script(here, "open(os.environ['HPCTOOL_RUN'] + '/metrics.json', 'w').write('[1')")
    assert rank(run).wait() == 0
    assert "metrics.json is not a JSON object of numbers" in log(run)


@pytest.mark.slow
def test_a_program_that_fails_is_named_with_its_exit_code_and_last_words(here: Path, rank: Rank) -> None:
    run = of_script(here, "print('x' * 200_000)\nraise ValueError('bööm')")
    assert rank(run).wait() == 1
    assert (run.story().state, ended(run)["cause"]) == (
        "failed",
        "rank 0: ProgramError: own.py ended with exit code 1: ValueError: bööm",
    )
    trace = json.loads(run.error(0, 1).read_text())["traceback"]
    assert trace.splitlines()[-2].strip() == "raise ValueError('bööm')"


@pytest.mark.slow
def test_a_program_that_exits_with_75_is_to_be_continued_but_not_for_ever(here: Path, rank: Rank) -> None:
    run = of_script(here, "sys.exit(75)", "cluster.max_timeouts=2")
    assert [rank(run).wait() for _ in range(3)] == [75, 75, 1]
    assert "asked to be continued 3 times" in ended(run)["cause"]
    assert [body["state"] for body in run.story().of_kind("ended")] == ["requeued", "requeued", "failed"]


# -- several ranks


DDP = """
import sys, torch, torch.distributed as dist
torch.set_num_threads(1)
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(4, 2))
model(torch.ones(3, 4)).sum().backward()
total = torch.ones(1)
dist.all_reduce(total)
print("ranks", int(total), "rank", dist.get_rank(), flush=True)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_a_plain_ddp_script_runs_as_it_is(here: Path, bench: Bench) -> None:
    write(here / "ddp.py", DDP)
    done = hpctool("script=ddp.py", "cluster=local", "cluster.wait=true", "resources.tasks_per_node=2", "--json")
    assert done.returncode == 0, done.stderr
    run = RunDir(Path(json.loads(done.stdout)["folder"]))
    # Once in a hundred times torch itself aborts while such a process ends, and it is run again.
    lines = [run.log(rank, run.story().attempt).read_text().splitlines()[-1] for rank in (0, 1)]
    assert lines == ["ranks 2 rank 0", "ranks 2 rank 1"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["typed again", "retried", "as a cell"])
def test_a_run_whose_submitter_was_killed_before_it_had_a_ticket_is_queued_by_who_asks_again(
    here: Path, bench: Bench, how: str
) -> None:
    write(here / "own.py", "print('ran')")
    words = ["script=own.py", "cluster=local", "params.lr=1"]
    run = submitted(*words)
    mark_submitted(run, "local")
    if how == "retried":
        command = [sys.executable, "-m", "hpctool.cli.main", "runs", "retry", run.id]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    else:
        done = hpctool(*(["-m", *words[:2], "params.lr=1,2"] if how == "as a cell" else words))
    assert done.returncode == 0, done.stderr
    bench.wait(run)
    assert run.story().state == "completed"


@pytest.mark.slow
def test_if_one_rank_fails_all_end_and_that_one_is_named(here: Path, bench: Bench) -> None:
    write(here / "own.py", NOTE + "if os.environ['RANK'] == '1': raise ValueError('boom')\nnote('waits')\nwait()")
    done = hpctool("script=own.py", "cluster=local", "cluster.wait=true", "resources.tasks_per_node=3", "--json")
    run = RunDir(Path(json.loads(done.stdout)["folder"]))
    assert (done.returncode, run.story().state) == (1, "failed")
    assert ended(run)["cause"] == "rank 1: ProgramError: own.py ended with exit code 1: ValueError: boom"
    assert are_gone(noted(run, "waits"))


@pytest.mark.slow
def test_a_script_that_says_what_it_had_started_was_killed_comes_back(here: Path, bench: Bench) -> None:
    (here / "own.sh").write_text(
        "#!/bin/bash\n[ $HPCTOOL_RESUMED = 1 ] || { python3 -c 'import os; os.kill(os.getpid(), 9)'; exit $?; }\n"
    )
    (here / "own.sh").chmod(0o755)
    done = hpctool("script=own.sh", "cluster=local", "cluster.wait=true", "--json")
    story = RunDir(Path(json.loads(done.stdout)["folder"])).story()
    assert (story.state, story.attempt) == ("completed", 2)
    assert story.of_kind("ended")[0]["cause"] == "rank 0 was killed by SIGKILL"


@pytest.mark.slow
def test_a_sweep_over_params_is_told_apart_by_them(here: Path, bench: Bench) -> None:
    write(
        here / "own.py",
        NOTE + "json.dump({'loss': 2 * float(sys.argv[2])}, open(os.environ['HPCTOOL_RUN'] + '/metrics.json', 'w'))",
    )
    words = ("script=own.py", "params.lr=0.5,0.25", "cluster=local", "cluster.wait=true", "--json")
    done = hpctool("-m", *words)
    assert done.returncode == 0, done.stderr
    rows = [read_row(RunDir(here / "runs" / run)) for run in json.loads(done.stdout)["runs"]]
    assert [(row.changed["params.lr"], row.metrics) for row in rows] == [(0.5, {"loss": 1.0}), (0.25, {"loss": 0.5})]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_sweep_in_this_process_that_is_told_to_stop_begins_no_further_cell(
    here: Path, number: signal.Signals, code: int
) -> None:
    saves = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\nnote('ready')\nwait()"
    write(here / "own.py", NOTE + saves)
    words = ["-m", "script=own.py", "params.lr=1,2,3", "cluster=inline"]
    with subprocess.Popen([sys.executable, "-m", "hpctool.cli.main", "run", *words]) as process:
        until(lambda: list(here.glob("runs/*/artifacts/ready")))
        process.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
    assert process.returncode == code
    assert len(list(here.glob("runs/run-*"))) == 1


@pytest.mark.slow
def test_a_run_that_is_cancelled_lets_the_program_save_and_stays_cancelled(here: Path, bench: Bench) -> None:
    saves = "signal.signal(signal.SIGTERM, lambda *_: (note('saved'), sys.exit(75)))\nnote('ready')\nwait()"
    write(here / "own.py", NOTE + saves)
    run = RunDir(Path(json.loads(hpctool("script=own.py", "cluster=local", "--json").stdout)["folder"]))
    noted(run, "ready")
    subprocess.run([sys.executable, "-m", "hpctool.cli.main", "runs", "cancel", run.id], check=True)
    until(lambda: run.story().state == "cancelled")
    assert noted(run, "saved") == noted(run, "ready")


@pytest.mark.slow
def test_the_time_limit_comes_as_often_as_the_program_says_that_it_saved(here: Path, bench: Bench) -> None:
    write(
        here / "own.py",
        NOTE
        + """
def save(*_):
    note("count", count + 1)
    sys.exit(75)
path = os.environ["HPCTOOL_RUN"] + "/artifacts/count"
count = int(open(path).read()) if os.environ["HPCTOOL_RESUMED"] == "1" else 0
signal.signal(signal.SIGTERM, save)
if count < 3: wait()
""",
    )
    limit = ("resources.time=0:05", "cluster.signal_delay_s=3", "cluster.kill_wait_s=2")
    done = hpctool("script=own.py", "cluster=local", "cluster.wait=true", "--json", *limit)
    run = RunDir(Path(json.loads(done.stdout)["folder"]))
    assert (run.story().state, [body["cause"] for body in run.story().of_kind("ended")]) == (
        "completed",
        ["timeout", "timeout", "timeout", ""],
    )


@pytest.mark.slow
def test_code_rerun_makes_another_run_of_what_is_completed(here: Path) -> None:
    write(here / "own.py", "print('ran')")
    answers = [
        json.loads(hpctool("script=own.py", *more, "--json").stdout)
        for more in ([], ["code=rerun"], [], ["code=rerun"])
    ]
    assert [bool(answer["submitted"]) for answer in answers] == [True, True, False, True]
    assert len({answer["folder"] for answer in answers}) == 3
