"""A job that is quick, and searches over it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from pathlib import Path

import hpctool.jobs
import pytest

from hpctool.launch import inline
from hpctool.launch.cells import open_cell
from hpctool.launch.plan import Request
from hpctool.place import Place
from hpctool.search import control, submit
from hpctool.search.journal import Journal
from hpctool.search.spec import Spec, read_spec

HERE = Path(__file__).parent
Ask = Callable[..., "Found"]

SPACE = ("x=interval(0,1)", "kind=choice(a,b)")
ASHA = ("search=asha", "search.rungs=[1,3]", *SPACE)


class Found:
    """A search that was made, and everything that was said."""

    def __init__(self, folder: Path, said: list[str], exit_code: int = 0) -> None:
        self.folder, self.said, self.exit_code = folder, said, exit_code

    @property
    def runs(self) -> Path:
        return self.folder.parent.parent

    @property
    def spec(self) -> Spec:
        return read_spec(self.folder)

    def journal(self) -> Journal:
        """The journal, read anew."""
        journal = Journal(self.folder, self.spec)
        journal.read()
        return journal


@pytest.fixture
def toy_job() -> Iterator[None]:
    """hpctool knows the job `toy`."""
    hpctool.jobs.__path__.append(str(HERE / "jobs"))
    yield
    hpctool.jobs.__path__.remove(str(HERE / "jobs"))


def request(*overrides: str) -> Request:
    """`hpctool toy -m` with these words."""
    return Request("toy", list(overrides), [HERE / "conf"])


@pytest.fixture
def ask(toy_job: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Submit a search over the toy job, in an empty folder; `start=False` only writes it down."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HPCTOOL_ROOT", raising=False)

    def made(*overrides: str, start: bool = True, after: str = "") -> Found:
        said: list[str] = []
        with pytest.MonkeyPatch.context() as patch:
            if not start:
                patch.setattr(control, "start", lambda *_: 0)
            asked = dataclasses.replace(request("search.metric=loss", "search.mode=min", *overrides), after=after)
            answer = submit.submit(asked, True, say=said.append)
        return Found(Path(answer.folder), said, answer.exit_code)

    return made


def worker(found: Found, slot: int) -> int:
    """One attempt of a worker, in this process."""
    return inline.run_here(open_cell(found.runs, found.spec.id, slot), Place())


def start(found: Found, slot: int) -> ForkProcess:
    process = ForkProcess(target=lambda: os._exit(worker(found, slot)))
    process.start()
    return process
