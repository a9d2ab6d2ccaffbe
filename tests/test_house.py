"""The habits of the house. Each failure says what to do."""

from __future__ import annotations

import ast
import functools
import importlib
import re
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import hpctool
from hpctool import config
from hpctool.launch.job import job_names, load_job

Spawn = Callable[..., "subprocess.Popen[str]"]

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hpctool"
CONF = ROOT / "conf"
GROUND = ("errors", "files", "log", "place", "rendezvous", "world", "rundir", "targets", "yamltraps", "config")
#: in the order of data: a room imports the ground floor and earlier rooms
ROOMS = (
    *("launch", "track", "checkpoint", "data", "train", "chaos", "search"),
    *("export", "serve", "monitor", "review", "flywheel"),
)
#: on top of all rooms, imported by none of them
TOP = ("nets", "testing", "cli", "jobs")

MAX_LINES = 400
MAX_JOB_LINES = 40
MAX_FUNCTION_LINES = 60
MAX_PUBLIC_NAMES = 25
#: what is read and written there goes to whoever called, not to a terminal
SILENT = (*GROUND, "track", "checkpoint", "nets")


def sources(*folders: Path) -> list[Path]:
    found = (path for folder in folders for path in folder.rglob("*.py") if "__pycache__" not in path.parts)
    return sorted(found)


CODE = sources(PACKAGE, ROOT / "jobs")
EVERYTHING = sources(PACKAGE, *(ROOT / name for name in ("jobs", "tests", "scripts", "examples")))


@functools.cache
def nodes(path: Path) -> list[ast.AST]:
    """Everything in the syntax tree of a file."""
    return list(ast.walk(ast.parse(path.read_bytes())))


def shown(path: Path, line: int | None = None) -> str:
    where = str(path.relative_to(ROOT))
    return where if line is None else f"{where}:{line}"


