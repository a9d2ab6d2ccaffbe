"""What is loaded is what was saved, or it is not loaded."""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from hpctool.checkpoint import Checkpointer, load, state_digest
from hpctool.checkpoint.manifest import verify
from hpctool.checkpoint.restore import read
from hpctool.errors import CorruptError, NewerFormat, OperationError
from hpctool.files import canonical_json, sha256_bytes
from hpctool.rundir import RunDir
from hpctool.world import World

Begin = Callable[[RunDir], RunDir]
GOLDEN = Path(__file__).parents[1] / "assets" / "checkpoint_v1" / "step-00000007.a2"
GOLDEN_2 = Path(__file__).parents[1] / "assets" / "checkpoint_v2" / "step-00000007.a2"


def flip(path: Path, where: float = 0.5) -> None:
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * where)] ^= 1
    path.write_bytes(raw)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit among the tensors": lambda folder: flip(folder / "tensors-00000.safetensors", 0.9),
    "a flipped bit in the structure": lambda folder: flip(folder / "state.json"),
    "a flipped bit in the manifest": lambda folder: flip(folder / "MANIFEST.json"),
    "a truncated file": lambda folder: truncate(folder / "tensors-00000.safetensors"),
    "a truncated manifest": lambda folder: (folder / "MANIFEST.json").write_bytes(b'{"format": 1,'),
    "another manifest": lambda folder: (folder / "MANIFEST.json").write_bytes(b"[]"),
    "a missing file": lambda folder: (folder / "tensors-00000.safetensors").unlink(),
    "a missing manifest": lambda folder: (folder / "MANIFEST.json").unlink(),
}


@pytest.fixture
def two(run: RunDir) -> RunDir:
    """A run with the checkpoints of steps 1 and 2."""
    saver = Checkpointer(run, World())
    for step in (1, 2):
        saver.save({"w": np.full(100, step)}, step, info={"samples": step * 10})
    return run


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(two: RunDir, begin: Begin, damage: str) -> None:
    DAMAGES[damage](two.checkpoint(2))
    second = begin(two)
    with pytest.warns(UserWarning, match=r"goes on from step 1 .* step-00000002\.a1 is damaged"):
        found = Checkpointer(second, World()).restore()
    assert found is not None
    assert (found.step, found.info, found.state["w"].tolist()) == (1, {"samples": 10}, [1] * 100)
    assert two.checkpoint(2).with_name("step-00000002.a1.corrupt-1").is_dir()
    assert not two.checkpoint(2).exists()


def test_what_is_saved_after_going_around_damage_counts_as_the_newest(two: RunDir, begin: Begin) -> None:
    flip(two.checkpoint(2) / "state.json")
    second = begin(two)
    saver = Checkpointer(second, World())
    with pytest.warns(UserWarning, match="damaged"):
        saver.restore()
    (two.checkpoints / "step-00000002.a1.corrupt-1").rename(two.checkpoint(2))  # somebody tidies up
    saver.save({"w": np.zeros(1)}, 2)
    found = Checkpointer(begin(two), World()).restore()
    assert found is not None
    assert found.path == second.checkpoint(2)


def test_a_folder_that_is_gone_is_gone_around_and_said(two: RunDir, begin: Begin) -> None:
    shutil.rmtree(two.checkpoint(2))
    with pytest.warns(UserWarning, match=r"step-00000002\.a1 is gone"):
        found = Checkpointer(begin(two), World()).restore()
    assert found is not None
    assert found.step == 1


def test_names_of_what_is_set_aside_are_never_reused(two: RunDir, begin: Begin) -> None:
    two.checkpoint(2).with_name("step-00000002.a1.corrupt-1").mkdir()
    truncate(two.checkpoint(2) / "state.json")
    with pytest.warns(UserWarning, match="corrupt-2"):
        Checkpointer(begin(two), World()).restore()


def test_where_none_is_whole_nothing_starts_from_zero(two: RunDir, begin: Begin) -> None:
    for step in (1, 2):
        flip(two.checkpoint(step) / "state.json")
    saver = Checkpointer(begin(two), World())
    with pytest.raises(CorruptError, match="of 2 committed checkpoints none is whole"):
        saver.restore()
    with pytest.raises(CorruptError, match="is gone"):
        saver.restore()


def test_without_a_commit_there_is_nothing_to_restore(run: RunDir) -> None:
    assert Checkpointer(run, World()).restore() is None
    run.checkpoint(5).mkdir(parents=True)  # a folder alone is no checkpoint
    assert Checkpointer(RunDir(run.path), World()).restore() is None


