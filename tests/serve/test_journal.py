from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hpctool.errors import InputError, NewerFormat, UnknownName
from hpctool.log import Log
from hpctool.serve.journal import Journal, Origin, open_journal, write_segment
from hpctool.serve.writer import JournalWriter
from hpctool.world import Array
from tests.serve.samples import full_log

GOLDEN = Path(__file__).parents[1] / "assets" / "journal_v1" / "digits"


def writer(folder: Path, model: str = "digits@0001", **options: Any) -> JournalWriter:
    return JournalWriter(folder, model=model, bundle="b" * 64, origin="server", run="serve-0123abcd", **options)


def batch(first: int, rows: int, source: str = "", shape: tuple[int, ...] = (2, 2, 1)) -> tuple[Array, ...]:
    """Arguments of `add`: the values of row i tell that it is row i."""
    number = np.arange(first, first + rows)
    request = np.array([f"r{i}:0".encode() for i in number])
    inputs = np.broadcast_to(number.reshape(-1, *[1] * len(shape)), (rows, *shape)).astype(np.uint8)
    logits = np.stack([number, -number], axis=1).astype(np.float32)
    return request, np.full(rows, source.encode(), "S32"), inputs, logits / 2, logits


def fill(folder: Path, *sizes: int, **options: Any) -> JournalWriter:
    """A journal with one segment of each size."""
    journal = writer(folder, **options)
    first = 0
    for size in sizes:
        assert journal.add(*batch(first, size)) == first
        journal.flush()
        first += size
    return journal


