"""The throwaway cluster of scripts/cluster, as tests use it: jobs belong to an ordinary user, faults come from root."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

import pytest

from hpctool.rundir import RunDir
from tests.slurm.survive import Lab, make_lab

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
SCRIPT = CHECKOUT / "scripts" / "cluster"
NODES = ("n1", "n2", "n3", "n4")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All tests of this folder need the cluster, and Slurm takes its time."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker("slurm")
            item.add_marker("slow")
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(300))


#: What became of the runs of each test.
_told: dict[str, list[str]] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect what is told of runs, also by other processes."""
    if report.when == "teardown" and (runs := [str(told) for name, told in report.user_properties if name == "run"]):
        _told[report.nodeid.rpartition("::")[2]] = runs


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the runs of each test came to: attempts, and steps that were done twice."""
    if _told:
        terminalreporter.section("runs on the cluster")
    for test, runs in _told.items():
        for run in runs:
            terminalreporter.line(f"{test}: {run}")


class Cluster:
    """A running cluster; its methods raise CalledProcessError with what was said if Slurm refuses."""

    def __init__(self, folder: Path, user: str, as_user: list[str]) -> None:
        self.folder = folder
        self.user = user
        self.slurm_conf = folder / "etc" / "slurm.conf"
        self._as_user = as_user
        self._folders: list[Path] = []
        #: the runs whose end the present test has seen, with the project that they belong to
        self.ended: list[tuple[Lab, RunDir]] = []

    def run(
        self,
        *command: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        check: bool = True,
        timeout_s: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as the ordinary user on the login host, in their home unless told otherwise."""
        return _run(self.entered(command, cwd), {**self.environment(), **(env or {})}, check, timeout_s)

    def popen(self, *command: str | Path, cwd: Path | None = None) -> subprocess.Popen[str]:
        """Start such a command and go on; whoever starts it ends it."""
        pipe = subprocess.PIPE
        entered = self.entered(command, cwd)
        return subprocess.Popen(entered, env=self.environment(), stdout=pipe, stderr=pipe, text=True)

    def entered(self, command: Iterable[str | Path], cwd: Path | None) -> list[str]:
        """The command as root starts it, to become the user within the login host's view of the file system."""
        env = self._as_user.index("env")
        folder = cwd or self.folder / "home"
        return [*self._as_user[:env], f"--wdns={folder}", *self._as_user[env:], *map(str, command)]

    def environment(self) -> dict[str, str]:
        """The tests' own, with this Python first on the PATH, and without any Slurm but this one."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH", "XDG_"))}
        path = f"{Path(sys.executable).parent}:{kept.get('PATH', os.defpath)}"
        return {**kept, "PATH": path, "SLURM_CONF": str(self.slurm_conf)}

    def sbatch(self, *options: str, wrap: str | None = None, cwd: Path | None = None) -> str:
        """Submit a script (the last of the options) or one command as the user; returns the job's id."""
        command = [*options] if wrap is None else [*options, f"--wrap={wrap}"]
        return self.run("sbatch", "--parsable", *command, cwd=cwd).stdout.strip().split(";")[0]

    def as_root(self, *command: str, check: bool = True) -> str:
        """What an administrator's command prints."""
        return _run(list(command), self.environment(), check).stdout

    def scontrol(self, *words: str) -> str:
        return self.as_root("scontrol", *words)

    def job(self, job_id: str) -> dict[str, str]:
        """What `scontrol show job` says of one job or array task."""
        shown = self.scontrol("--oneliner", "show", "job", job_id).splitlines()[0]
        return dict(re.findall(r"(\S+?)=(.*?)(?=\s+[\w/:]+=|\s*$)", shown))

    def state(self, job_id: str) -> str:
        return self.job(job_id)["JobState"]

    def wait_state(self, job_id: str, states: str | Collection[str], timeout_s: float = 60) -> str:
        """Wait until a job is in one of these states; fails with what Slurm says of the job instead."""
        __tracebackhide__ = True
        wanted = {states} if isinstance(states, str) else set(states)
        end = time.monotonic() + timeout_s
        while (job := self.job(job_id))["JobState"] not in wanted:
            if time.monotonic() > end:
                pytest.fail(f"Job {job_id} is not {' or '.join(sorted(wanted))} within {timeout_s} s: {job}")
            time.sleep(0.1)
        return job["JobState"]

    def start_now(self, job_id: str, timeout_s: float = 30) -> None:
        """Skip the two minutes that a requeued job waits, as soon as it waits."""
        self.wait_state(job_id, "PENDING", timeout_s)
        self.scontrol("update", f"JobId={job_id}", "StartTime=now")

    def node_state(self, node: str) -> str:
        """As `sinfo` writes it: idle, mixed, allocated, down*, …"""
        return self.as_root("sinfo", "--noheader", f"--nodes={node}", "--partition=batch", "--format=%T").strip()

    def wait_node(self, node: str, state: str, timeout_s: float = 60) -> None:
        """Wait until a node's state begins with this."""
        __tracebackhide__ = True
        end = time.monotonic() + timeout_s
        while not self.node_state(node).startswith(state):
            if time.monotonic() > end:
                pytest.fail(f"{node} is {self.node_state(node)}, not {state}, after {timeout_s} s")
            time.sleep(0.2)

    def policy(
        self, mode: Literal["REQUEUE", "CANCEL"], grace_s: int, user_signal: Literal["on", "off"] | None = None
    ) -> None:
        """What happens to jobs in `batch` that make way for an urgent one."""
        self.change("policy", mode, str(grace_s), *([f"--user-signal={user_signal}"] if user_signal else []))

    def preempt(self, nodes: str = "n1,n2,n3,n4", seconds: int = 3) -> str:
        """Submit an urgent job of somebody else, which needs these nodes whole; returns its id."""
        return self.change("preempt", f"--nodes={nodes}", f"--seconds={seconds}")

    def fail(self, node: str, now: bool = False) -> None:
        """Cut a node's cable; with `now` the controller is told that it is down, else it notices after 15 to 30 s."""
        self.change("fail", node, *(["--now"] if now else []))

    def read_only(self, node: str, folder: Path) -> None:
        """One node can make nothing new in a folder; what it holds already stays as it is."""
        self.change("read-only", node, str(folder))

    def unmount(self, node: str, folder: Path) -> None:
        """One node finds a folder empty, as where a file system is not mounted."""
        self.change("unmount", node, str(folder))

    def heal(self, node: str) -> None:
        """Take the faults of a node away, and wait until Slurm uses it."""
        self.change("heal", node)

    def restart_controller(self) -> None:
        self.change("restart-controller")

    def stop_controller(self) -> None:
        self.change("stop-controller")

    def start_controller(self) -> None:
        self.change("start-controller")

    def limits(
        self,
        max_array_size: int | None = None,
        max_submit_jobs: int | None = None,
        job_requeue: bool | None = None,
        accounting: Literal["on", "off"] | None = None,
    ) -> None:
        """Limits as sites have them; what is None stays as it is."""
        asked = {
            "max-array-size": max_array_size,
            "max-submit-jobs": max_submit_jobs,
            "job-requeue": None if job_requeue is None else int(job_requeue),
            "accounting": accounting,
        }
        self.change("limits", *(f"--{name}={value}" for name, value in asked.items() if value is not None))

    def cancel_all(self) -> None:
        """Cancel every job politely, and wait until the queue is empty."""
        self.as_root("scancel", f"--user={self.user}")
        self.as_root("scancel", "--user=root")
        end = time.monotonic() + 60
        while self.as_root("squeue", "--noheader"):
            assert time.monotonic() < end, "some jobs do not end"
            time.sleep(0.1)

    def change(self, *words: str) -> str:
        """What a command of scripts/cluster prints."""
        return self.as_root(sys.executable, str(SCRIPT), f"--folder={self.folder}", *words).strip()

    def private_folder(self) -> Path:
        """Below /tmp, which all nodes share; the user's own and closed to others. Whoever asks removes it."""
        folder = Path(tempfile.mkdtemp(prefix="hpctool-slurm-", dir="/tmp"))
        user = pwd.getpwnam(self.user)
        os.chown(folder, user.pw_uid, user.pw_gid)
        return folder

    def new_folder(self) -> Path:
        """Such a folder, which is removed after the test."""
        self._folders.append(self.private_folder())
        return self._folders[-1]

    def reset(self) -> None:
        """No jobs, all nodes idle, policy and limits of the beginning."""
        self.change("reset")
        for folder in self._folders:
            shutil.rmtree(folder)
        self._folders.clear()


