"""HDF5 files from outside are hostile until shown otherwise: what they would do is refused with a sentence."""

from __future__ import annotations

import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from hpctool.data.sources import hdf5try
from tests.data.test_sources_many import Bring, hdf5, refused


def harm(path: Path, how: str) -> None:
    secret = path.with_name("secret.h5")
    with h5py.File(secret, "w") as file:
        file["x"] = np.arange(4)
    with h5py.File(path, "w") as file:
        file["label"] = np.arange(4)
        if how == "external link":
            file["x"] = h5py.ExternalLink(str(secret), "/x")
        elif how == "soft link through an external one":
            file["far"] = h5py.ExternalLink(str(secret), "/")
            file["x"] = h5py.SoftLink("/far/x")
        elif how == "soft links in a circle":
            file["x"], file["z"] = h5py.SoftLink("/z"), h5py.SoftLink("/x")
        elif how == "virtual":
            layout = h5py.VirtualLayout((4,), np.int64)
            layout[:] = h5py.VirtualSource(str(secret), "x", (4,))
            file.create_virtual_dataset("x", layout)
        elif how == "external storage":
            file.create_dataset("x", (4,), np.int64, external=[(str(secret), 0, 32)])
        elif how == "huge":
            file.create_dataset("x", (1 << 40, 1 << 20), np.float64, chunks=(1, 1 << 10))
        elif how == "a list of 2**31":
            lists = file.create_dataset("x", (4,), h5py.vlen_dtype(np.float64))
            lists[0] = np.arange(4.0)
            file.flush()
            offset = lists.id.get_offset()
        elif how == "references":
            file.create_dataset("x", data=[file["label"].ref] * 4, dtype=h5py.ref_dtype)
    if how == "a list of 2**31":
        with path.open("r+b") as raw:
            raw.seek(offset)
            raw.write((2**31).to_bytes(4, "little"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("external link", "a link into another file"),
        ("soft link through an external one", "a link into another file"),
        ("soft links in a circle", "through more than 32 links"),
        ("virtual", "a virtual dataset, made of other files"),
        ("external storage", "whose values lie in other files"),
        ("huge", "declares (1099511627776, 1048576) of float64 in a file of"),
        ("a list of 2**31", "it cannot be read as HDF5"),
        ("references", "neither numbers nor text"),
        ("nothing", "There is no dataset in"),
    ],
)
def test_an_hdf5_file_that_would_read_other_files_or_fill_the_memory_is_refused(
    bring: Bring, datasets: Path, tmp_path: Path, how: str, problem: str
) -> None:
    harm(tmp_path / "a.h5", how)
    assert problem in refused(bring, datasets, *hdf5(tmp_path / "a.h5", "source.columns=[x]"))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["endless", "crash"])
def test_an_hdf5_file_that_the_library_does_not_survive_is_named(
    bring: Bring, datasets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["label"] = np.arange(4)
        lists = file.create_dataset("x", (4,), h5py.vlen_dtype(np.int32))
        for row in range(4):
            lists[row] = np.arange(row + 1)
    if how == "endless":
        monkeypatch.setattr(hdf5try, "PATIENCE_S", 15.0)
        data = bytearray((tmp_path / "a.h5").read_bytes())
        first = data.index(b"GCOL") + 16
        data[first : first + 16] = bytes(16)  # free space of no size, so the next one is here again
        (tmp_path / "a.h5").write_bytes(data)
    else:
        # No file is known that crashes this library; so a program that does stands in for Python.
        program = tmp_path / "crash"
        program.write_text(f"#!/bin/sh\necho {tmp_path / 'a.h5'}\nkill -SEGV $$\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))
    wanted = "a.h5: the HDF5 library " + {"endless": "has read it for 15 s", "crash": "crashes on it (SIGSEGV)"}[how]
    assert wanted in refused(bring, datasets, *hdf5(tmp_path / "a.h5", "source.columns=[x]"))


@pytest.mark.slow
def test_a_file_that_is_no_hdf5_and_lengths_that_differ_are_refused(
    bring: Bring, datasets: Path, tmp_path: Path
) -> None:
    (tmp_path / "a.h5").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    assert "it cannot be read as HDF5" in refused(bring, datasets, *hdf5(tmp_path / "a.h5"))
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["label"] = np.zeros(3), np.zeros(4, int)
    assert "different lengths: label 4, x 3" in refused(bring, datasets, *hdf5(tmp_path / "b.h5"))