def test_a_reader_goes_around_damage_and_changes_nothing(two: RunDir) -> None:
    flip(two.checkpoint(2) / "state.json")
    before = sorted(two.path.rglob("*"))
    with pytest.warns(UserWarning, match="damaged"):
        found = Checkpointer(RunDir(two.path), World()).restore()
    assert found is not None
    assert found.step == 1
    assert sorted(two.path.rglob("*")) == before


def test_nothing_is_resumed_from_a_folder_that_others_can_write_but_it_can_be_read(two: RunDir, begin: Begin) -> None:
    two.checkpoint(2).chmod(0o777)
    with pytest.raises(OperationError, match="others may have written"):
        Checkpointer(begin(two), World()).restore()
    assert load(two.checkpoint(2)).step == 2
    found = Checkpointer(RunDir(two.path), World()).restore()
    assert found is not None
    assert found.step == 2


def test_a_newer_format_is_refused_and_left_in_its_place(two: RunDir, begin: Begin) -> None:
    path = two.checkpoint(2) / "MANIFEST.json"
    path.write_text(path.read_text().replace('"format": 2', '"format": 3'))
    with pytest.raises(NewerFormat, match="format 3"):
        Checkpointer(begin(two), World()).restore()
    assert path.exists()


def test_a_manifest_that_is_consistent_but_not_the_committed_one_is_damage(two: RunDir, begin: Begin) -> None:
    path = two.checkpoint(2) / "MANIFEST.json"
    body = json.loads(path.read_text())
    body["info"]["samples"] = 99
    body["digest"] = sha256_bytes(canonical_json({k: v for k, v in body.items() if k != "digest"}))
    path.write_text(json.dumps(body))
    verify(two.checkpoint(2))
    with pytest.warns(UserWarning, match="not the manifest that was committed"):
        Checkpointer(begin(two), World()).restore()


def test_what_cannot_be_asked_is_not_called_damaged(unprivileged: Path, begin: Begin) -> None:
    run = begin(RunDir(unprivileged / "run"))
    run.path.chmod(0o700)
    folder = Checkpointer(run, World()).save({"w": np.ones(3)}, 1)
    (folder / "state.json").chmod(0)
    with pytest.raises(PermissionError):
        Checkpointer(RunDir(run.path), World()).restore()
    assert folder.is_dir()


def test_the_golden_checkpoint_of_format_1_reads_for_ever() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(GOLDEN)
    assert (found.step, found.attempt, found.world_size, found.per_rank) == (7, 2, 2, None)
    assert found.info == {"samples": 1792, "fingerprint": {"torch": "2.13.0"}}
    state = found.state
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    assert torch.equal(state["model"]["layers.0.weight"], weight)
    assert state["model"]["tied"] is state["model"]["layers.0.weight"]
    assert state["model"]["half"].dtype == torch.bfloat16
    assert state["model"]["half"].tolist() == [0.5, -2.0]
    assert state["model"]["phase"].tolist() == [1 - 2j]
    assert state["optimizer"]["state"][0]["exp_avg"].tolist() == [0.25, 0.5]
    assert state["optimizer"]["param_groups"] == [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0]}]
    assert state["counts"].dtype == np.int16
    assert state["counts"].tolist() == [[1, 2], [3, 4]]
    assert math.isnan(state["best"][0])
    assert state["best"][1:] == [-math.inf, 2**127 + 1, None, True, "~ü/", {"~odd": 1}]
    assert state["nothing"].shape == (0, 4)
    assert state["scalar"].shape == ()
    for rank in (0, 1):
        own = read(verify(GOLDEN), rank, 2).per_rank
        assert own["rank"] == rank
        assert own["stream"].tolist() == [rank, 2**63]
    assert state_digest(state) == "21dc428e0524e8c40cc09fe19de9ef75e5e8664bfb7b4d68631cc6d22607e517"


def test_the_golden_checkpoint_of_format_2_reads_for_ever() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = load(GOLDEN_2)
    assert (found.step, found.attempt, found.world_size, found.per_rank) == (7, 2, 2, None)
    rows = torch.arange(15, dtype=torch.float32).reshape(5, 3)
    model = found.state["model"]
    assert torch.equal(model["rows"], rows)
    assert model["rows again"] is model["rows"]
    assert torch.equal(model["columns"], rows.bfloat16())
    assert torch.equal(model["everywhere"], model["layers.0.weight"] + 1)
    body = verify(GOLDEN_2).body
    assert body["param_digest"] == "02ae207ded6e4519d2741728cc88a5aecbcc105aa7690a5b7e591138e36171f9"
    assert read(verify(GOLDEN_2), 1, 2).per_rank["stream"].tolist() == [1, 2**63]
    assert state_digest(found.state) == "bee373c6a664b597258fe13a484fffff8c8ce65380344d3c4388f6e17bfb76e4"
    older = verify(GOLDEN).body
    assert (older["before"], older["param_digest"], older["state_digest"]) == ("", "", "")
