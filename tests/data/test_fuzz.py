"""Thousands of damaged and hostile files: an error of ours or what was written, never a crash, a hang or other data."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from hpctool import files
from hpctool.data.commit import Commit
from hpctool.data.labels import relabel
from hpctool.data.manifest import Manifest
from hpctool.data.objects import StoredObject
from hpctool.data.reach import Reach
from hpctool.data.reader import Reader
from hpctool.data.store import Store
from hpctool.data.usage import Use, begin_use, pins, uses
from hpctool.data.verify import check_readable, verify
from hpctool.data.version import Version, open_version
from hpctool.errors import HpctoolError
from tests.data.test_gc import make_run
from tests.data.test_many_at_once import Spawn

#: values that are where they should not be
STRANGE: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 2**64, 10**30, 1.5, 1e308, "", "x", "../../etc/passwd", "\x00", "ab" * 32),
    *([], {}, [[]], {"a": {}}, [2**62], [2**40, 2**40], [-5], "<f8", "|O", "f8,f8", "(9999999,)f8", "<M8[ns]", "|S0"),
    *("é" * 50, "f" * 300, [0] * 1000, {"format": 1}),
]


def mutate_bytes(data: bytes, dice: random.Random) -> bytes:
    """Flip, cut, repeat, remove or insert, a few times."""
    out = bytearray(data)
    for _ in range(dice.choice((1, 1, 1, 2, 5))):
        place = dice.randrange(len(out) + 1)
        kind = dice.randrange(5)
        if kind == 0 and out:
            out[place % len(out)] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del out[place:]
        elif kind == 2:
            out[place:place] = dice.randbytes(dice.choice((1, 8, 200)))
        elif kind == 3:
            del out[place : place + dice.choice((1, 8, 200))]
        else:
            out[place:place] = out[place : place + 40]
    return bytes(out)


def mutate_value(value: Any, dice: random.Random) -> Any:
    """The same JSON with something strange in a few places, or something missing."""
    copy = json.loads(json.dumps(value))
    for _ in range(dice.choice((1, 1, 2, 4))):
        where, key = dice.choice(list(places(copy)) or [(copy, None)])
        if key is None:
            return strange(dice)
        if dice.random() < 0.15:
            del where[key]
        elif dice.random() < 0.3 and isinstance(where[key], int):
            where[key] += dice.choice((-1, 1, 8, 4096, -(10**6)))
        else:
            where[key] = strange(dice)
    return copy


def strange(dice: random.Random) -> Any:
    return json.loads(json.dumps(dice.choice(STRANGE)))


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a JSON value: what holds it, and where."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from places(inner)


@contextmanager
def only_our_errors(what: str) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # log entries that are set aside
        try:
            yield
        except HpctoolError:
            pass
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


@pytest.fixture
def used(tiny: Version, tmp_path: Path) -> Version:
    """`tiny` relabelled and tagged, with a run that holds it."""
    relabel(tiny.store, "main", [(tiny.uids(np.array([5]))[0], 3, "me", "", "t")], "look")
    version = Version(tiny.store, "main", tiny.store.resolve("main"))
    tiny.store.create_tag("v2", version.commit)
    begin_use(version, make_run(tmp_path, version.commit, "running"), "train", {"train": None})
    return version


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_damaged_files_are_refused_or_give_what_was_written(used: Version, datasets: Path) -> None:
    root, dice = used.store.root, random.Random(0)
    truth = {name: used.read(name) for name in ("image", "label")}
    named = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in named:
        path.chmod(0o644)
    for number in range(4_000):
        path = dice.choice(named)
        whole = path.read_bytes()
        path.write_bytes(mutate_bytes(whole, dice))
        with only_our_errors(f"{number}: {path.relative_to(root)}"):
            read_all(datasets, truth, deep=number % 10 == 0)
        path.write_bytes(whole)
    read_all(datasets, truth, deep=True)


def read_all(datasets: Path, truth: dict[str, np.ndarray[Any, Any]], *, deep: bool) -> None:
    """What training does, and every tenth time what verify does, which finds everything without raising."""
    store = Store.open(datasets, "tiny")
    if deep:
        verify(store, deep=True)
    list(uses(store))
    list(pins(store, 0.0))
    for revision in ("main", "v2"):
        version = open_version(datasets, f"tiny@{revision}")
        check_readable(version)
        with Reader(version, list(truth), "pread") as reader:
            found = reader.gather(np.arange(version.num_rows))
        for name, values in truth.items():
            assert np.array_equal(found[name], values), f"other data in '{name}'"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_hostile_manifests_commits_and_records_are_refused_or_read(used: Version) -> None:
    """With the right checksums: they come from somebody who means it."""
    store, dice = used.store, random.Random(1)
    path = store.layout.manifest(store.commit_of(used.commit).manifest)
    manifest, commit = used.manifest, files.read_json(store.layout.commit(used.commit))
    record = next(json.loads(p.read_bytes()) for p in store.layout.runs.iterdir())
    readable = 0
    for number in range(6_000):
        kind = dice.choice(("manifest", "manifest", "commit", "record", "text"))
        with only_our_errors(f"{number}: {kind}"):
            if kind == "manifest":
                readable += read_hostile(used, Manifest.from_json(path, mutate_value(manifest, dice)))
            elif kind == "commit":
                made = Commit.from_json(path, mutate_value(commit, dice))
                if isinstance(made.changes, StoredObject):
                    store.get(made.changes, "new")
            elif kind == "record":
                Use.from_json(path, mutate_value(record, dice))
            else:
                text = mutate_bytes(files.canonical_json(manifest), dice)
                where = store.root / "text.json"
                where.write_bytes(text)
                Manifest.from_json(where, files.read_json(where))
    assert readable > 100
    assert not Reach(store).damaged


def read_hostile(version: Version, contents: Manifest) -> bool:
    """Read what a manifest says; whether that went well. Its shapes are what it says."""
    other = Version(version.store, "main", version.commit)
    other.contents = contents
    for name in ("image", "label", "uid"):
        if name in contents.columns and contents.num_rows:
            with Reader(other, [name], "pread") as reader:
                rows = np.array([0, contents.num_rows - 1])
                assert reader.gather(rows)[name].shape == (2, *contents.columns[name].shape)
    for split in other.splits:
        other.split_rows(split)
    return True


# In a process of its own: a crash of the HDF5 library is a failure of the test, not of pytest.
HDF5 = """
import random, re, sys, warnings
from pathlib import Path
from hpctool.data.schema import Source
from hpctool.data.sources.hdf5file import Hdf5Files
from hpctool.errors import HpctoolError
from tests.data.test_fuzz import mutate_bytes
warnings.simplefilter("ignore")
whole, path, dice = Path(sys.argv[1]).read_bytes(), Path(sys.argv[2]), random.Random(0)
readable = 0
for number in range(int(sys.argv[3])):
    data = bytearray(mutate_bytes(whole, dice))
    for _ in range(dice.choice((0, 1, 4)) if data else 0):
        data[dice.randrange(min(len(data), dice.choice((200, 2_000, 100_000))))] = dice.choice((0, 255, 1))
    path.write_bytes(data)
    try:
        source = Hdf5Files(Source(kind="hdf5", path=str(path), label="y"))
        readable += all([list(source.blocks(piece)) for piece in source.pieces()])
    except HpctoolError:
        pass
# Not getrusage, where a program begins with the peak of the process that started it.
print(readable, re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("libver", ["earliest", "latest"])
def test_damaged_hdf5_files_of_others_are_refused_or_read(spawn: Spawn, tmp_path: Path, libver: str) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(tmp_path / "whole.h5", "w", libver=libver) as file:
        file.create_dataset(
            "a/x", data=rng.integers(0, 255, (64, 5, 5), np.uint8), chunks=(8, 5, 5), compression="gzip"
        )
        file.create_dataset("z", data=rng.random((64, 3)), maxshape=(None, 3), chunks=(16, 3), fletcher32=True)
        # Texts and lists are another matter: the library has no end there (test_sources_hdf5.py).
        file["y"], file["s"] = np.arange(64) % 4, h5py.SoftLink("/y")
    child = spawn(HDF5, tmp_path / "whole.h5", tmp_path / "harmed.h5", 1_000)
    said, problem = child.communicate(timeout=500)
    assert child.returncode == 0, problem[-2000:]
    readable, memory_kb = map(int, said.split())
    assert readable > 10
    assert memory_kb < 1_000_000