def room_of(path: Path) -> str:
    """`train` for hpctool/train/loop.py, `files` for hpctool/files.py, `jobs` for jobs/train.py."""
    if PACKAGE not in path.parents:
        return path.relative_to(ROOT).parts[0]
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a file imports, also inside functions and for type checkers."""
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{shown(path, node.lineno)}: write hpctool.… instead of a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def report(problems: list[str]) -> None:
    assert not problems, "\n".join(["", *problems])


# -- the plan


def may_import(room: str) -> set[str]:
    if room in GROUND:
        return set(GROUND)
    if room in ROOMS:
        return {*GROUND, *ROOMS[: ROOMS.index(room) + 1]}
    return {*GROUND, *ROOMS, *TOP} - ({"nets"} if room != "nets" else set())


def test_every_part_of_the_package_has_its_place() -> None:
    parts = {room_of(path) for path in CODE} - {"__init__"}
    report([
        f"hpctool/{part} has no place in the plan: add it to GROUND, ROOMS or TOP in tests/test_house.py, and to README"
        for part in sorted(parts - {*GROUND, *ROOMS, *TOP})
    ])  # fmt: skip


def test_imports_go_one_way() -> None:
    problems = []
    for path in CODE:
        if path == PACKAGE / "__init__.py":
            continue  # the public names of all rooms
        for line, name in imports(path):
            package, _, rest = name.partition(".")
            other = rest.partition(".")[0]
            if package != "hpctool" or other not in {*GROUND, *ROOMS, *TOP} or other in may_import(room_of(path)):
                continue
            problems.append(
                f"{shown(path, line)}: {room_of(path)} may not import {name}: a room imports the ground floor and "
                "earlier rooms; later ones read what it wrote to disk"
            )
    report(problems)


def test_nobody_imports_the_accidental_conf_and_jobs() -> None:
    report([
        f"{shown(path, line)}: '{name}' exists only where the checkout is the working folder; write hpctool.{name}"
        for path in EVERYTHING
        for line, name in imports(path)
        if name.partition(".")[0] in ("conf", "jobs")
    ])  # fmt: skip


# -- size


def test_no_file_holds_two_ideas() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in EVERYTHING}
    report([
        f"{shown(path)} has {lines} lines; below {MAX_LINES} a file is one idea: split it"
        for path, lines in lengths.items()
        if lines >= MAX_LINES
    ])  # fmt: skip


def test_jobs_are_thin() -> None:
    lengths = {path: len(path.read_text().splitlines()) for path in sources(ROOT / "jobs")}
    report([
        f"{shown(path)} has {lines} lines of {MAX_JOB_LINES}: what it does belongs into a room"
        for path, lines in lengths.items()
        if lines > MAX_JOB_LINES
    ])  # fmt: skip


def test_functions_fit_on_a_screen() -> None:
    report([
        f"{shown(path, node.lineno)}: {node.name} has {length} lines; aim at 30, {MAX_FUNCTION_LINES} is the limit"
        for path in EVERYTHING
        for node in nodes(path)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > MAX_FUNCTION_LINES
    ])  # fmt: skip


# -- what is never done


FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"}


def forbidden(node: ast.AST) -> str:
    """Why a piece of code is not allowed; empty if it is."""
    if not isinstance(node, ast.Call):
        return ""
    name = ast.unparse(node.func)
    arguments = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in ("eval", "exec", "os.system", "os.popen"):
        return f"{name} runs text as a program"
    if arguments.get("shell") == "True":
        return "shell=True: pass a list of arguments"
    if arguments.get("allow_pickle") == "True":
        return "allow_pickle=True runs whatever the file says"
    if name == "torch.load" and arguments.get("weights_only") != "True":
        return "torch.load without weights_only=True runs whatever the file says"
    return ""


def test_nothing_that_was_read_is_run() -> None:
    problems = []
    for path in CODE:
        problems += [
            f"{shown(path, line)}: {name} reads programs as data; use JSON, safetensors or npz"
            for line, name in imports(path)
            if name.partition(".")[0] in FORBIDDEN_MODULES
        ]
        found = ((node, forbidden(node)) for node in nodes(path))
        problems += [f"{shown(path, getattr(node, 'lineno', 0))}: {why}" for node, why in found if why]
    report(problems)


def is_print(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"


def test_the_lower_floors_do_not_print() -> None:
    report([
        f"{shown(path, getattr(node, 'lineno', 0))}: {room_of(path)} returns, raises or warns; the caller prints"
        for path in CODE
        if room_of(path) in SILENT
        for node in nodes(path)
        if is_print(node)
    ])  # fmt: skip


# -- what is public


def test_the_package_list_is_the_folders() -> None:
    said = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    there |= {"hpctool.conf", "hpctool.jobs"}
    assert said == there, "make the list in pyproject.toml equal to the folders, or a wheel will lack one"


def test_the_public_names_are_a_list() -> None:
    assert len(hpctool.__all__) <= MAX_PUBLIC_NAMES, "what is public must be kept: leave something out"
    assert set(hpctool.__all__) == {*hpctool._HOMES, "__version__"}, "__all__ and _HOMES of hpctool/__init__.py differ"
    assert sorted(hpctool.__all__) == dir(hpctool)
    for name, home in hpctool._HOMES.items():
        assert getattr(hpctool, name) is getattr(importlib.import_module(home), name)
    with pytest.raises(AttributeError, match="has no attribute 'Wrold'"):
        _ = hpctool.Wrold


LIGHT = """
import importlib, sys
for name in sys.argv[2:]:
    importlib.import_module(name)
    heavy = sorted(set(sys.argv[1].split(",")) & set(sys.modules))
    if heavy:
        sys.exit(f"importing {name} imports {', '.join(heavy)}: do that inside the function that needs it")
