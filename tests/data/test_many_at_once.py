"""Many processes write, read and collect at once, and are killed: nothing is lost, nothing is seen half.

By hand, in the size that is promised: HPCTOOL_MANY=8x50 scripts/test tests/data/test_many_at_once.py
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool import files
from hpctool.data.labels import relabel
from hpctool.data.prepare import Prepared
from hpctool.data.store import Store
from hpctool.data.verify import verify
from hpctool.data.version import open_version
from tests.data.harm import age

Spawn = Callable[..., "subprocess.Popen[str]"]

NUM_WRITERS, NUM_COMMITS = map(int, os.environ.get("HPCTOOL_MANY", "4x6").split("x"))

# Relabels its own rows one by one and prints what was acknowledged: commit, row and label.
WRITER = """
import sys
from pathlib import Path
from hpctool.data.labels import relabel
from hpctool.data.version import open_version
datasets, first, step, begin, count = Path(sys.argv[1]), *map(int, sys.argv[2:])
version = open_version(datasets, "tiny")
uids, store, before = version.uids(), version.store, version.read("x").reshape(-1) % 4
for number in range(begin, begin + count):
    row, round = (first + number * step) % len(uids), number * step // len(uids)
    label = (int(before[row]) + 1 + round) % 4
    commit = relabel(store, "main", [(uids[row], label, "me", str(number), "now")], f"writer {first}")
    print(commit.id, row, label, flush=True)
"""

# Opens the newest version again and again and reads all of it; ends with what it could not read, when told to.
READER = """
import sys, threading
from pathlib import Path
import numpy as np
from hpctool.data.reader import Reader
from hpctool.data.version import open_version
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
seen = 0
while not stop.is_set():
    version = open_version(Path(sys.argv[1]), "tiny")
    with Reader(version, ["x", "label"]) as reader:
        rows = reader.gather(np.arange(version.num_rows))
    assert sorted(rows["x"].reshape(-1).tolist()) == list(range(version.num_rows)), "a row is not what it was"
    assert rows["label"].min() >= 0 and rows["label"].max() < 4
    seen += 1
print(seen)
"""

# Collects again and again. The grace is two hours instead of two weeks.
COLLECTOR = """
import sys, threading
from pathlib import Path
from hpctool.data.gc import Keep, gc
from hpctool.data.store import Store
stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
moved = 0
while not stop.is_set():
    found = gc(Store.open(Path(sys.argv[1]), "tiny"), delete=True, keep=Keep(7200, 7200, 0))
    moved += sum(count for count, _ in found.moved.values())
