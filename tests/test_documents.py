"""What the documents tell people to type exists."""

from __future__ import annotations

import ast
import functools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from hpctool import config
from hpctool.launch.job import job_names

ROOT = Path(__file__).parent.parent
CONF = ROOT / "conf"


def documented() -> list[tuple[str, list[str]]]:
    """Every command in documents, docstrings of jobs and experiments: where it stands, and its words after hpctool."""
    texts = {
        path.name: "\n".join(re.findall(r"```[^\n]*\n(.*?)```", path.read_text(), re.S)) for path in ROOT.glob("*.md")
    }
    texts |= {
        str(path.relative_to(ROOT)): ast.get_docstring(ast.parse(path.read_text())) or ""
        for path in (ROOT / "jobs").glob("*.py")
    }
    texts |= {
        str(path.relative_to(ROOT)): path.read_text().replace("# ", "") for path in (CONF / "experiment").glob("*.yaml")
    }
    commands = []
    for where, text in sorted(texts.items()):
        for line in text.replace("\\\n", " ").splitlines():
            if line.strip().startswith("hpctool "):
                # Two spaces and more set a remark apart.
                words = shlex.split(re.split(r"\s{2,}", line.strip())[0], comments=True)
                # After two dashes the words are those of the user's own program.
                ends = [n for n, word in enumerate(words) if word in ("|", "&&", ">", ";", "--")]
                # What stands after -- is another program's.
                ends += [words.index("--")] if "--" in words else []
                commands.append((where, words[1 : min(ends, default=len(words))]))
    return commands


def complaint(words: list[str]) -> str:
    """What is wrong with a documented command; empty if it exists as it is written."""
    from hpctool.cli.main import cli

    context = click.Context(cli)
    command: click.Command = cli
    rest = list(words)
    while isinstance(command, click.Group) and rest and not rest[0].startswith(("-", "<", "[")):
        found = command.get_command(context, rest[0])
        if found is None:
            return f"there is no '{rest[0]}'"
        command, rest = found, rest[1:]
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    for word in rest:
        if re.fullmatch(r"--?[a-z][a-z-]*(=.*)?", word) and word.partition("=")[0] not in known:
            return f"it has no option {word}"
    return complaint_about_keys(words[0], rest) if words and words[0] in job_names() else ""


@functools.cache
def known_keys(job: str) -> set[str]:
    groups = {path.name for path in CONF.iterdir() if path.is_dir()}
    # Any job can be searched over.
    return {*map(str, config.compose(job).cfg), *groups, "after", "search"}


def complaint_about_keys(job: str, words: list[str]) -> str:
    for word in words:
        key = re.match(r"[+~]*([a-z_]+)[.=]", word)
        if key and key.group(1) not in known_keys(job):
            return f"{job} has no key {word}"
    return ""


def test_every_command_in_the_documents_exists() -> None:
    commands = documented()
    assert len(commands) >= len(job_names()), (
        "the documents hold fewer commands than there are jobs: is the parser right?"
    )
    found = [f"{where}: hpctool {' '.join(words)}: {complaint(words)}" for where, words in commands if complaint(words)]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["trian"], "there is no 'trian'"),
        (["data", "shwo"], "there is no 'shwo'"),
        (["train", "--dry-rnu"], "it has no option --dry-rnu"),
        (["train", "optm.lr=1"], "train has no key optm.lr=1"),
        (["train", "-m", "optim.lr=1,2", "+model.depth=3"], ""),
        (["data", "show", "faces", "--json"], ""),
    ],
)
def test_a_command_that_does_not_exist_is_noticed(words: list[str], why: str) -> None:
    assert complaint(words) == why


@pytest.mark.slow
@pytest.mark.parametrize("document", sorted(path.name for path in ROOT.glob("*.md")))
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    named = re.findall(
        r"`((?:tests|scripts|examples|conf|docs|jobs|hpctool)/[\w/.-]+|test_\w+\.py)`", (ROOT / document).read_text()
    )
    tests = {path.name for path in (ROOT / "tests").rglob("test_*.py")}
    assert [name for name in named if name not in tests and not (ROOT / name).exists()] == []


def test_the_script_in_the_readme_is_killed_and_ends_the_same(tmp_path: Path) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    last = "    losses.append(loss.item())\n"
    dies = f"{last}    if step == 70 and not job.resumed:\n        os.kill(os.getpid(), 9)\n"
    (tmp_path / "as_it_is.py").write_text(script)
    killed = script.replace("every_min=10", "every_steps=20").replace(last, dies)
    (tmp_path / "killed.py").write_text(f"import os\n{killed}")

    def run(name: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / f"{name}.d").mkdir(exist_ok=True)
        command = [sys.executable, f"../{name}.py"]
        return subprocess.run(command, cwd=tmp_path / f"{name}.d", capture_output=True, text=True, check=False)

    whole, dead, resumed = run("as_it_is"), run("killed"), run("killed")
    assert (whole.returncode, dead.returncode, resumed.returncode) == (0, -9, 0), whole.stderr + resumed.stderr
    assert whole.stdout.startswith("200 steps, loss ")
    # The save of step 60 was under way beside the steps, or just committed.
    said = [f"hpctool: Resumed after step {n} from step-000000{n}.a1.\n{whole.stdout}" for n in (40, 60)]
    assert resumed.stdout in said