"""


def light_modules() -> list[str]:
    schemas = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(PACKAGE.glob("*/schema.py"))]
    resolves = [f"hpctool.jobs.{name}" for name in job_names()]
    return ["hpctool", *(f"hpctool.{name}" for name in GROUND), *schemas, *resolves]


def test_the_login_node_does_not_import_torch(spawn: Spawn) -> None:
    process = spawn(LIGHT, "torch,matplotlib.pyplot", *light_modules())
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


def test_help_imports_next_to_nothing(spawn: Spawn) -> None:
    process = spawn(LIGHT, "torch,numpy,hydra,submitit,h5py,scipy,sklearn,matplotlib", "hpctool", "hpctool.cli.main")
    _, said = process.communicate(timeout=100)
    assert process.returncode == 0, said


# -- jobs and their configuration


def test_every_job_has_one_primary_config_and_the_other_way_round() -> None:
    primaries = {path.stem for path in CONF.glob("*.yaml")}
    assert primaries == set(job_names()), "each jobs/<job>.py has one conf/<job>.yaml, and nothing else lies there"


@pytest.mark.parametrize("name", job_names())
def test_a_job_is_a_schema_resolve_and_run_headed_by_commands(name: str) -> None:
    job = load_job(name)
    assert {"Config", "resolve", "run"} <= set(vars(job))
    lines = (job.__doc__ or "").splitlines()
    assert any(line.strip().startswith(f"hpctool {name}") for line in lines[1:4]), (
        "a job's docstring opens with commands"
    )


def whole_schema(name: str) -> type:
    schema: type = load_job(name).Config
    return schema


@pytest.mark.parametrize("name", job_names())
def test_every_value_of_a_job_stands_in_conf_and_has_a_type(name: str) -> None:
    cfg = config.compose(name).cfg
    plain = config.flatten(OmegaConf.to_container(cfg, resolve=False))
    there = {".".join(key.split(".")[:n]) for key in plain for n in range(1, key.count(".") + 2)}
    config.typed(cfg, whole_schema(name))
    report([
        f"conf/{name}.yaml gives {key} no value: defaults stand in conf/, `???` where only the user knows"
        for key in config.schema_keys(whole_schema(name))
        if key not in there
    ])  # fmt: skip


def groups() -> dict[str, list[str]]:
    folders = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "__pycache__")
    return {folder.name: config.group_choices(folder.name) for folder in folders}


@functools.cache
def defaults(job: str) -> dict[str, str | None]:
    """The groups of a job's primary config and what they default to."""
    cfg = OmegaConf.to_container(OmegaConf.load(CONF / f"{job}.yaml"))
    assert isinstance(cfg, dict)
    named: list[dict[str, str | None]] = [item for item in cfg["defaults"] if isinstance(item, dict)]
    return {group: choice for item in named for group, choice in item.items()}


def nothing_is_a_choice(group: str) -> bool:
    return any(group in defaults(job) and defaults(job)[group] is None for job in job_names())


def test_a_group_has_a_choice_to_make() -> None:
    report([
        f"conf/{group} has {len(choices)} choice: a group exists once it has two"
        for group, choices in groups().items()
        if len(choices) + nothing_is_a_choice(group) < 2
    ])  # fmt: skip


def of_experiment(choice: str) -> str:
    """The job that an experiment is a recipe for: the one in the command that heads it."""
    found = re.search(r"# hpctool (\w+) .*experiment=", (CONF / "experiment" / f"{choice}.yaml").read_text())
    assert found, f"conf/experiment/{choice}.yaml is not headed by its command"
    return found[1]


@pytest.mark.slow
def test_every_choice_of_every_group_fits_the_jobs_that_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    unused = set(groups())
    for name in job_names():
        # Most groups are the same for every job; a job's own are tried with it.
        for group in sorted(set(defaults(name)) & unused):
            unused.discard(group)
            for choice in groups()[group]:
                job = of_experiment(choice) if group == "experiment" else name
                config.typed(config.compose(job, [f"{group}={choice}"]).cfg, whole_schema(job))
    assert not unused, f"no job's defaults name conf/{', conf/'.join(sorted(unused))}: use it or delete it"


def test_an_experiment_is_headed_by_the_command_that_runs_it() -> None:
    report([
        f"{shown(path)}: begin it with '# hpctool <job> experiment={path.stem} …'"
        for path in sorted((CONF / "experiment").glob("*.yaml"))
        if f"experiment={path.stem}" not in path.read_text().split("\n\n")[0]
    ])  # fmt: skip
