"""A sweep's folder, and its cells: they live in sweep.json until they start, so ten thousand cost what ten cost.

runs/sweeps/<name>-<8 hex>/sweep.json     bases (whole configs), cells (what differs from a base), ids, overrides
                           environment.txt  the packages at submission, for the cells' folders
                           log/ …         what was submitted and cancelled (sweeplog.py)
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from hpctool import config, files
from hpctool.errors import InputError, NewerFormat, UnknownName
from hpctool.launch import snapshot, sweeplog
from hpctool.rundir import RunDir, create_run, list_run_ids

SWEEP_FORMAT = 1


@dataclass(frozen=True)
class Sweep:
    """A sweep as sweep.json has it."""

    path: Path
    body: dict[str, Any]

    @property
    def id(self) -> str:
        return self.path.name

    @functools.cached_property
    def run_ids(self) -> list[str]:
        """The run ids of the cells, in order of index; a run's folder is there once its cell has started."""
        return [cell["run"] for cell in self.body["cells"]]


def sweeps_folder(runs: Path) -> Path:
    """Where sweeps lie."""
    return runs / "sweeps"


def read_sweep(path: Path) -> Sweep:
    """Read a sweep's folder. Raises UnknownName, CorruptError, NewerFormat."""
    try:
        body = files.read_json(path / "sweep.json")
    except FileNotFoundError as error:
        raise UnknownName("sweep", path.name, list_sweep_ids(path.parent.parent)) from error
    if body.get("format", 0) > SWEEP_FORMAT:
        raise NewerFormat(path / "sweep.json", "sweep", body["format"], SWEEP_FORMAT)
    return Sweep(path, body)


def list_sweep_ids(runs: Path) -> list[str]:
    """The ids of all sweeps below a runs folder."""
    return sorted(path.parent.name for path in sweeps_folder(runs).glob("*/sweep.json"))


def find_sweep(runs: Path, name: str) -> Sweep:
    """The sweep whose id is `name` or begins with it. Raises UnknownName, InputError where it is ambiguous."""
    found = [i for i in list_sweep_ids(runs) if i == name or i.startswith(name)]
    exact = [i for i in found if i == name] or found
    if len(exact) > 1:
        raise InputError(f"'{name}' is the beginning of {len(exact)} sweeps: {', '.join(exact)}. Type more of it.")
    if not exact:
        raise UnknownName("sweep", name, list_sweep_ids(runs))
    return read_sweep(sweeps_folder(runs) / exact[0])


def members(runs: Path, sweep: Sweep) -> list[str]:
    """The runs that a sweep is about: those of its cells, or those that its cells, being workers, have made."""
    if not any(cell.get("ranks_of") for cell in sweep.body["cells"]):
        return sweep.run_ids
    others = (RunDir(runs / run_id) for run_id in list_run_ids(runs) if run_id not in set(sweep.run_ids))
    return [rundir.id for rundir in others if rundir.record().get("sweep") == sweep.id]


def plain_config(sweep: Sweep, index: int) -> dict[str, Any]:
    """A cell's configuration. It shares what is alike with other cells, so it is not to be changed."""
    cell = sweep.body["cells"][index]
    return config.overlaid(sweep.body["bases"][cell["base"]], {tuple(k.split(".")): v for k, v in cell["set"].items()})


def open_cell(runs: Path, sweep_id: str, index: int) -> RunDir:
    """The run folder of a cell, made if it is not there yet. Raises UnknownName, OSError."""
    sweep = read_sweep(sweeps_folder(runs) / sweep_id)
    cell = {key: value for key, value in sweep.body["cells"][index].items() if key not in ("base", "set", "run")}
    cell["cell"] = cell.pop("index")
    shared = {key: sweep.body[key] for key in ("job", "varied", "sweep", "code", "cwd")}
    # Who submitted it last may have repaired the code.
    shared["code"] = sweeplog.SweepLog(sweep.path).code() or shared["code"]
    plain = plain_config(sweep, index)
    # What the sweep is called, its cells need not be: `name` may vary.
    shared["name"] = plain["name"]
    texts = {
        "config.yaml": OmegaConf.to_yaml(OmegaConf.create(plain)),
        "overrides.txt": "\n".join(cell["overrides"]) + "\n",
    }
    return create_run(runs, {**shared, **cell}, texts | submitted_texts(runs, sweep_id, shared["code"]))


def submitted_texts(runs: Path, sweep_id: str, code: dict[str, Any]) -> dict[str, str]:
    """What a run's folder keeps of its submission, from the copies that a sweep's runs share; by name of file.

    Sweeps of earlier versions have none.
    """
    environment = sweeps_folder(runs) / sweep_id / "environment.txt"
    found = {
        "code.patch": snapshot.patch_of(runs, code),
        "environment.txt": environment.read_text() if environment.exists() else None,
    }
    return {name: text for name, text in found.items() if text is not None}
