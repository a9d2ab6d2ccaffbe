"""A prepare of several nodes makes what one process makes, also when it is taken from the nodes in the middle."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import pytest

from hpctool.data.version import open_version
from hpctool.rundir import RunDir
from tests.slurm.survive import Lab

#: A reader whose pieces take a second each, and who notes when it has read one.
READER = """
import time
from pathlib import Path
import numpy as np

class Slow:
    classes = ["even", "odd"]

    def __init__(self, pieces, seconds, notes):
        self.count, self.seconds, self.notes = pieces, seconds, Path(notes)

    def pieces(self):
        return list(range(self.count))

    def rows(self, piece):
        time.sleep(self.seconds)
        for row in range(piece * 50, piece * 50 + 50):
            label = ["even", None, "odd"][row % 3]
            yield {"key": f"row {row}", "label": label, "x": np.float32([row, 1]), "text": "x" * (row % 7)}
        with self.notes.open("a") as file:
            file.write(f"{piece}\\n")
"""


def prepare(lab: Lab, name: str, seconds: float, *overrides: str) -> RunDir:
    (lab.folder / "myreaders.py").write_text(READER)
    source = [f"+source.{key}={value}" for key, value in (("pieces", 16), ("seconds", seconds))]
    arguments = ["prepare", f"name={name}", f"data.name={name}", "data.row_group_rows=64", "data.split_by=stratified"]
    notes = lab.folder / f"{name}.notes"
    notes.touch()
    notes.chmod(0o666)
    done = lab.hpctool(
        *arguments,
        "source=own",
        "source._target_=myreaders.Slow",
        *source,
        f"+source.notes={notes}",
        *overrides,
        "--json",
    )
    return RunDir(lab.runs / json.loads(done.stdout)["runs"][0])


def manifest(lab: Lab, name: str) -> str:
    version = open_version(lab.folder / "datasets", name)
    return version.store.commit_of(version.commit).manifest


@pytest.mark.mpi
def test_two_nodes_prepare_the_same_manifest_as_one_process_and_read_no_finished_piece_again(lab: Lab) -> None:
    prepare(lab, "alone", 0.0)
    wide = ["cluster=slurm", "resources.nodes=2", "resources.tasks_per_node=2", "resources.time=10"]
    run = prepare(lab, "wide", 1.5, *wide, "cluster.mpi=pmix", "cluster.signal_delay_s=20")
    notes = Path(lab.folder, "wide.notes")
    end = time.monotonic() + 90
    while len(notes.read_text().split()) < 5:
        assert time.monotonic() < end, lab.words(run)
        time.sleep(0.1)
    # Taken away as a preemption does, and started again.
    lab.cluster.as_root("scontrol", "requeue", run.story().slurm_job_id)
    story = lab.until_ended(run, attempts=2, timeout_s=240)
    assert story.state == "completed", lab.words(run)
    assert manifest(lab, "wide") == manifest(lab, "alone")
    assert open_version(lab.folder / "datasets", "wide").num_rows == 800
    read = Counter(notes.read_text().split())
    assert len(read) == 16
    # Each of the four ranks may have been in the middle of one, between its last row and its note.
    assert sum(count - 1 for count in read.values()) <= 4, read
    assert list(Path(lab.folder, "datasets", "wide", "tmp").glob("prepare-*")) == []
