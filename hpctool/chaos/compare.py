"""The comparison: two runs that should have come to the same, down to the bit; where not, what differs first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.checkpoint import Commit, committed
from hpctool.checkpoint.digest import param_digest
from hpctool.checkpoint.flatten import flatten
from hpctool.checkpoint.manifest import verify
from hpctool.checkpoint.restore import read
from hpctool.checkpoint.things import leaves
from hpctool.errors import listing
from hpctool.rundir import RunDir
from hpctool.track.metrics import read_metrics

#: What a clock says differs every time.
_CLOCKS = ("samples_per_s", "data_wait", "step_s", "seconds")


@dataclass
class Difference:
    """What two runs do not have in common; empty where they are equal to the bit."""

    #: tensors and values of the last checkpoint, by path
    state: list[str] = field(default_factory=list)
    #: the same for what belongs to single ranks: `rank 2: rng/torch`
    per_rank: list[str] = field(default_factory=list)
    #: metrics, each with the first step at which they differ
    metrics: dict[str, int] = field(default_factory=dict)
    #: files in artifacts/
    artifacts: list[str] = field(default_factory=list)
    #: anything else, in words
    others: list[str] = field(default_factory=list)
    #: random streams of a program that never seeded them: a difference only if something else differs, too
    unseeded: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(found for name, found in vars(self).items() if name != "unseeded")

    def sentences(self) -> list[str]:
        """What differs, in words."""
        parts = {
            "metrics": [f"{name} from step {step}" for name, step in sorted(self.metrics.items(), key=lambda i: i[1])],
            "state of the last checkpoint": self.state,
            "state of single ranks": self.per_rank,
            "artifacts": self.artifacts,
        }
        return [
            *(f"  differs: {what}: {listing(found, 4)}" for what, found in parts.items() if found),
            *(f"  differs: {one}" for one in self.others),
        ]

    @property
    def first_step(self) -> int | None:
        """The first step at which a metric differs, if one does."""
        return min(self.metrics.values(), default=None)


def compare(straight: RunDir, broken: RunDir) -> Difference:
    """Compare what two completed runs have come to. Raises CorruptError, NewerFormat, OSError."""
    found = Difference()
    ends = [last(run) for run in (straight, broken)]
    if ends[0] and ends[1]:
        found.state, found.per_rank = compare_checkpoints(ends[0], ends[1])
    elif ends[0] or ends[1]:
        found.others.append("one of the runs has no checkpoint")
    results = [run.result() or {} for run in (straight, broken)]
    for key in ("step", "param_digest"):
        said = [str(result.get(key)) for result in results]
        if said[0] != said[1]:
            found.others.append(f"{key}: {said[0][:12]} straight, {said[1][:12]} broken")
    found.metrics = compare_curves(straight, broken)
    found.artifacts = compare_artifacts(straight, broken)
    found.unseeded = [path for path in found.per_rank if ": streams/" in path]
    found.per_rank = [path for path in found.per_rank if ": streams/" not in path]
    return found


def last(run: RunDir) -> Commit | None:
    """The run's newest committed checkpoint that is there."""
    return next((made for made in reversed(committed(run)) if made.path.exists()), None)


def compare_checkpoints(one: Commit, other: Commit) -> tuple[list[str], list[str]]:
    """The paths of what differs between two checkpoints: in the common state, and in what belongs to single ranks."""
    states, own = [], []
    for made in (one, other):
        manifest = verify(made.path, made.digest)
        size = manifest.body["world_size"]
        parts = [read(manifest, rank, size) for rank in range(size)]
        states.append(parts[0].state)
        own.append([part.per_rank for part in parts])
    if len(own[0]) != len(own[1]):
        return differing(*states), [f"{len(own[0])} ranks and {len(own[1])}"]
    ranks = [f"rank {r}: {path}" for r, pair in enumerate(zip(*own, strict=True)) for path in differing(*pair)]
    return differing(*states), ranks


def differing(one: Any, other: Any) -> list[str]:
    """The paths of tensors and values that two nested states do not share, in the order of the state."""
    left, right = dict(_ends(one)), dict(_ends(other))
    return [path for path in dict.fromkeys([*left, *right]) if left.get(path) != right.get(path)]


def compare_curves(straight: RunDir, broken: RunDir) -> dict[str, int]:
    """Metrics that differ, and the first step at which they do; a step that stands there twice differs, too."""
    found = {}
    curves = [_curves(run) for run in (straight, broken)]
    for name in sorted({*curves[0], *curves[1]}):
        points = [curve.get(name, []) for curve in curves]
        if points[0] != points[1]:
            longest = max(len(part) for part in points)
            padded = [[*part, *[(math.inf, "")] * (longest - len(part))] for part in points]
            first = next(pair for pair in zip(*padded, strict=True) if pair[0] != pair[1])
            found[name] = int(min(first[0][0], first[1][0]))
    return found


def _curves(run: RunDir) -> dict[str, list[tuple[float, str]]]:
    # As text: nan is equal to nan here.
    curves = read_metrics(run).items()
    return {
        name: [(float(step), float(value).hex()) for step, value in points]
        for name, points in curves
        if not any(clock in name for clock in _CLOCKS)
    }


def _ends(state: Any) -> Iterator[tuple[str, str]]:
    """The path and the digest of each tensor and value of a nested state."""
    flat = flatten(state)
    for path, end in leaves(state):
        if path in flat.tensors:
            yield path, param_digest({"": flat.tensors[path]})
        else:
            yield path, repr(end) if not hasattr(end, "dtype") else param_digest({"": end})


def compare_artifacts(straight: RunDir, broken: RunDir) -> list[str]:
    """Files in artifacts/ that one of two runs lacks, or has with other bytes."""
    there = [_files(run.path / "artifacts") for run in (straight, broken)]
    names = sorted({*there[0], *there[1]})
    return [name for name in names if there[0].get(name) != there[1].get(name)]


def _files(folder: Path) -> dict[str, str]:
    # The last attempt begins before chaos wakes the ranks that it has cut off; what these leave is nobody's picture.
    found = folder.rglob("*") if folder.exists() else ()
    paths = [path for path in found if path.is_file() and not files.is_temporary(path.name)]
    return {str(path.relative_to(folder)): files.sha256_file(path) for path in paths}