def _run(
    command: list[str], env: Mapping[str, str], check: bool = True, timeout_s: float = 120
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command, env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s
    )
    if check and done.returncode:
        # pytest shows a note; of a CalledProcessError alone one would not see what the program said.
        error = subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        error.add_note(f"{done.stdout}\n{done.stderr}")
        raise error
    return done


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """One of the clusters that are up, for this process alone: `scripts/test` starts two where it can."""
    if why := os.environ.get("HPCTOOL_TEST_NO_CLUSTER"):
        pytest.skip(why)
    if os.geteuid() != 0:
        pytest.skip("the tests on a Slurm cluster need root, who makes the faults and becomes the ordinary user")
    folders = os.environ.get("HPCTOOL_TEST_CLUSTERS", "/tmp/hpctool-cluster").split(os.pathsep)
    told = {folder: _status(folder) for folder in folders}
    up = [Path(folder) for folder, status in told.items() if status["up"]]
    if not up:
        pytest.skip(f"no cluster: {told[folders[0]].get('reason', 'its controller does not answer')}")
    with _one_of(up) as folder:
        status = told[str(folder)]
        found = Cluster(folder, status["user"], status["as_user"])
        _check_imports(found)
        found.reset()
        yield found


def _status(folder: str) -> dict[str, Any]:
    shown = subprocess.run([sys.executable, SCRIPT, "--folder", folder, "status", "--json"], capture_output=True)
    status: dict[str, Any] = json.loads(shown.stdout)
    return status


