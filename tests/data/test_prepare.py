"""Preparing is the same for any number of ranks, is done once, and leaves nothing behind when it cannot be done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hpctool import files
from hpctool.data.identity import uids_of_keys
from hpctool.data.layout import Layout
from hpctool.data.objects import StoredObject, read_array
from hpctool.data.prepare import Prepared
from hpctool.data.store import list_datasets
from hpctool.data.version import open_version
from hpctool.errors import ConfigError, InputError, SourceError, Stopped
from hpctool.launch import signals

Run = Callable[..., Prepared]

MPIRUN = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")

# One rank: prepares a dataset in row groups of 100 below the folder given, and prints the id of the manifest.
RANK = """
import sys
from hpctool import config
from hpctool.data.prepare import prepare
from hpctool.data.schema import PrepareConfig
from hpctool.data.store import Store
from hpctool.world import make_world
from pathlib import Path
root, kind, *more = sys.argv[1:]
overrides = [f"paths.root={root}", "data.name=digits", "data.row_group_rows=100"]
cfg = config.resolved(config.typed(config.compose("prepare", overrides + more).cfg, PrepareConfig))
with make_world(kind) as world:
    prepared = prepare(cfg, world)
    print(world.rank, world.size, Store.open(Path(root, "datasets"), "digits").commit_of(prepared.commit).manifest)
