"""Parquet, HDF5, tars and saved Hugging Face datasets come in; what is hostile or out of place does not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from hpctool.data.identity import uids_of_keys
from hpctool.data.objects import read_column
from hpctool.data.prepare import Prepared
from hpctool.data.ragged import Ragged, Values, concatenate, take
from hpctool.data.store import list_datasets
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError

Run = Callable[..., Prepared]
Bring = Callable[..., Version]


def by_key(version: Version, column: str, keys: list[str]) -> Values:
    """The values of rows, also of ragged columns."""
    groups = version.contents.row_groups
    whole = concatenate([read_column(version.store.layout, group.holder(column), column) for group in groups])
    return take(whole, version.find([uid.tobytes().hex() for uid in uids_of_keys(keys)]))


def listed(values: Values) -> list[Any]:
    return [values[row].tolist() for row in range(len(values))]


def refused(bring: Bring, datasets: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        bring(*overrides)
    assert list_datasets(datasets) == []
    return str(caught.value)


def png(number: int, height: int = 4) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((height, 5, 3), number, np.uint8)).save(out, "PNG")
    return out.getvalue()


# -- parquet


def table(folder: Path, columns: dict[str, Any], name: str = "t.parquet", row_group_size: int = 4) -> list[str]:
    parquet.write_table(pa.table(columns), folder / name, row_group_size=row_group_size)
    return ["source=parquet", f"source.path={folder / name}"]


@pytest.mark.slow
def test_a_parquet_table_is_the_same_dataset_as_its_csv(bring: Bring, tmp_path: Path) -> None:
    columns = {"a": [1.5, 2, 3], "b": [1, 2, 3], "label": ["x", None, "y"], "id": ["k1", "k2", "k3"]}
    version = bring(*table(tmp_path, columns, row_group_size=2), "source.key=id")
    (tmp_path / "t.csv").write_text("a,b,label,id\n1.5,1,x,k1\n2,2,,k2\n3,3,y,k3\n")
    other = bring("data.name=rows", "source=csv", f"source.path={tmp_path}/t.csv", "source.key=id")
    assert version.columns["x"].names == ["a", "b"]
    assert other.store.commit_of(other.commit).manifest == version.store.commit_of(version.commit).manifest


@pytest.mark.slow
def test_parquet_brings_lists_texts_and_images(bring: Bring, tmp_path: Path) -> None:
    columns = {
        "tokens": pa.array([[1, 2], [], [3, 4, 5]], pa.list_(pa.int32())),
        "box": pa.array([[1.0, 2], [3, 4], [5, 6]], pa.list_(pa.float32(), 2)),
        "text": ["ä", "", "word"],
        "photo": [png(1), png(2, 7), png(3)],
        "label": [3, 1, -1],
    }
    version = bring(*table(tmp_path, columns), "source.image=photo", "source.size=[4,5]", "source.fit=pad")
    keys = [f"t.parquet#{row}" for row in range(3)]
    assert listed(by_key(version, "tokens", keys)) == [[1, 2], [], [3, 4, 5]]
    assert listed(by_key(version, "box", keys)) == [[1, 2], [3, 4], [5, 6]]
    assert [bytes(row).decode() for row in listed(by_key(version, "text", keys))] == ["ä", "", "word"]
    photo = np.asarray(by_key(version, "photo", keys))
    assert (photo[0] == 1).all()
    assert photo[1, :, 0].tolist() == [[0, 0, 0]] * 4  # a tall one has black at its sides
    assert version.classes == ["1", "3"]
    assert listed(by_key(version, "label", keys)) == [1, 0, -1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        ({"a": [1.0, float("nan")], "label": [1, 2]}, "row 1: column 'x' holds NaN or infinity"),
        ({"a": [1, None], "label": [1, 2]}, "row 1: column 'a' (int64) has no value"),
        ({"a": [[[1], [2, 3]]], "label": [1]}, "column 'a' holds lists of different lengths inside lists"),
        ({"a": pa.array([1, 2], pa.timestamp("s")), "label": [1, 2]}, "which cannot be taken; choose others"),
        ({"label": [1]}, "it holds no column of features"),
        ({"a": [1], "b": [1]}, "There is no column in"),
        ({"a": [], "label": []}, "it has no rows"),
    ],
)
def test_a_parquet_file_that_does_not_fit_is_refused(
    bring: Bring, datasets: Path, tmp_path: Path, columns: dict[str, Any], problem: str
) -> None:
    assert problem in refused(bring, datasets, *table(tmp_path, columns))


def texts(folder: Path, kind: str, column: list[bytes]) -> list[str]:
    """Bytes of one length in a file of arrays, of any length in a table."""
    path, values = folder / f"texts.{kind}", np.arange(len(column), dtype=np.float32)
    if kind == "parquet":
        return table(folder, {"x": values, "name": pa.array(column, pa.binary())}, path.name)
    if kind == "npz":
        np.savez(path, x=values, name=np.array(column))
    else:
        with h5py.File(path, "w") as file:
            file.update({"x": values, "name": np.array(column)})
    return [f"source={'npz' if kind == 'npz' else 'hdf5'}", f"source.path={path}"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["npz", "h5", "parquet"])
def test_bytes_are_names_in_utf8_and_others_are_refused_with_their_row(
    bring: Bring, datasets: Path, tmp_path: Path, kind: str
) -> None:
    bad = texts(tmp_path, kind, [b"Brot", b"\xff\xfe"])
    for special in ("label", "key"):
        said = refused(bring, datasets, *bad, f"source.{special}=name", *(["source.label=null"] * (special == "key")))
        assert rf"texts.{kind}: row 1: b'\xff\xfe' among the" in said
    version = bring(*texts(tmp_path, kind, [b"Brot", "Käse".encode()]), "source.label=name")
    assert version.classes == ["Brot", "Käse"]
    keyed = bring(*texts(tmp_path, kind, [b"Brot", "Käse".encode()]), "source.label=null", "source.key=name")
    assert np.ravel(listed(by_key(keyed, "x", ["Käse", "Brot"]))).tolist() == [1, 0]


@pytest.mark.slow
def test_files_with_other_columns_than_the_first_show_both_sides(bring: Bring, datasets: Path, tmp_path: Path) -> None:
    table(tmp_path, {"a": pa.array([[1.0, 2]], pa.list_(pa.float32(), 2)), "label": [1]}, "1.parquet")
    table(tmp_path, {"a": pa.array([[1.0, 2, 3]], pa.list_(pa.float32(), 3)), "label": [1]}, "2.parquet")
    text = refused(bring, datasets, "source=parquet", f"source.path={tmp_path}")
    assert "2.parquet: column 'a' is float32 (3,) where " in text
    assert "1.parquet has float32 (2,)." in text


# -- HDF5


def hdf5(path: Path, *more: str) -> list[str]:
    return ["source=hdf5", f"source.path={path}", *more]


@pytest.mark.slow
def test_hdf5_comes_in_by_paths_chunked_packed_and_through_inner_links(bring: Bring, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images/left", data=np.arange(120, dtype=np.uint8).reshape(10, 3, 4), chunks=(3, 3, 4))
        packed = np.arange(20, dtype=">f4").reshape(10, 2)
        file.create_dataset("x", data=packed, chunks=(4, 2), compression="gzip", shuffle=True)
        lists = file.create_dataset("tokens", (10,), h5py.vlen_dtype(np.int16))
        for row in range(10):
            lists[row] = np.arange(row)
        file["y"] = np.arange(10) % 3
        file["names"] = [f"row {row}" for row in range(10)]
        file["label"] = h5py.SoftLink("/y")
    wanted = ["source.columns=[images/left,x,tokens]", "source.key=names"]
    version = bring(*hdf5(tmp_path / "a.h5", *wanted))
    keys = [f"row {row}" for row in range(10)]
    assert version.features == ["images.left", "tokens", "x"]
    assert np.asarray(by_key(version, "images.left", keys)).reshape(-1).tolist() == list(range(120))
    assert listed(by_key(version, "x", keys)) == packed.tolist()
    assert listed(by_key(version, "tokens", keys)) == [list(range(row)) for row in range(10)]
    assert listed(by_key(version, "label", keys)) == [row % 3 for row in range(10)]


# -- tars


def tar(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w") as out:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            out.addfile(info, io.BytesIO(data))
    return path


def npy(values: Any) -> bytes:
    out = io.BytesIO()
    np.save(out, np.asarray(values))
    return out.getvalue()


def sample(number: int, height: int = 4) -> list[tuple[str, bytes]]:
    meta = json.dumps({"label": ["cat", "dog"][number % 2], "writer": f"w{number // 4}"}).encode()
    return [
        (f"d/{number:03}.png", png(number, height)),
        (f"d/{number:03}.cls", str(number % 3).encode()),
        (f"d/{number:03}.json", meta),
        (f"d/{number:03}.vec.npy", npy(np.array([number, 1], np.float32))),
    ]


def web(path: Path, *more: str) -> list[str]:
    return ["source=webdataset", f"source.path={path}", *more]


@pytest.mark.slow
def test_tars_come_in_grouped_by_key_decoded_or_as_they_are(bring: Bring, datasets: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        tar(
            tmp_path / "shards" / f"{shard}.tar", [m for n in range(shard * 6, shard * 6 + 6) for m in sample(n, 4 + n)]
        )
    keys = [f"d/{number:03}" for number in range(12)]
    chosen = ["source.columns=[png,vec.npy]", "source.label=json:label"]
    assert "With source.fit: crop, pad, or encoded" in refused(bring, datasets, *web(tmp_path / "shards", *chosen))
    version = bring(*web(tmp_path / "shards", *chosen, "source.fit=encoded"))
    assert version.columns["image"].encoding == "image"
    image = by_key(version, "image", keys)
    assert isinstance(image, Ragged)
    assert [image[row].tobytes() for row in range(12)] == [png(number, 4 + number) for number in range(12)]
    assert listed(by_key(version, "vec", keys)) == [[number, 1] for number in range(12)]
    assert version.classes == ["cat", "dog"]
    pixels = bring(*web(tmp_path / "shards", *chosen, "source.size=[4,4]", "source.fit=crop"), "data.name=pixels@main")
    assert pixels.name == "rows"
    cropped = open_version(datasets, "pixels")
    assert np.asarray(by_key(cropped, "image", keys))[:, 0, 0, 0].tolist() == list(range(12))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("members", "problem"),
    [
        ([("../up.png", b"")], "'../up.png' has a name that leads out of the tar"),
        ([("/etc/up.png", b"")], "has a name that leads out"),
        ([*sample(1), ("d/002.png", png(2)), ("d/001.txt", b"late")], "'d/001.txt' is out of place: sample 'd/001'"),
        ([*sample(1), *sample(2)[1:]], "sample 'd/002' has no .png, as the first one has"),
        ([*sample(1), *sample(2)[:3], ("d/002.vec.npy", npy([1.0]))], "d/002.vec.npy: it is float64 (1,) where the"),
        ([*sample(1), ("d/002.png", b"no"), *sample(2)[1:]], "d/002: it cannot be read as an image"),
        ([*sample(1), sample(1)[0]], "'d/001.png' stands twice"),
        ([("notes", b"")], "it holds no sample"),
    ],
)
def test_a_tar_with_a_hostile_name_or_a_member_out_of_place_is_refused(
    bring: Bring, datasets: Path, tmp_path: Path, members: list[tuple[str, bytes]], problem: str
) -> None:
    tar(tmp_path / "a.tar", members)
    assert problem in refused(bring, datasets, *web(tmp_path / "a.tar", "source.columns=[png,vec.npy]"))


@pytest.mark.slow
def test_a_tar_with_a_link_one_cut_off_and_keys_of_two_tars_alike_are_refused(
    bring: Bring, datasets: Path, tmp_path: Path
) -> None:
    (tmp_path / "t").mkdir()
    with tarfile.open(tmp_path / "t" / "a.tar", "w") as out:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    path = tmp_path / "t" / "a.tar"
    assert "'a.png' is no plain file but a link" in refused(bring, datasets, *web(path))
    tar(path, sample(1))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(png(1)) + 520 - 20])
    assert "it is cut off in member 'd/001.png'" in refused(bring, datasets, *web(path))
    tar(path, [*sample(1), *sample(2)])
    path.write_bytes(path.read_bytes()[: whole.rindex(b"NUMPY") + 512 - whole.rindex(b"NUMPY") % 512])
    assert "it has no end" in refused(bring, datasets, *web(path))
    path.write_bytes(whole)
    (tmp_path / "t" / "b.tar").write_bytes(whole)
    only = "source.columns=[png]"
    assert "the key 'd/001' stands more than once" in refused(bring, datasets, *web(tmp_path / "t", only))
    assert bring(*web(tmp_path / "t", only, "source.key=file")).num_rows == 2


# -- folders of Hugging Face


def saved(folder: Path, tables: dict[str, pa.Table], features: dict[str, Any]) -> None:
    """What save_to_disk writes, for a dict of datasets."""
    folder.mkdir()
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(tables)}))
    for split, found in tables.items():
        (folder / split).mkdir()
        (folder / split / "dataset_info.json").write_text(json.dumps({"features": features}))
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        (folder / split / "state.json").write_text(json.dumps(state))
        with pa.OSFile(str(folder / split / "data-00000-of-00001.arrow"), "wb") as out:
            with pa.ipc.new_stream(out, found.schema) as writer:
                writer.write_table(found, max_chunksize=2)


@pytest.mark.slow
def test_a_saved_hugging_face_dict_has_its_splits_classes_and_images(
    bring: Bring, datasets: Path, tmp_path: Path
) -> None:
    def rows(numbers: list[int]) -> pa.Table:
        images = [{"bytes": png(number), "path": None} for number in numbers]
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        grids = [[[number, 0], [1, 2], [3, 4]] for number in numbers]
        labels = [number % 2 for number in numbers]
        return pa.table({"image": pa.array(images, kind), "label": labels, "grid": grids})

    features = {
        "image": {"_type": "Image"},
        "grid": {"_type": "Array2D", "shape": [3, 2], "dtype": "int64"},
        "label": {"names": ["no", "yes"], "_type": "ClassLabel"},
    }
    saved(tmp_path / "hf", {"train": rows([1, 2, 3]), "test": rows([4])}, features)
    version = bring("source=huggingface", f"source.path={tmp_path}/hf", "data.split_by=given")
    assert version.splits == {"train": 3, "test": 1}
    assert version.classes == ["no", "yes"]
    keys = ["train#0", "train#1", "train#2", "test#0"]
    assert np.asarray(by_key(version, "image", keys))[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
    assert listed(by_key(version, "label", keys)) == [1, 0, 1, 0]
    assert np.asarray(by_key(version, "grid", keys))[:, 0, 0].tolist() == [1, 2, 3, 4]
    saved(tmp_path / "paths", {"train": rows([1])}, features)
    state = tmp_path / "paths" / "train" / "state.json"
    state.write_text(json.dumps({"_data_files": [{"filename": "../../hf/train/data-00000-of-00001.arrow"}]}))
    with pytest.raises(InputError, match="names a file outside of it"):
        bring("source=huggingface", f"source.path={tmp_path}/paths")
