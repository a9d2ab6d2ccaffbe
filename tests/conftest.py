"""What tests of several rooms share."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from hpctool import files
from tests.launch.slurm.stand_ins import StandIns

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def spawn() -> Iterator[Spawn]:
    """Start `python -c code arguments…` with both outputs captured; what still runs is killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def start(code: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, *map(str, arguments)]
        pipe = subprocess.PIPE
        process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, **options)  # type: ignore[call-overload]
        started.append(process)
        return process  # type: ignore[no-any-return]

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def readable_folder() -> Iterator[Path]:
    """A folder that every user may enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="hpctool-test-"))
    folder.chmod(0o777)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def unprivileged(readable_folder: Path) -> Iterator[Path]:
    """Be an ordinary user for the length of a test: as root every permission test passes by accident."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    yield readable_folder
    os.seteuid(was)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIns]:
    """squeue and sacct that answer what the test says."""
    programs = StandIns(tmp_path / "programs", monkeypatch)
    yield programs
    programs.forget()


@pytest.fixture(params=["link", "symlink"])
def primitive(request: pytest.FixtureRequest) -> files.Primitive:
    """Both ways to create a name only if it is absent."""
    choice: files.Primitive = request.param
    return choice


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, object, object]:
    """Lift a limit on file sizes before pytest writes its own report, which may go into a file, too."""
    try:
        return (yield)
    finally:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture
def small_files() -> Iterator[int]:
    """A disk that is full after 4096 bytes of any file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    yield 4096
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)
