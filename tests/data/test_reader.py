"""Any rows in any order, by memmap and by pread, equal to what was prepared; a damaged file is an error."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hpctool.data.prepare import Prepared
from hpctool.data.reader import Access, Reader
from hpctool.data.version import Version, open_version
from hpctool.errors import CorruptError, UnknownName

ACCESS: list[Access] = ["memmap", "pread"]


@pytest.mark.parametrize("access", ACCESS)
def test_rows_come_in_the_order_asked_for_and_as_often(tiny: Version, access: Access) -> None:
    rows = np.random.default_rng(0).integers(0, 40, 100)
    with Reader(tiny, ["image", "label", "uid"], access) as reader:
        found = reader.gather(rows)
    for name, values in found.items():
        assert np.array_equal(values, tiny.read(name)[rows])
    assert found["image"].shape == (100, 4, 4, 1)
    assert found["label"].dtype == np.int64


@pytest.mark.parametrize("access", ACCESS)
def test_one_row_group_and_no_rows(prepare_arrays: Callable[..., Prepared], datasets: Path, access: Access) -> None:
    prepare_arrays("data.row_group_rows=100")
    version = open_version(datasets, "tiny")
    with Reader(version, ["image", "label"], access) as reader:
        assert np.array_equal(reader.gather(np.array([39, 0, 39]))["image"], version.read("image")[[39, 0, 39]])
        nothing = reader.gather(np.zeros(0, np.int64))
    assert nothing["image"].shape == (0, 4, 4, 1)


def test_what_was_gathered_stays_when_the_reader_is_closed(tiny: Version) -> None:
    reader = Reader(tiny, ["image"])
    first = reader.gather(np.arange(40))["image"]
    reader.close()
    assert np.array_equal(first, tiny.read("image"))
    assert np.array_equal(reader.gather(np.arange(40))["image"], first)


@pytest.mark.parametrize("rows", [[40], [-1], [0, 41]])
def test_rows_that_are_not_there_are_refused(tiny: Version, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of 40"):
        Reader(tiny, ["label"]).gather(np.array(rows))


def test_columns_that_are_not_there_are_told_from_those_that_are(tiny: Version) -> None:
    with pytest.raises(UnknownName, match="'imag'; there is: image, label"):
        Reader(tiny, ["imag"])


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize("harm", [os.unlink, lambda path: os.truncate(path, 300)])
def test_a_missing_or_truncated_object_is_an_error_before_it_is_touched(
    tiny: Version, access: Access, harm: Callable[[Path], None]
) -> None:
    path = tiny.store.layout.object(tiny.contents.row_groups[1].holder("image").id)
    path.chmod(0o644)
    harm(path)
    reader = Reader(tiny, ["image"], access)
    assert reader.gather(np.arange(16))["image"].shape == (16, 4, 4, 1)
    with pytest.raises(CorruptError, match=path.name):
        reader.gather(np.arange(17))


def test_a_file_cut_off_while_it_is_open_is_an_error_by_pread(tiny: Version) -> None:
    path = tiny.store.layout.object(tiny.contents.row_groups[0].holder("image").id)
    reader = Reader(tiny, ["image"], "pread")
    reader.gather(np.array([0]))
    path.chmod(0o644)
    os.truncate(path, 10)
    with pytest.raises(CorruptError, match="cut off"):
        reader.gather(np.array([1]))


def test_a_forked_worker_reads_what_its_parent_opened(tiny: Version) -> None:
    reader = Reader(tiny, ["image"])
    mine = reader.gather(np.arange(40))["image"]
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    worker = context.Process(target=lambda: queue.put(reader.gather(np.arange(40))["image"].tobytes()))
    worker.start()
    assert queue.get() == mine.tobytes()
    worker.join()