def _check_imports(cluster: Cluster) -> None:
    tried = cluster.run(sys.executable, "-c", "import hpctool; print(hpctool.__file__)", check=False)
    if Path(tried.stdout.strip()).parent != CHECKOUT / "hpctool":
        pytest.fail(
            f"The ordinary user of the cluster cannot import this checkout with {sys.executable}: "
            f"{(tried.stderr or tried.stdout).strip().splitlines()[-1]} "
            f"Bring the cluster up again with `scripts/cluster up --readable {sys.prefix} --readable {CHECKOUT}`."
        )


@contextlib.contextmanager
def _one_of(folders: list[Path]) -> Iterator[Path]:
    """The first cluster that no other process of tests holds, for as long as it takes to get one."""

    def locked(file: IO[str]) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    with contextlib.ExitStack() as opened:
        locks = [opened.enter_context(folder.with_name(f"{folder.name}.lock").open("w")) for folder in folders]
        while (
            ours := next((folder for folder, lock in zip(folders, locks, strict=True) if locked(lock)), None)
        ) is None:
            time.sleep(0.5)
        yield ours


@pytest.fixture(scope="session")
def lab(cluster: Cluster) -> Iterator[Lab]:
    """A project of the ordinary user's with the digits prepared, for all tests."""
    folder = cluster.private_folder()
    yield make_lab(cluster, folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def undisturbed(lab: Lab) -> str:
    """The digest of the parameters of a run that nothing happened to."""
    run = lab.train("undisturbed")
    lab.until_ended(run, attempts=1)
    return lab.digest(run)


@pytest.fixture(autouse=True)
def _between_tests(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test did to the cluster does not reach the next one; how its runs went is told at the end."""
    cluster.ended.clear()
    yield
    for lab, run in cluster.ended:
        request.node.user_properties.append(("run", lab.how_it_went(run)))
    cluster.reset()


@pytest.fixture
def user_folder(cluster: Cluster) -> Path:
    """A fresh folder that only the ordinary user may read, on what all nodes share."""
    return cluster.new_folder()