print(moved)
"""


@pytest.fixture
def rows(prepare_arrays: Callable[..., Prepared], datasets: Path, primitive: files.Primitive) -> Store:
    """A dataset of 64 rows in four row groups, with old objects that nothing needs and that writers will make again."""
    prepare_arrays(x=np.arange(64), label=np.arange(64) % 4)
    version = open_version(datasets, "tiny")
    store = version.store
    if primitive == "symlink":
        record = files.read_json(store.layout.format_file)
        files.write_json(store.layout.format_file, record | {"primitive": "symlink"})
        store = Store.open(datasets, "tiny")
    store.create_branch("side", version.commit)
    for row in range(0, 64, 8):
        relabel(store, "side", [(version.uids(np.array([row]))[0], 1, "me", "", "t")], "look")
    store.delete_branch("side")
    age(store.root, 30)
    return store


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_commits_of_many_writers_are_kept_while_others_read_and_collect(
    rows: Store, datasets: Path, spawn: Spawn
) -> None:
    others = [spawn(code, datasets, stdin=subprocess.PIPE) for code in (READER, COLLECTOR)]
    writers = [spawn(WRITER, datasets, n, NUM_WRITERS, 0, NUM_COMMITS) for n in range(NUM_WRITERS)]
    wrote = [writer.communicate(timeout=800) for writer in writers]
    acknowledged = [line.split() for out, _ in wrote for line in out.splitlines()]
    said = [other.communicate("", timeout=100) for other in others]
    assert not any(error for _, error in [*wrote, *said])
    assert [process.returncode for process in [*writers, *others]] == [0] * len([*writers, *others]), said
    assert int(said[0][0]) > 0
    assert int(said[1][0]) >= 8
    check(rows, acknowledged)
    made = [one for one in rows.history(rows.resolve("main")) if one.kind == "relabel"]
    assert sorted(one.id for one in made) == sorted(commit for commit, *_ in acknowledged)
    assert len(made) == NUM_WRITERS * NUM_COMMITS
    assert all(len(one.parents) == 1 for one in made)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_writers_that_are_killed_lose_nothing_that_was_acknowledged(rows: Store, datasets: Path, spawn: Spawn) -> None:
    others = [spawn(code, datasets, stdin=subprocess.PIPE) for code in (READER, COLLECTOR)]
    acknowledged: list[list[str]] = []
    kills = [0]

    def live(number: int) -> None:
        """One writer after the other, each killed at a random moment and the next going on where it was."""
        dice, done = random.Random(number), 0
        while done < NUM_COMMITS:
            writer = spawn(WRITER, datasets, number, NUM_WRITERS, done, NUM_COMMITS - done)
            assert writer.stdout is not None
            lines = [writer.stdout.readline()]
            if dice.random() < 0.8:
                time.sleep(dice.uniform(0, 0.3))
                kills[0] += writer.poll() is None
                writer.send_signal(signal.SIGKILL)
            lines += writer.communicate(timeout=800)[0].splitlines()
            # A line that the kill cut off was not acknowledged.
            whole = [line.split() for line in lines if len(line.split()) == 3]
            acknowledged.extend(whole)
            done += len(whole)

    threads = [threading.Thread(target=live, args=(number,)) for number in range(NUM_WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [other.communicate("", timeout=100) for other in others]
    assert [other.returncode for other in others] == [0, 0], said
    assert kills[0] > 0
    assert len(acknowledged) == NUM_WRITERS * NUM_COMMITS
    check(rows, acknowledged)


@pytest.mark.slow
def test_lost_replies_and_old_listings_of_nfs_lose_nothing(rows: Store, datasets: Path, spawn: Spawn) -> None:
    faulty = "from tests.data.faults import install; install({seed})\n" + WRITER
    writers = [spawn(faulty.replace("{seed}", str(n)), datasets, n, 3, 0, 8) for n in range(3)]
    on_pread = READER.replace('"label"]) as', '"label"], "pread") as')
    reader = spawn(faulty.replace("{seed}", "3").replace(WRITER, on_pread), datasets, stdin=subprocess.PIPE)
    wrote = [writer.communicate(timeout=300) for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0, 0], [error for _, error in wrote]
    read, said = reader.communicate("", timeout=100)
    assert (reader.returncode, int(read) > 0) == (0, True), said
    check(rows, [line.split() for out, _ in wrote for line in out.splitlines()])
    # A reply that was lost and taken for a lost race would have made a second commit.
    made = [one for one in rows.history(rows.resolve("main")) if one.kind == "relabel"]
    assert len(made) == 24
    faults: Counter[str] = Counter()
    for _, error in [*wrote, (read, said)]:
        faults.update(json.loads(error.splitlines()[-1]))
    wanted = [rows.primitive, "mkdir", "replace", "unlink", "old listing", "remembered as missing", "stale"]
    assert all(faults[kind] for kind in wanted), faults


def check(store: Store, acknowledged: list[list[str]]) -> None:
    """Everything acknowledged is in one line of commits, everything is whole, and the last word on each row stands."""
    history = [commit.id for commit in store.history(store.resolve("main"))]
    assert len(set(history)) == len(history)
    assert {commit for commit, *_ in acknowledged} <= set(history)
    assert verify(store, deep=True).damaged == []
    labels = open_version(store.root.parent, "tiny").read("label")
    place = {commit: number for number, commit in enumerate(reversed(history))}
    last = {int(row): (int(label), commit) for commit, row, label in sorted(acknowledged, key=lambda a: place[a[0]])}
    for row, (label, _) in last.items():
        assert labels[row] == label, f"row {row} lost the label that was acknowledged last"
