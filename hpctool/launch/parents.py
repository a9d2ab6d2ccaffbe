"""What a run may come after (`after=<run|sweep>`): a run, a cell that has not begun, or a sweep."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from hpctool.errors import InputError, UnknownName, listing
from hpctool.launch import cells
from hpctool.launch.identity import sweep_identity
from hpctool.launch.job import Input
from hpctool.rundir import RunDir, list_run_ids


@dataclass(frozen=True)
class Parent:
    """A run or a sweep by its full id and identity, and the cells of a sweep in order; a search has none."""

    input: Input
    cells: list[Input] = field(default_factory=list)

    def of_cell(self, index: int, count: int, named: str | None) -> Input:
        """What one of `count` cells comes after: the run that it is made from, the parent's cell of the same index
        where both have equally many, else all of the parent.
        """
        by_id = {cell.name: cell for cell in self.cells}
        if named in by_id:
            return by_id[named]
        return self.cells[index] if len(self.cells) == count else self.input


def find(runs: Path, name: str) -> Parent:
    """The run, cell or sweep whose id is `name` or begins with it. Raises UnknownName, InputError."""
    there = list_run_ids(runs)
    sweeps = {
        sweep_id: cells.read_sweep(cells.sweeps_folder(runs) / sweep_id) for sweep_id in cells.list_sweep_ids(runs)
    }
    waiting = {run_id: sweep for sweep in sweeps.values() for run_id in sweep.run_ids}
    known = {*there, *sweeps, *waiting}
    found = [name] if name in known else sorted(one for one in known if one.startswith(name))
    if len(found) > 1:
        raise InputError(f"after={name} is the beginning of {len(found)} ids: {listing(found)}. Type more of it.")
    if not found:
        raise UnknownName("run or sweep", name, [*there, *sweeps], f"They lie in {runs}.")
    full = found[0]
    if full in sweeps:
        body = sweeps[full].body["cells"]
        members = [Input("run", cell["run"], cell["identity"]) for cell in body]
        sweep = Input("sweep", full, sweep_identity([one.id for one in members]))
        # Workers of a search are nobody's parents: what comes after it comes after all of them.
        return Parent(sweep, [] if any(cell.get("ranks_of") for cell in body) else members)
    if full in there:
        return Parent(Input("run", full, RunDir(runs / full).record()["identity"]))
    of = waiting[full]
    return Parent(Input("run", full, of.body["cells"][of.run_ids.index(full)]["identity"]))