def test_what_was_added_is_read_back_in_order(tmp_path: Path) -> None:
    before = time.time()
    journal = fill(tmp_path / "digits", 3, 2)
    found = Journal(tmp_path / "digits").read()
    assert len(found) == 5
    assert found.ids == [f"{journal.writer}-{i:06d}" for i in range(5)]
    assert found.model == ["digits@0001"] * 5
    assert found.request == [f"r{i}:0" for i in range(5)]
    assert found.source == [""] * 5
    assert found.input.dtype == np.uint8
    assert found.input.shape == (5, 2, 2, 1)
    assert found.input[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.logits[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert found.probabilities.dtype == np.float32
    assert before <= found.time.min() <= found.time.max() <= time.time()


def test_small_batches_become_one_segment_and_many_rows_several(tmp_path: Path) -> None:
    journal = writer(tmp_path, segment_rows=4)
    for first in range(0, 10, 2):
        journal.add(*batch(first, 2))
    assert journal.backlog_rows == 10
    journal.flush()
    assert journal.backlog_rows == 0
    assert [s.rows for s in Journal(tmp_path).segments()] == [4, 4, 2]
    assert [s.first for s in Journal(tmp_path).segments()] == [0, 4, 8]


def test_the_thread_flushes_after_its_interval_and_when_a_segment_is_full(tmp_path: Path) -> None:
    quick, full = writer(tmp_path / "a", flush_s=0.05), writer(tmp_path / "b", flush_s=600.0, segment_rows=3)
    quick.add(*batch(0, 1))
    full.add(*batch(0, 3))
    deadline = time.monotonic() + 10
    while (quick.backlog_rows or full.backlog_rows) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(Journal(tmp_path / "a").read()) == 1
    assert len(Journal(tmp_path / "b").read()) == 3
    full.add(*batch(3, 1))
    quick.close()
    full.close()
    assert len(Journal(tmp_path / "b").read()) == 4


def test_a_full_disk_loses_nothing_and_is_said(tmp_path: Path, small_files: int, capfd: Any) -> None:
    journal = writer(tmp_path, flush_s=0.02)
    journal.add(*batch(0, small_files))
    deadline = time.monotonic() + 10
    while not journal.problem and time.monotonic() < deadline:
        time.sleep(0.01)
    assert journal.backlog_rows == small_files
    assert "cannot be written" in capfd.readouterr().err
    with pytest.raises(OSError, match="File too large"):
        journal.close()
    assert not Journal(tmp_path).segments()
    assert not list((tmp_path / "tmp").iterdir())


def test_a_journal_whose_log_is_on_the_same_full_disk_is_written_when_there_is_room(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("no folder, so no entry can be made")
    journal = writer(tmp_path, flush_s=0.02)
    deadline = time.monotonic() + 10
    with full_log():
        journal.add(*batch(0, 2))
        while not journal.problem and time.monotonic() < deadline:
            time.sleep(0.01)
    (tmp_path / "log").unlink()
    while journal.backlog_rows and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (journal.backlog_rows, journal.problem) == (0, "")
    journal.close()
    assert len(Journal(tmp_path).read()) == 2


def test_rows_are_chosen_by_source_model_and_time(tmp_path: Path) -> None:
    one, two = writer(tmp_path), writer(tmp_path, "digits@0002")
    one.add(*batch(0, 2, "clean"))
    one.add(*batch(2, 2, "worn"))
    two.add(*batch(4, 2, "worn"))
    one.flush()
    two.flush()
    journal = Journal(tmp_path)
    assert journal.read(source="worn").input[:, 0, 0, 0].tolist() == [2, 3, 4, 5]
    assert journal.read(source="worn", model="digits@0002").request == ["r4:0", "r5:0"]
    assert journal.read(source="nobody").ids == []
    times = journal.read().time
    assert len(journal.read(since=float(times.min()))) == 6
    assert len(journal.read(until=float(times.min()))) == 0
    some = journal.read(columns=["logits"])
    assert set(some.arrays) == {"number", "logits"}
    assert some.ids[:2] == [f"{one.writer}-000000", f"{one.writer}-000001"]


def test_a_prediction_is_found_by_its_id(tmp_path: Path) -> None:
    journal = fill(tmp_path / "digits", 3, 2)
    found = Journal(tmp_path / "digits").find(f"{journal.writer}-000004")
    assert found.request == "r4:0"
    assert found.logits.tolist() == [4.0, -4.0]
    assert found.segment.origin == Origin("digits@0001", "b" * 64, "server", "serve-0123abcd")
    for wrong in (f"{journal.writer}-000005", "00000000-000000", "nonsense", ""):
        with pytest.raises(UnknownName, match="prediction in the journal of 'digits'"):
            Journal(tmp_path / "digits").find(wrong)


@pytest.mark.parametrize("harm", ["cut", "flip", "gone"])
def test_a_damaged_segment_is_set_aside_said_once_and_counted(tmp_path: Path, harm: str) -> None:
    fill(tmp_path, 3, 2, 4)
    path = Journal(tmp_path).layout.object(Journal(tmp_path).segments()[1].stored.id)
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink() if harm == "gone" else path.write_bytes(data[: len(data) // 2] if harm == "cut" else data)
    journal = Journal(tmp_path)
    with pytest.warns(UserWarning, match="It held 2 predictions of digits@0001") as said:
        found = journal.read()
    assert found.input[:, 0, 0, 0].tolist() == [0, 1, 2, 5, 6, 7, 8]
    assert len(journal.read()) == 7
    assert len(said) == 1
    assert journal.lost_rows == 2


def test_a_broken_entry_of_the_log_is_noticed_by_the_missing_numbers(tmp_path: Path) -> None:
    fill(tmp_path, 3, 2, 4)
    (tmp_path / "log" / "0000000002").write_text("{")
    journal = Journal(tmp_path)
    with pytest.warns(UserWarning, match="set aside"):
        assert len(journal.read()) == 7
    assert journal.lost_rows == 2


def test_what_is_added_later_is_seen_by_the_same_reader(tmp_path: Path) -> None:
    one = fill(tmp_path, 2)
    journal = Journal(tmp_path)
    assert len(journal.read()) == 2
    one.add(*batch(2, 1))
    one.flush()
    assert len(journal.read()) == 3


def test_the_same_rows_written_twice_count_once(tmp_path: Path) -> None:
    origin = Origin("digits@0001", "b" * 64, "score", "score-0123abcd", "c" * 64)
    request, source, inputs, probabilities, logits = batch(0, 2)
    columns = {"number": np.arange(2), "request": request, "source": source, "input": inputs}
    columns |= {"probabilities": probabilities, "logits": logits}
    for moment in (1.0, 2.0):
        write_segment(tmp_path, "0123abcd", origin, {**columns, "time": np.full(2, moment)})
    assert Journal(tmp_path).read().time.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 3, 1, 4]])
def test_rows_written_twice_in_segments_of_other_sizes_count_once(tmp_path: Path, order: list[int]) -> None:
    origin = Origin("digits@0001", "b" * 64, "score", "score-0123abcd", "c" * 64)
    blocks = [(0, 3), (3, 6), (0, 4), (4, 6), (1, 2)]
    for first, stop in [blocks[place] for place in order]:
        request, source, inputs, probabilities, logits = batch(first, stop - first)
        columns = {"number": np.arange(first, stop), "request": request, "source": source, "input": inputs}
        columns |= {"probabilities": probabilities, "logits": logits, "time": np.full(stop - first, 1.0)}
        write_segment(tmp_path, "0123abcd", origin, columns)
    found = Journal(tmp_path).read()
    assert sorted(found.arrays["number"].tolist()) == [0, 1, 2, 3, 4, 5]
    assert len(found) == len(set(found.ids)) == 6


def test_versions_with_other_inputs_are_read_one_by_one(tmp_path: Path) -> None:
    one, two = writer(tmp_path), writer(tmp_path, "digits@0002")
    one.add(*batch(0, 1))
    two.add(*batch(0, 1, shape=(3,)))
    one.flush()
    two.flush()
    with pytest.raises(InputError, match="different input"):
        Journal(tmp_path).read()
    assert Journal(tmp_path).read(model="digits@0002").input.shape == (1, 3)


def test_an_empty_journal_is_empty_and_an_unknown_one_is_an_error(tmp_path: Path) -> None:
    assert len(Journal(tmp_path / "digits").read()) == 0
    fill(tmp_path / "digits", 1)
    assert len(open_journal(tmp_path, "digits").read()) == 1
    with pytest.raises(UnknownName, match="there is: digits"):
        open_journal(tmp_path, "digit")


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    body = Log(tmp_path / "log").entries()[0].body
    Log(tmp_path / "log").append({**body, "format": 2})
    with pytest.raises(NewerFormat, match="reads up to 1"):
        Journal(tmp_path).read()


def test_the_golden_journal_of_format_1_is_read(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "digits")
    found = Journal(tmp_path / "digits").read()
    expected = json.loads((GOLDEN / "expected.json").read_text())
    assert found.ids == expected["ids"]
    assert found.model == expected["model"]
    assert found.time.tolist() == expected["time"]
    assert found.request == expected["request"]
    assert found.source == expected["source"]
    for name in ("input", "probabilities", "logits"):
        array = found.arrays[name]
        assert [array.dtype.str, array.tolist()] == expected[name]
    last = Journal(tmp_path / "digits").find(expected["ids"][-1])
    assert vars(last.segment.origin) == expected["origin_of_last"]


def test_segments_cannot_be_changed_by_accident(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    (path,) = (tmp_path / "objects").glob("*/*.h5")
    assert os.stat(path).st_mode & 0o777 == 0o444
