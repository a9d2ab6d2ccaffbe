"""An export is the version as others read it: the same values, and nothing is written over."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from hpctool.data.commit import Draft
from hpctool.data.export import FORMATS, export
from hpctool.data.export_files import safe_name
from hpctool.data.labels import relabel
from hpctool.data.manifest import UID, Column, Manifest, RowGroup
from hpctool.data.ragged import Ragged
from hpctool.data.version import Version
from hpctool.errors import CorruptError, InputError, UnknownName
from tests.data.harm import cut


@pytest.fixture
def partly(tiny: Version) -> Version:
    """`tiny` with a row that has no label."""
    relabel(tiny.store, "main", [(tiny.uids(np.array([5]))[0], -1, "me", "", "t")], "look")
    return Version(tiny.store, "main", tiny.store.resolve("main"))


@pytest.fixture
def species(tiny: Version) -> Version:
    """`tiny` with 5,000 classes."""
    classes = [f"Käfer {number}" for number in range(5000)]
    label = replace(tiny.contents.columns["label"], classes=classes)
    manifest = replace(tiny.contents, columns=tiny.contents.columns | {"label": label})
    stored = tiny.store.put_manifest(manifest)
    commit = tiny.store.commit("species", lambda tip: Draft(stored, "species", {"kind": "test"}))
    return Version(tiny.store, "species", commit.id)


@pytest.fixture
def texts(tiny: Version) -> Version:
    """Eight rows in two groups with texts, clouds of points (n, 2) and images of a camera, each of another length."""
    store, rng = tiny.store, np.random.default_rng(0)
    jpegs = []
    for _ in range(8):
        memory = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (4, 6, 3), np.uint8)).save(memory, "JPEG")
        jpegs.append(memory.getvalue())
    texts = [b"word " * n for n in range(8)]
    points = [rng.random((n % 3, 2)).astype(np.float32) for n in range(8)]
    names: dict[str, Sequence[Any]] = {"photo": jpegs, "text": texts, "points": points}
    groups = []
    for rows in (slice(0, 5), slice(5, 8)):
        ragged = {name: Ragged.of(values[rows], np.dtype(np.float32)) for name, values in names.items()}
        uids = tiny.read(UID)[rows]
        count = len(uids)
        identity = {UID: uids, "content": uids}
        groups.append(RowGroup(count, [store.put(ragged), store.put(identity), store.put({"n": np.arange(count)})]))
    columns = {
        "photo": Column("photo", np.dtype(np.uint8), (), ragged=True, encoding="image"),
        "text": Column("text", np.dtype(np.uint8), (), ragged=True),
        "points": Column("points", np.dtype(np.float32), (2,), ragged=True),
        "n": Column("n", np.dtype(np.int64), ()),
        **{name: tiny.contents.columns[name] for name in (UID, "content")},
    }
    splits = store.put({"train": np.array([0, 1, 2, 5, 6, 7]), "test": np.array([3, 4])})
    rule = {"by": "uid", "fractions": [["train", 0.5], ["test", 0.5]]}
    manifest = store.put_manifest(Manifest(columns, groups, splits, rule, {}))
    commit = store.commit("texts", lambda tip: Draft(manifest, "texts", {"kind": "test"}))
    return Version(store, "texts", commit.id)


def test_hdf5_and_npz_hold_every_value(partly: Version, tmp_path: Path) -> None:
    assert export(partly, tmp_path / "a.h5", "hdf5") == 40
    export(partly, tmp_path / "a.npz", "npz")
    with h5py.File(tmp_path / "a.h5") as file, np.load(tmp_path / "a.npz") as arrays:
        for name in ("image", "label"):
            assert np.array_equal(file[name][:], partly.read(name))
            assert np.array_equal(arrays[name], partly.read(name))
        assert [uid.decode() for uid in file["uid"][:]] == arrays["uid"].tolist() == partly.uids()
        assert [split.decode() for split in file["split"][:]] == arrays["split"].tolist() == partly.split_of_rows()
        assert file["label"].attrs["classes"].tolist() == arrays["classes"].tolist() == partly.classes
        assert file.attrs["commit"] == partly.commit


def test_more_classes_than_an_attribute_holds_are_a_dataset(species: Version, tmp_path: Path) -> None:
    export(species, tmp_path / "a.h5", "hdf5")
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["label.classes"].asstr()[:].tolist() == species.classes
        assert np.array_equal(file["label"][:], species.read("label"))
        assert file.attrs["commit"] == species.commit


def test_parquet_names_classes_and_keeps_arrays(partly: Version, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    export(partly, tmp_path / "a.parquet", "parquet", splits=["train", "test"])
    table = parquet.read_table(tmp_path / "a.parquet")
    rows = np.flatnonzero(np.isin(partly.split_of_rows(), ["train", "test"]))
    assert table["uid"].to_pylist() == partly.uids(rows)
    names = [*partly.classes, None]
    assert table["label"].to_pylist() == [names[label] for label in partly.read("label", rows).tolist()]
    images = np.array(table["image"].to_pylist(), np.uint8).reshape(-1, 4, 4, 1)
    assert np.array_equal(images, partly.read("image", rows))
    about = json.loads(table.schema.metadata[b"hpctool"])
    assert (about["commit"], about["shapes"]) == (partly.commit, {"image": [4, 4, 1]})


def test_webdataset_and_image_folder_hold_images_labels_and_names(partly: Version, tmp_path: Path) -> None:
    export(partly, tmp_path / "tars", "webdataset")
    export(partly, tmp_path / "folder", "imagefolder")
    images, labels, uids = partly.read("image"), partly.read("label").tolist(), partly.uids()
    found: dict[str, dict[str, bytes]] = {}
    for split in partly.splits:
        with tarfile.open(tmp_path / "tars" / f"{split}-000000.tar") as tar:
            for member in tar:
                name, _, suffix = member.name.partition(".")
                found.setdefault(name, {})[suffix] = tar.extractfile(member).read()  # type: ignore[union-attr]
    for row, (uid, split) in enumerate(zip(uids, partly.split_of_rows(), strict=True)):
        assert np.array_equal(np.array(Image.open(io.BytesIO(found[uid]["png"]))), images[row, ..., 0])
        assert found[uid].get("cls") == (str(labels[row]).encode() if labels[row] >= 0 else None)
        folder = partly.classes[labels[row]] if labels[row] >= 0 else "_unlabelled"
        path = tmp_path / "folder" / split / folder / f"{uid}.png"
        assert np.array_equal(np.array(Image.open(path)), images[row, ..., 0])
    assert len(list((tmp_path / "folder").rglob("*.png"))) == 40


def test_rows_of_different_lengths_come_along_in_every_format(texts: Version, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for kind in ("hdf5", "npz", "parquet", "webdataset"):
        assert export(texts, tmp_path / kind, kind, splits=["train"]) == 6
    assert export(texts, tmp_path / "folder", "imagefolder", columns=["photo"]) == 8
    words = [b"word " * n for n in (0, 1, 2, 5, 6, 7)]
    with h5py.File(tmp_path / "hdf5") as file, np.load(tmp_path / "npz") as arrays:
        for found in (file, arrays):
            text = Ragged(found["text"][:], found["text.offsets"][:])
            points = Ragged(found["points"][:], found["points.offsets"][:])
            assert [text[row].tobytes() for row in range(6)] == words
            assert [len(points[row]) for row in range(6)] == [0, 1, 2, 2, 0, 1]
    table = parquet.read_table(tmp_path / "parquet")
    assert table["text"].to_pylist() == words
    assert [len(row) for row in table["points"].to_pylist()] == [0, 1, 2, 2, 0, 1]
    with tarfile.open(tmp_path / "webdataset" / "train-000000.tar") as tar:
        names = tar.getnames()
        photo = tar.extractfile(names[1]).read()  # type: ignore[union-attr]
    uid = texts.uids(np.array([0]))[0]
    assert names[:4] == [f"{uid}.{suffix}" for suffix in ("n.npy", "jpg", "points.npy", "text.npy")]
    assert table["photo"].to_pylist()[0] == photo == (tmp_path / "folder" / "train" / f"{uid}.jpg").read_bytes()


@pytest.mark.parametrize("kind", FORMATS)
def test_nothing_is_written_over_and_nothing_left_behind(partly: Version, tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    path = tmp_path / "there"
    path.write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export(partly, path, kind)
    assert path.read_text() == "mine"
    cut(partly.store.layout.object(partly.contents.row_groups[2].holder("image").id))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CorruptError):
        export(partly, tmp_path / "new", kind)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"kind": "tfrecord"}, "no format of export 'tfrecord'; there is: hdf5"),
        ({"splits": ["trian"]}, "no split of tiny@main called 'trian'"),
        ({"columns": ["imge"]}, "no column of tiny@main called 'imge'"),
        ({"kind": "imagefolder", "columns": ["label"]}, "no column of images"),
        ({"path": "no/where"}, "there is no folder"),
    ],
)
def test_what_cannot_be_exported_is_said(partly: Version, tmp_path: Path, wrong: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"kind": "hdf5", "path": "new"} | wrong
    with pytest.raises((InputError, UnknownName), match=message):
        export(partly, tmp_path / given.pop("path"), given.pop("kind"), **given)
    assert not (tmp_path / "new").exists()


def test_a_class_cannot_lead_out_of_the_folder() -> None:
    assert [safe_name(name) for name in ("cat", "../up", "a/b", "", ".hidden", "größe 3")] == [
        *("cat", "%2E.%2Fup", "a%2Fb", "%", "%2Ehidden", "gr%C3%B6%C3%9Fe 3")
    ]
