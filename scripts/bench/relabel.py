"""What it costs to relabel 1 % of a dataset, here and with DVC: python scripts/bench/relabel.py [rows] [bytes per row]

DVC comes into a venv of its own (HPCTOOL_BENCH_DVC, else made in the temporary folder) and is measured inside its
process, without the start of its command: `Repo.add` of what changed, and git's commit. Twice: the dataset as a folder
of HDF5 shards that hold features and labels, which is what a dataset here is to its user; and the labels alone, in a
file of their own beside features that DVC is not asked about, its best case. Seconds are the wall's; beside them those
of a core, which load by others does not change much. Ours are the best of three relabels, one after the other.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import h5py
import numpy as np

from hpctool.data.commit import Draft
from hpctool.data.labels import relabel
from hpctool.data.manifest import CONTENT, IDENTITY_COLUMNS, LABEL, UID, Column, Manifest, RowGroup
from hpctool.data.stats import label_counts
from hpctool.data.store import Store
from hpctool.data.version import Version

GROUP_ROWS, NUM_CLASSES, SHARE = 65_536, 10, 0.01

ADD = """
import os, sys, time, subprocess
from dvc.repo import Repo
repo = Repo(".")
start, before = time.perf_counter(), os.times()
repo.add(sys.argv[1])
subprocess.run(["git", "add", "-A"], check=True)
subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", "commit", "-qm", "look"], check=True)
print("seconds", time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4]))
"""


def groups(num_rows: int, row_bytes: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Features, uids and labels, a row group at a time; always the same."""
    rng = np.random.default_rng(0)
    for first in range(0, num_rows, GROUP_ROWS):
        count = min(GROUP_ROWS, num_rows - first)
        x = np.frombuffer(rng.bytes(count * row_bytes), np.uint8).reshape(count, row_bytes)
        yield x, rng.integers(0, 256, (count, 16), np.uint8), rng.integers(0, NUM_CLASSES, count)


def chosen(num_rows: int) -> np.ndarray:
    return np.sort(np.random.default_rng(1).choice(num_rows, int(num_rows * SHARE), replace=False))


def size_of(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


@dataclass(frozen=True)
class Cost:
    """Of one commit: seconds on the wall and of a core, bytes written."""

    wall_s: float
    cpu_s: float
    written: int


def ours(folder: Path, num_rows: int, row_bytes: int) -> Cost:
    store = Store.create(folder, "bench")
    row_groups, labels = [], []
    for x, uids, y in groups(num_rows, row_bytes):
        identity = {UID: uids, CONTENT: uids}
        row_groups.append(RowGroup(len(y), [store.put({"x": x}), store.put(identity), store.put({LABEL: y})]))
        labels.append(y)
    classes = [str(k) for k in range(NUM_CLASSES)]
    columns = {
        "x": Column("x", np.dtype(np.uint8), (row_bytes,)),
        LABEL: Column(LABEL, np.dtype(np.int64), (), classes=classes, role="label"),
        **{column.name: column for column in IDENTITY_COLUMNS},
    }
    splits = {"train": np.arange(num_rows)}
    counts = label_counts(np.concatenate(labels), splits, classes)
    stats = {"duplicates": {}, "splits": {"train": {"rows": num_rows, "features": {}, **counts["train"]}}}
    manifest = Manifest(columns, row_groups, store.put(splits), {"by": "uid", "fractions": [["train", 1.0]]}, stats)
    manifest_id = store.put_manifest(manifest)
    first = store.commit("main", lambda tip: Draft(manifest_id, "first", {"kind": "prepare"}))
    version, rows = Version(store, "main", first.id), chosen(num_rows)
    uids, old = version.uids(rows), version.read(LABEL)[rows]
    found = []
    for times in range(1, 4):
        labels_now = ((old + times) % NUM_CLASSES).tolist()
        wanted = zip(uids, labels_now, strict=True)
        changes = [(uid, label, "ann", "second look", "2026-01-01T00:00:00Z") for uid, label in wanted]
        before, start, used = size_of(store.root), time.perf_counter(), time.process_time()
        relabel(store, "main", changes, "second look")
        wall_s, cpu_s = time.perf_counter() - start, time.process_time() - used
        found.append(Cost(wall_s, cpu_s, size_of(store.root) - before))
    return min(found, key=lambda cost: cost.wall_s)


def theirs(folder: Path, python: Path, num_rows: int, row_bytes: int, apart: bool) -> Cost:
    """What DVC takes; `apart`: the labels in a file of their own."""
    folder.mkdir()
    data = folder / "data"
    data.mkdir()
    first, rows, labels = 0, chosen(num_rows), []
    for number, (x, _, y) in enumerate(groups(num_rows, row_bytes)):
        labels.append(y)
        if not apart:
            with h5py.File(data / f"{number:05d}.h5", "w") as file:
                file["x"], file["label"] = x, y
    if apart:
        np.save(data / "labels.npy", np.concatenate(labels))
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "config", "core.analytics", "false"]):
        program = str(python.parent / "dvc") if command[0] == "dvc" else command[0]
        subprocess.run([program, *command[1:]], cwd=folder, check=True)
    add(folder, python)
    for number, y in enumerate(labels):
        inside = rows[(rows >= first) & (rows < first + len(y))] - first
        y[inside] = (y[inside] + 1) % NUM_CLASSES
        first += len(y)
        path = data / f"{number:05d}.h5"
        if not apart:
            path.chmod(0o644)
            with h5py.File(path, "r+") as file:
                file["label"][...] = y
    if apart:
        np.save(data / "labels.npy", np.concatenate(labels))
    os.sync()
    before = size_of(folder / ".dvc")
    wall_s, cpu_s = add(folder, python)
    return Cost(wall_s, cpu_s, size_of(folder / ".dvc") - before)


