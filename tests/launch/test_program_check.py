"""What is found out about somebody's own program before it is submitted."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctool import config
from hpctool.errors import ConfigError, InputError, SourceError
from hpctool.launch import program
from hpctool.launch.plan import Request, make_plan
from tests.launch.programs import submitted, write

# -- what is refused before anything is written


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        ([], "give one of script=train.py and module=myproject.train"),
        (["script=own.py", "module=own"], "give one of"),
        (["script=onw.py"], "there is no file"),
        (["script=onw.py"], "Did you mean own.py"),
        (["script=pack"], "is a folder. A package is run as module="),
        (["script=wrong.py"], "wrong.py, line 2: this is not Python"),
        (["script=plain.sh"], "is not executable. chmod"),
        (["script=nobody.sh"], "line 1: it does not say what runs it"),
        (["script=gone.sh"], "line 1: there is no such interpreter"),
        (["script=no-such-program"], "there is no file"),
        (["module=pack"], "is a package without __main__.py"),
        (["module=pack.nothing"], "there is no module 'pack.nothing'"),
        (["script=own.py", "cwd=nowhere"], "there is no folder"),
        (["script=own.py", "stop_signal=SIGTRM"], "Did you mean SIGTERM"),
        (["script=own.py", "params_as=words"], "is not one of flags"),
        (["script=own.py", "args=[a,null]"], "it takes a text, and got null"),
        (["script=own.py", "args=[{a:1}]"], "is no argument"),
    ],
)
def test_what_cannot_be_started_is_refused(here: Path, overrides: list[str], text: str) -> None:
    write(here / "own.py", "")
    write(here / "pack/__init__.py", "")
    write(here / "wrong.py", "x = 1\ny = (")
    write(here / "plain.sh", "#!/bin/sh\n")
    write(here / "nobody.sh", "echo", 0o755)
    write(here / "gone.sh", "#!/no/such/shell\n", 0o755)
    with pytest.raises(InputError) as caught:
        submitted(*overrides)
    assert isinstance(caught.value, ConfigError | SourceError)
    assert text in str(caught.value)
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_an_installed_program_needs_no_path(here: Path) -> None:
    run = submitted("script=hostname")
    assert program.command(run, config.load(run.config_yaml), {}) == ["hostname"]


@pytest.mark.slow
def test_who_it_is_depends_on_script_words_and_folder_and_not_on_the_way_they_were_typed(here: Path) -> None:
    write(here / "own.py", "")
    (here / "data").mkdir()

    def identity(*overrides: str) -> str:
        return make_plan(Request("run", list(overrides)), multirun=False).cells[0].identity

    same = identity("script=own.py", "args=[--lr,0.1]")
    assert identity("script=./own.py", 'args=["--lr","0.1"]', "cluster=local") == same
    assert identity(f"script={here}/own.py", "args=[--lr,0.1]", "resources.time=5:00") == same
    others = [
        identity("script=own.py", "args=[--lr,0.2]"),
        identity("script=own.py", "args=[--lr,0.1]", "cwd=data"),
        identity("script=own.py", "args=[--lr,0.1]", "params.x=1"),
    ]
    assert len({same, *others}) == 4


@pytest.mark.slow
def test_a_cell_of_a_sweep_is_what_it_would_be_alone(here: Path) -> None:
    write(here / "own.py", "")
    swept = make_plan(
        Request("run", ["script=own.py", "params.lr=0.1,0.2", "params.name=a,b", "args=[--x,1],[--y]"]), multirun=True
    )
    alone = [
        make_plan(Request("run", ["script=own.py", f"params.lr={lr}", f"params.name={name}", f"args={args}"]), False)
        for lr in (0.1, 0.2)
        for name in "ab"
        for args in ("[--x,1]", "[--y]")
    ]
    assert [cell.identity for cell in swept.cells] == [plan.cells[0].identity for plan in alone]
