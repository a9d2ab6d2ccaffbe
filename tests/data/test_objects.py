"""Objects are immutable, the same bytes for the same arrays, and readable at their offsets."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpctool import files
from hpctool.data.filters import Filter, unpack
from hpctool.data.layout import Layout
from hpctool.data.objects import Extent, StoredObject, array_digest, damage, read_array, read_column, write_object
from hpctool.data.ragged import Ragged, Values
from hpctool.errors import CorruptError, SourceError
from hpctool.world import Array


def arrays() -> dict[str, Array]:
    return {
        "image": np.arange(600, dtype=np.uint8).reshape(10, 5, 4, 3),
        "x": np.linspace(0, 1, 20, dtype=np.float32).reshape(10, 2),
        "name": np.array([b"ab", b"cde"]),
        "none": np.zeros((0, 3), np.int64),
    }


def test_what_is_stored_is_read_back_without_hdf5(tmp_path: Path) -> None:
    stored = write_object(Layout(tmp_path), arrays())
    assert files.sha256_file(Layout(tmp_path).object(stored.id)) == stored.id
    for name, array in arrays().items():
        found = read_array(Layout(tmp_path), stored, name)
        assert found.dtype == array.dtype
        assert np.array_equal(found, array)
        assert stored.extents[name].digest == array_digest(array)


def test_any_hdf5_library_reads_an_object(tmp_path: Path) -> None:
    stored = write_object(Layout(tmp_path), arrays())
    with h5py.File(Layout(tmp_path).object(stored.id), "r") as file:
        assert file.attrs["format"] == 1
        assert np.array_equal(file["image"][()], arrays()["image"])


def test_ragged_and_compressed_columns_are_read_back_by_us_and_by_any_hdf5(tmp_path: Path) -> None:
    layout, noise = Layout(tmp_path), np.random.default_rng(0).integers(0, 256, (9, 70_000), np.uint8)
    words = Ragged.of([b"", b"a", b"cd" * 9, b""])
    columns: dict[str, Values] = {
        "word": words,
        "points": Ragged.of([np.ones((n, 3), np.float32) * n for n in (2, 0, 5)]),
        "smooth": np.arange(300_000, dtype=np.int32).reshape(10, 30_000),
        "noise": noise,
        "text": Ragged.of([np.arange(n, dtype=np.int64) for n in (70_000, 0, 9)]),
    }
    filters: dict[str, Filter] = {"smooth": "shuffle+deflate", "noise": "deflate", "text": "shuffle+deflate"}
    stored = write_object(layout, columns, filters)
    assert StoredObject.from_json(stored.to_json()) == stored
    with h5py.File(layout.object(stored.id), "r") as file:
        assert file.attrs["format"] == 2
        for name, values in columns.items():
            array = values.values if isinstance(values, Ragged) else values
            found = read_column(layout, stored, name)
            assert np.array_equal(found.values if isinstance(found, Ragged) else found, array)
            assert np.array_equal(file[name][()], array)
            if isinstance(values, Ragged) and isinstance(found, Ragged):
                assert np.array_equal(found.offsets, values.offsets)
    assert stored.size_bytes < noise.nbytes * 1.2


def test_a_chunk_that_is_not_what_was_packed_is_an_error_that_names_the_object(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    stored = write_object(layout, {"x": np.arange(100_000)}, {"x": "deflate"})
    path = layout.object(stored.id)
    place = int(read_array(layout, stored, "x.chunks")[1, 0])
    path.chmod(0o644)
    with open(path, "r+b") as file:
        file.seek(place + 100)
        file.write(b"harm")
    with pytest.raises(CorruptError, match=rf"{stored.id}.h5 is damaged: a chunk"):
        read_array(layout, stored, "x")


@pytest.mark.slow
def test_a_chunk_never_unpacks_to_more_than_it_should() -> None:
    bomb = zlib.compress(bytes(100 << 20))
    with pytest.raises(ValueError, match="unpacks to other than 80 bytes"):
        unpack(bomb, "deflate", np.dtype(np.int64), 10)


@pytest.mark.slow
def test_the_same_arrays_make_the_same_bytes_at_another_time_in_another_process(tmp_path: Path) -> None:
    code = (
        "import sys, numpy as np; from pathlib import Path; from hpctool.data.layout import Layout\n"
        "from hpctool.data.objects import write_object\n"
        "print(write_object(Layout(Path(sys.argv[1])), {'label': np.arange(5000), 'x': np.ones((3, 2))}).id)"
    )
    time.sleep(1.01)  # HDF5 would write seconds
    there = subprocess.run([sys.executable, "-c", code, str(tmp_path / "there")], capture_output=True, text=True)
    here = write_object(Layout(tmp_path / "here"), {"x": np.ones((3, 2)), "label": np.arange(5000)})
    assert there.stdout.strip() == here.id, there.stderr


def test_big_arrays_begin_at_a_page(tmp_path: Path) -> None:
    stored = write_object(Layout(tmp_path), {"a": np.zeros(5000), "b": np.ones((700, 3), np.float32)})
    assert [extent.offset % 4096 for extent in stored.extents.values()] == [0, 0]


def test_objects_are_read_only_and_stored_once(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    stored = write_object(layout, arrays())
    before = layout.object(stored.id).stat()
    assert before.st_mode & 0o777 == 0o444
    assert write_object(layout, arrays()) == stored
    assert layout.object(stored.id).stat().st_ino == before.st_ino
    assert os.listdir(layout.tmp) == []


def test_storing_again_mends_a_damaged_object(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    stored = write_object(layout, arrays())
    path = layout.object(stored.id)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-7])
    assert (
        damage(path, stored.id, stored.size_bytes)
        == f"it has {stored.size_bytes - 7} bytes instead of {stored.size_bytes}"
    )
    write_object(layout, arrays())
    assert damage(path, stored.id, stored.size_bytes) == ""


def test_a_missing_and_a_short_object_are_errors_that_name_them(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    stored = write_object(layout, arrays())
    path = layout.object(stored.id)
    path.chmod(0o644)
    os.truncate(path, 100)
    with pytest.raises(CorruptError, match=f"{stored.id}.h5 is damaged: it has 100 bytes instead of"):
        read_array(layout, stored, "x")
    path.unlink()
    with pytest.raises(CorruptError, match="it is missing"):
        read_array(layout, stored, "x")


@pytest.mark.parametrize("array", [np.array(["a", "b"]), np.array([None, 1]), np.array(1.0), np.zeros(2, complex)])
def test_arrays_that_are_no_numbers_are_refused(tmp_path: Path, array: Array) -> None:
    with pytest.raises(SourceError, match=r"column 'x': .* is not an array of numbers"):
        write_object(Layout(tmp_path), {"x": array})


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b", "\0"])
def test_column_names_stay_names(tmp_path: Path, name: str) -> None:
    with pytest.raises(SourceError, match="a column's name"):
        write_object(Layout(tmp_path), {name: np.zeros(1)})


def test_big_endian_arrays_are_stored_little_endian(tmp_path: Path) -> None:
    stored = write_object(Layout(tmp_path), {"x": np.arange(4, dtype=">i4")})
    assert stored.extents["x"].dtype.str == "<i4"
    assert read_array(Layout(tmp_path), stored, "x").tolist() == [0, 1, 2, 3]


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, small_files: int) -> None:
    layout = Layout(tmp_path)
    with pytest.raises(OSError, match="File too large"):
        write_object(layout, {"x": np.zeros(small_files)})
    assert os.listdir(layout.tmp) == []
    assert list((tmp_path / "objects").rglob("*.h5")) == []


def test_an_array_beyond_its_file_is_refused_before_it_is_read() -> None:
    stored = StoredObject("ab" * 32, 100, {"x": Extent(np.dtype("<i8"), (12,), 8, "")})
    with pytest.raises(ValueError, match="ends beyond the 100 bytes"):
        StoredObject.from_json(stored.to_json())


@pytest.mark.parametrize(
    "wrong",
    [
        {"chunks": {"rows": 0, "filter": "deflate"}},
        {"chunks": {"rows": 1, "filter": "lzma"}},
        {"chunks": None},
        {"dtype": "O"},
        {"dtype": "<M8[s]"},
        {"shape": []},
        {"shape": [-1]},
        {"offset": -8},
        {"dtype": "nonsense"},
    ],
)
def test_extents_that_cannot_be_are_refused(wrong: dict[str, object]) -> None:
    fine = {"dtype": "<i8", "shape": [1], "offset": 0, "digest": ""}
    Extent.from_json(fine)
    with pytest.raises((ValueError, TypeError)):
        Extent.from_json(fine | wrong)
