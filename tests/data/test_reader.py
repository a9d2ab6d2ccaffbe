"""Any rows in any order, by every way of reading, equal to what was prepared; a damaged file is an error."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.data import mapped, opened, reader
from hpctool.data.access import Access
from hpctool.data.images import ImageForm
from hpctool.data.objects import read_column
from hpctool.data.prepare import Prepared
from hpctool.data.ragged import Ragged, concatenate
from hpctool.data.reader import Reader
from hpctool.data.version import Version, open_version
from hpctool.errors import CorruptError, InputError, UnknownName
from tests.conftest import Spawn

LETTERS = Path(__file__).parents[1] / "assets" / "store_v2"
ACCESS: list[Access] = ["memmap", "pread"]
#: all ways: mapped, item by item, in blocks
WAYS: list[dict[str, Any]] = [{"access": "memmap"}, {"access": "pread"}, {"access": "pread", "window": 16}]
every_way = pytest.mark.parametrize("way", WAYS, ids=["memmap", "pread", "blocks"])


@pytest.fixture(scope="module")
def letters() -> Version:
    """12 rows in two row groups: `image` encoded, `tokens` ragged, `wave` and `mask` compressed."""
    return open_version(LETTERS, "letters")


@pytest.mark.slow
@every_way
def test_rows_come_in_the_order_asked_for_and_as_often(tiny: Version, way: dict[str, Any]) -> None:
    rows = np.random.default_rng(0).integers(0, 40, 100)
    with Reader(tiny, ["image", "label", "uid"], **way) as found_by:
        found_by.prefetch(rows)
        found = found_by.gather(rows)
        again = found_by.gather(rows)
    for name, values in found.items():
        assert np.array_equal(values, tiny.read(name)[rows])
        assert np.array_equal(values, again[name])
    assert found["image"].shape == (100, 4, 4, 1)
    assert found["label"].dtype == np.int64


@pytest.mark.slow
@every_way
def test_one_row_group_and_no_rows(
    prepare_arrays: Callable[..., Prepared], datasets: Path, way: dict[str, Any]
) -> None:
    prepare_arrays("data.row_group_rows=100")
    version = open_version(datasets, "tiny")
    with Reader(version, ["image", "label"], **way) as found_by:
        assert np.array_equal(found_by.gather(np.array([39, 0, 39]))["image"], version.read("image")[[39, 0, 39]])
        nothing = found_by.gather(np.zeros(0, np.int64))
    assert nothing["image"].shape == (0, 4, 4, 1)


@pytest.mark.slow
@pytest.mark.parametrize("row_bytes", [1, 3, 3072, 5000])
def test_rows_of_any_size_lie_side_by_side(
    prepare_arrays: Callable[..., Prepared], datasets: Path, row_bytes: int
) -> None:
    wide = np.random.default_rng(1).integers(0, 256, (50, row_bytes), np.uint8)
    prepare_arrays("data.row_group_rows=7", wide=wide, label=np.arange(50) % 3)
    version = open_version(datasets, "tiny")
    rows = np.random.default_rng(0).permutation(50)
    with (
        Reader(version, ["wide", "label"], "memmap") as by_memmap,
        Reader(version, ["wide", "label"], "pread") as by_pread,
    ):
        assert isinstance(by_memmap._mine.parts("wide"), mapped.Mapped)
        one, other = by_memmap.gather(rows), by_pread.gather(rows)
    for name in one:
        assert np.array_equal(one[name], version.read(name)[rows])
        assert np.array_equal(one[name], other[name])


@every_way
def test_ragged_and_compressed_rows_are_what_was_stored(letters: Version, way: dict[str, Any]) -> None:
    rows = np.array([11, 3, 3, 0, 7, 6])
    with Reader(letters, ["wave", "mask"], **way) as found_by:
        found = found_by.gather(rows)
        tokens = Reader(letters, ["tokens"], **way).ragged("tokens", rows)
        image = Reader(letters, ["image"], **way).ragged("image", rows)
    groups = letters.contents.row_groups
    for name in ("wave", "mask"):
        whole = concatenate([read_column(letters.store.layout, group.holder(name), name) for group in groups])
        assert np.array_equal(found[name], np.asarray(whole)[rows])
    assert [tokens[place].tolist() for place in range(6)] == [list(range(row)) for row in rows]
    whole = concatenate([read_column(letters.store.layout, group.holder("image"), "image") for group in groups])
    assert isinstance(whole, Ragged)
    assert [image[place].tobytes() for place in range(6)] == [whole[row].tobytes() for row in rows]


@every_way
def test_encoded_images_are_decoded_and_scaled(letters: Version, way: dict[str, Any]) -> None:
    with Reader(letters, ["image", "label"], images={"image": ImageForm(4, 5, 3)}, **way) as found_by:
        found = found_by.gather(np.array([11, 0]))
    assert np.array_equal(found["image"], np.stack([np.full((4, 5, 3), 220), np.zeros((4, 5, 3))]).astype(np.uint8))
    with Reader(letters, ["image"], **way) as found_by, pytest.raises(InputError, match="different lengths"):
        found_by.gather(np.array([0]))


def test_a_batch_is_written_into_memory_that_is_there(tiny: Version) -> None:
    pinned = np.zeros((3, 4, 4, 1), np.uint8)
    found = Reader(tiny, ["image", "label"]).gather(np.array([30, 1, 2]), {"image": pinned})
    assert found["image"] is pinned
    assert np.array_equal(pinned, tiny.read("image")[[30, 1, 2]])


def test_what_was_gathered_stays_when_the_reader_is_closed(tiny: Version) -> None:
    found_by = Reader(tiny, ["image"])
    first = found_by.gather(np.arange(40))["image"]
    found_by.close()
    assert np.array_equal(first, tiny.read("image"))
    assert np.array_equal(found_by.gather(np.arange(40))["image"], first)


@pytest.mark.parametrize("rows", [[40], [-1], [0, 41]])
def test_rows_that_are_not_there_are_refused(tiny: Version, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of 40"):
        Reader(tiny, ["label"]).gather(np.array(rows))


def test_columns_that_are_not_there_are_told_from_those_that_are(tiny: Version) -> None:
    with pytest.raises(UnknownName, match="'imag'; there is: image, label"):
        Reader(tiny, ["imag"])


@every_way
@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 300)])
def test_a_missing_or_truncated_object_is_an_error_before_it_is_touched(
    tiny: Version, way: dict[str, Any], harm: Callable[[Path], None]
) -> None:
    path = tiny.store.layout.object(tiny.contents.row_groups[1].holder("image").id)
    path.chmod(0o644)
    harm(path)
    found_by = Reader(tiny, ["image"], **way)
    assert found_by.gather(np.arange(16))["image"].shape == (16, 4, 4, 1)
    with pytest.raises(CorruptError, match=path.name):
        found_by.gather(np.arange(17))


def test_a_file_cut_off_while_it_is_open_is_an_error_by_pread(tiny: Version) -> None:
    path = tiny.store.layout.object(tiny.contents.row_groups[0].holder("image").id)
    found_by = Reader(tiny, ["image"], "pread")
    found_by.gather(np.array([0]))
    path.chmod(0o644)
    os.truncate(path, 10)
    with pytest.raises(CorruptError, match="cut off"):
        found_by.gather(np.array([1]))


def test_a_damaged_image_is_named(letters: Version, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found_by = Reader(letters, ["image"], images={"image": ImageForm(4, 5, 3)})
    runs = Reader._runs
    monkeypatch.setattr(Reader, "_runs", lambda self, *asked: [run[:20] for run in runs(self, *asked)])
    with pytest.raises(CorruptError, match="image 0 of a batch: it cannot be read as an image"):
        found_by.gather(np.array([3]))


@every_way
def test_a_forked_worker_reads_what_its_parent_opened(tiny: Version, way: dict[str, Any]) -> None:
    found_by = Reader(tiny, ["image"], **way)
    mine = found_by.gather(np.arange(40))["image"]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=lambda: queue.put(found_by.gather(np.arange(40))["image"].tobytes()))
    worker.start()
    assert queue.get() == mine.tobytes()
    worker.join()


@every_way
def test_a_reader_may_be_sent_to_a_spawned_worker(tiny: Version, way: dict[str, Any]) -> None:
    found_by = Reader(tiny, ["image"], **way)
    mine = found_by.gather(np.arange(40))["image"]
    assert np.array_equal(pickle.loads(pickle.dumps(found_by)).gather(np.arange(40))["image"], mine)


@every_way
def test_many_threads_read_from_few_open_files(
    tiny: Version, way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "_MOST_OPEN", 1)
    whole = tiny.read("image")
    found_by = Reader(tiny, ["image"], **way)
    asked = [np.random.default_rng(seed).integers(0, 40, 64) for seed in range(40)]
    with ThreadPoolExecutor(8) as threads:
        for rows, found in zip(asked, threads.map(found_by.gather, asked), strict=True):
            assert np.array_equal(found["image"], whole[rows])
    assert len(found_by._mine._files._open) <= 1


def test_blocks_are_read_once_while_a_window_lasts_and_given_up_after(
    tiny: Version, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Blocks of 4 rows; room for two of them.
    monkeypatch.setattr("hpctool.data.blocks.BLOCK_BYTES", 64)
    monkeypatch.setattr(reader, "CACHE_BYTES", 128)
    found_by = Reader(tiny, ["image"], "pread", window=4)
    whole = tiny.read("image")
    read: list[int] = []
    monkeypatch.setattr("hpctool.data.blocks.read_run", _noting(read))
    for start in range(0, 40, 4):
        for row in range(start, start + 4):
            assert np.array_equal(found_by.gather(np.array([row]))["image"], whole[[row]])
    assert read == list(range(0, 16, 4)) * 2 + [0, 4]
    assert found_by._mine.cache._held_bytes <= 128


def _noting(read: list[int]) -> Callable[..., Any]:
    from hpctool.data.blocks import read_run

    def noted(files: Any, stored: Any, name: str, start: int, stop: int) -> Any:
        read.append(start)
        return read_run(files, stored, name, start, stop)

    return noted


def test_where_nothing_more_can_be_mapped_it_is_read_by_pread(tiny: Version, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise mapped.Unmappable("Cannot allocate memory")

    whole = tiny.read("image")
    found_by = Reader(tiny, ["image"], "memmap")
    assert np.array_equal(found_by.gather(np.array([1]))["image"], whole[[1]])
    monkeypatch.setattr(mapped, "_mmap", full)
    assert np.array_equal(found_by.gather(np.arange(40))["image"], whole)


@pytest.mark.slow
def test_a_mapped_file_that_is_cut_off_kills_with_a_word(
    prepare_arrays: Callable[..., Prepared], datasets: Path, spawn: Spawn
) -> None:
    prepare_arrays("data.row_group_rows=100", wide=np.ones((50, 5000), np.uint8), label=np.zeros(50, np.int64))
    code = """
import faulthandler, os, sys
from pathlib import Path
import numpy as np
from hpctool.data.reader import Reader
from hpctool.data.version import open_version
faulthandler.enable()
version = open_version(Path(sys.argv[1]), "tiny")
reader = Reader(version, ["wide"], "memmap")
reader.gather(np.array([0]))
path = version.store.layout.object(version.contents.row_groups[0].holder("wide").id)
path.chmod(0o644)
os.truncate(path, 8192)
reader.gather(np.arange(50))
"""
    process = spawn(code, datasets)
    _, said = process.communicate()
    assert process.returncode == -signal.SIGBUS
    assert "Bus error" in said
    assert "mapped.py" in said