def add(folder: Path, python: Path) -> tuple[float, float]:
    done = subprocess.run([str(python), "-c", ADD, "data"], cwd=folder, capture_output=True, text=True, check=True)
    said = next(line.split() for line in done.stdout.splitlines() if line.startswith("seconds"))
    return float(said[1]), float(said[2])


def dvc_python(folder: Path) -> Path:
    venv = Path(os.environ.get("HPCTOOL_BENCH_DVC", folder / "dvc"))
    if not (venv / "bin" / "dvc").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        subprocess.run([str(venv / "bin" / "pip"), "install", "-q", "dvc"], check=True)
    return venv / "bin" / "python"


def main(num_rows: int, row_bytes: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = dvc_python(folder)
        version = subprocess.run([str(python.parent / "dvc"), "--version"], capture_output=True, text=True).stdout
        print(f"{num_rows:,} rows of {row_bytes:,} bytes, {SHARE:.0%} relabelled; DVC {version.strip()}")
        os.sync()
        mine = ours(folder / "ours", num_rows, row_bytes)
        shutil.rmtree(folder / "ours")
        found = {"hpctool": mine}
        for title, apart in (("DVC, folder of shards", False), ("DVC, labels alone", True)):
            found[title] = theirs(folder / "theirs", python, num_rows, row_bytes, apart)
            shutil.rmtree(folder / "theirs")
    print(f"{'':24}{'wall, s':>10}{'times':>8}{'core, s':>10}{'times':>8}{'MB written':>12}{'of labels':>11}")
    for title, cost in found.items():
        wall, core = (
            f"{cost.wall_s:10.2f}{cost.wall_s / mine.wall_s:8.1f}",
            f"{cost.cpu_s:10.2f}{cost.cpu_s / mine.cpu_s:8.1f}",
        )
        print(f"{title:24}{wall}{core}{cost.written / 1e6:12.1f}{cost.written / (8 * num_rows):10.2f}×")
    print(f"The load was {os.getloadavg()[0]:.0f} on {os.cpu_count()} cores.")
    print(json.dumps({title: asdict(cost) for title, cost in found.items()}))


if __name__ == "__main__":
    main(*(int(argument) for argument in (sys.argv[1:] + ["1000000", "3072"][len(sys.argv) - 1 :])))