"""


def manifest_of(datasets: Path, ref: str) -> str:
    version = open_version(datasets, ref)
    return version.store.commit_of(version.commit).manifest


@pytest.mark.slow
def test_digits_are_what_scikit_learn_ships(prepare_with: Run, datasets: Path) -> None:
    from sklearn.datasets import load_digits

    prepared = prepare_with("data.name=digits", "data.tag=v1")
    digits, version = load_digits(), open_version(datasets, "digits@v1")
    assert (prepared.dataset, prepared.num_rows, prepared.unchanged) == ("digits@main", 1797, False)
    assert version.commit == prepared.commit
    image = version.columns["image"]
    assert (image.dtype.name, image.shape) == ("uint8", (8, 8, 1))
    places = version.find([uid.tobytes().hex() for uid in uids_of_keys([f"digits#{i}" for i in range(1797)])])
    assert np.array_equal(version.read("image", places)[..., 0], np.rint(digits.images * 255 / 16))
    assert np.array_equal(version.read("label", places), digits.target)
    assert version.classes == [str(i) for i in range(10)]
    # Permuted, so that reading in sequence is reading at random.
    assert np.abs(np.corrcoef(places, np.arange(1797))[0, 1]) < 0.1


@pytest.mark.slow
def test_another_seed_is_another_order_of_the_same_rows(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays()
    prepare_arrays("data.name=tiny@other", "seed=1")
    a, b = open_version(datasets, "tiny"), open_version(datasets, "tiny@other")
    assert a.uids() != b.uids()
    assert sorted(a.uids()) == sorted(b.uids())


@pytest.mark.slow
def test_a_tag_of_another_version_is_refused_and_the_branch_stays(prepare_arrays: Run, datasets: Path) -> None:
    first = prepare_arrays("data.tag=v1")
    with pytest.raises(InputError, match="which holds other data, and never moves"):
        prepare_arrays("data.tag=v1", x=np.arange(5), label=np.arange(5))
    with pytest.raises(InputError, match="'v1' is a tag"):
        prepare_arrays("data.name=tiny@v1")
    assert open_version(datasets, "tiny").commit == first.commit


@pytest.mark.slow
def test_rows_that_stand_in_two_splits_are_said(prepare_arrays: Run) -> None:
    x = np.arange(200) % 100
    notes = prepare_arrays(x=x, label=np.zeros(200, int)).notes
    assert notes[0].startswith("100 rows have exactly the features of another row (tiny.npz#")
    assert "stand in more than one split" in notes[1]


@pytest.mark.slow
def test_keys_that_stand_twice_are_refused_and_nothing_is_made(prepare_arrays: Run, datasets: Path) -> None:
    with pytest.raises(SourceError, match="the key 'b' stands more than once"):
        prepare_arrays("source.key=key", key=np.array(["a", "b", "b"]), x=np.arange(3), label=np.arange(3))
    assert list_datasets(datasets) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uid", "content", "label"])
def test_a_feature_cannot_take_a_name_of_ours(prepare_arrays: Run, datasets: Path, name: str) -> None:
    with pytest.raises(SourceError, match=f"a feature cannot be called '{name}'"):
        prepare_arrays("source.label=y", y=np.arange(3), **{name: np.arange(3)})
    assert not datasets.exists()


def test_an_empty_source_is_refused(prepare_arrays: Run, datasets: Path) -> None:
    with pytest.raises(SourceError, match="it has no rows"):
        prepare_arrays(x=np.zeros(0), label=np.zeros(0, int))
    assert not datasets.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "override", ["data.splits.train=2", "data.row_group_rows=0", "data.row_group_mb=0", "data.row_group_rows=many"]
)
def test_values_that_cannot_be_are_refused_by_their_key(prepare_arrays: Run, datasets: Path, override: str) -> None:
    with pytest.raises(ConfigError, match=override.split("=")[0].removesuffix(".train")):
        prepare_arrays(override)
    assert not datasets.exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["../up", "a b", "tiny@", "tiny@deadbeef"])
def test_names_that_cannot_be_are_refused(prepare_arrays: Run, datasets: Path, name: str) -> None:
    with pytest.raises(InputError):
        prepare_arrays(f"data.name='{name}'")
    assert not datasets.exists()


@pytest.mark.slow
def test_row_groups_are_no_bigger_than_asked(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays("data.row_group_mb=1", x=np.zeros((5, 100_000), np.float32), label=np.arange(5))
    assert [group.num_rows for group in open_version(datasets, "tiny").contents.row_groups] == [2, 2, 1]


@pytest.mark.slow
def test_asked_to_stop_it_stops_and_goes_on_from_what_is_written(prepare_arrays: Run, datasets: Path) -> None:
    try:
        signals.request_stop("preempted")
        with pytest.raises(Stopped, match="preempted"):
            prepare_arrays()
    finally:
        signals.clear()
    assert open_version(datasets, f"tiny@{prepare_arrays().commit[:12]}").num_rows == 40


@pytest.mark.slow
def test_three_ranks_make_the_same_manifest_as_one(tmp_path: Path, prepare_with: Run, datasets: Path) -> None:
    # Sums of these depend on the order in which they are added up.
    np.savez(tmp_path / "floats.npz", x=np.random.default_rng(0).normal(1.7e9, 1, (997, 5)), label=np.arange(997) % 4)
    source = ["source=npz", f"source.path={tmp_path / 'floats.npz'}"]
    meet = {"HPCTOOL_RENDEZVOUS": str(tmp_path / "meet.json"), "OMP_NUM_THREADS": "1"}
    ranks = []
    for rank in range(3):
        place = {"RANK": str(rank), "WORLD_SIZE": "3", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "3"}
        command = [sys.executable, "-c", RANK, str(tmp_path / "three"), "torch", *source]
        ranks.append(subprocess.Popen(command, env={**os.environ, **place, **meet}, stdout=subprocess.PIPE, text=True))
    said = [rank.communicate(timeout=100)[0].splitlines()[-1] for rank in ranks]
    prepare_with("data.name=digits", "data.row_group_rows=100", *source)
    manifest = manifest_of(datasets, "digits")
    assert said == [f"{rank} 3 {manifest}" for rank in range(3)]
    assert manifest_of(tmp_path / "three" / "datasets", "digits") == manifest


@pytest.mark.slow
@pytest.mark.mpi
@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun")
def test_mpi_ranks_make_the_same_manifest_as_one(tmp_path: Path, prepare_with: Run, datasets: Path) -> None:
    as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    command = [str(MPIRUN), "--oversubscribe", "-n", "2", sys.executable, "-m", "mpi4py", str(script)]
    done = subprocess.run(
        [*command, str(tmp_path / "two"), "mpi"],
        env={**os.environ, **as_root},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    prepare_with("data.name=digits", "data.row_group_rows=100")
    assert manifest_of(tmp_path / "two" / "datasets", "digits") == manifest_of(datasets, "digits")


@pytest.mark.slow
def test_killed_and_started_again_it_decodes_no_image_of_a_finished_row_group(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (150, 8, 8, 3), np.uint8)
    for number in range(150):
        Image.fromarray(pixels[number]).save(folder / f"{number}.png")
    overrides = f'["source=imagefolder", "source.path={tmp_path}/photos", "data.row_group_rows=1"]'
    code = RANK.replace('"data.row_group_rows=100"]', f"*{overrides}]").replace(
        "cfg, world)", "cfg, world, 'prepare-me')"
    )
    first = spawn(code, tmp_path, "single", env={**os.environ, "OMP_NUM_THREADS": "1"})
    spool = tmp_path / "datasets" / "digits" / "tmp" / "prepare-prepare-me"
    end = time.monotonic() + 100
    while len(list(spool.glob("group-*.json"))) < 7:
        assert first.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    first.kill()
    first.communicate()
    finished = [files.read_json(path) for path in spool.glob("group-*.json")]
    assert 7 <= len(finished) < 150
    layout = Layout(tmp_path / "datasets" / "digits")
    done = {
        read_array(layout, StoredObject.from_json(stored), "uid").tobytes()
        for group in finished
        for stored in group["objects"]
        if "uid" in stored["columns"]
    }
    kept = {f"cat/{number}.png": pixels[number] for number in range(150)}
    for key in kept:
        if uids_of_keys([key]).tobytes() in done:
            path = tmp_path / "photos" / key
            path.write_bytes(bytes(path.stat().st_size))  # who decodes it again fails
    again = spawn(code, tmp_path, "single", env={**os.environ, "OMP_NUM_THREADS": "1"})
    said, problem = again.communicate(timeout=100)
    assert again.returncode == 0, problem
    version = open_version(tmp_path / "datasets", "digits")
    assert said.splitlines()[-1].split()[-1] == version.store.commit_of(version.commit).manifest
    rows = version.find([uids_of_keys([key]).tobytes().hex() for key in kept])
    assert np.array_equal(version.read("image", rows), pixels)
    assert not spool.exists()


@pytest.mark.slow
def test_an_unreadable_image_on_one_rank_is_named_by_all_and_nothing_is_left(
    tmp_path: Path, spawn: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "photos" / "cat"
    folder.mkdir(parents=True)
    for number in range(4):
        Image.fromarray(np.full((4, 4), number, np.uint8)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    overrides = f'["source=imagefolder", "source.path={tmp_path}/photos", "data.row_group_rows=1"]'
    code = RANK.replace('"data.row_group_rows=100"]', f"*{overrides}]")
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "HPCTOOL_RENDEZVOUS": str(tmp_path / "meet.json")}
    ranks = [
        spawn(code, tmp_path, "torch", env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]
    for rank in ranks:
        problem = rank.communicate(timeout=100)[1].splitlines()[-1]
        assert f"SourceError: {folder}/2.png: it cannot be read as an image" in problem
    assert list((tmp_path / "datasets").iterdir()) == []
