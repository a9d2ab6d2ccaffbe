"""Each source brings its rows in, and says in one sentence which file or line it cannot take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from hpctool.data.identity import uids_of_keys
from hpctool.data.prepare import Prepared
from hpctool.data.sources import pin_source
from hpctool.data.store import list_datasets
from hpctool.data.version import Version, open_version
from hpctool.errors import ConfigError, InputError, SourceError, TargetError, UnknownName
from hpctool.world import Array

Run = Callable[..., Prepared]
Bring = Callable[..., Version]


@pytest.fixture
def bring(prepare_with: Run, datasets: Path) -> Bring:
    """Prepare a source as dataset `rows` and open it."""

    def go(*overrides: str) -> Version:
        prepare_with("data.name=rows", *overrides)
        return open_version(datasets, "rows")

    return go


def by_key(version: Version, column: str, keys: list[str]) -> Array:
    return version.read(column, version.find([uid.tobytes().hex() for uid in uids_of_keys(keys)]))


def refused(bring: Bring, datasets: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        bring(*overrides)
    assert not datasets.exists() or not list(datasets.iterdir())
    return str(caught.value)


# -- images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two classes of colour images, 6 × 5, as people keep them."""
    root = tmp_path / "photos"
    for number, path in enumerate(["cat/a.png", "cat/old/b.PNG", "dog/a.png"]):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((6, 5, 3), number * 10, np.uint8)).save(root / path)
    return root


def folder(root: Path) -> list[str]:
    return ["source=imagefolder", f"source.path={root}"]


@pytest.mark.slow
def test_a_folder_of_images_has_a_class_for_each_subfolder(bring: Bring, photos: Path) -> None:
    version = bring(*folder(photos))
    assert version.classes == ["cat", "dog"]
    assert version.columns["image"].shape == (6, 5, 3)
    keys = ["cat/a.png", "cat/old/b.PNG", "dog/a.png"]
    assert by_key(version, "label", keys).tolist() == [0, 0, 1]
    assert by_key(version, "image", keys)[:, 0, 0, 0].tolist() == [0, 10, 20]


@pytest.mark.slow
def test_images_beside_the_classes_have_no_label_and_other_files_are_left_out(
    prepare_with: Run, photos: Path, datasets: Path
) -> None:
    (photos / "cat" / "a.png").rename(photos / "who.png")
    (photos / "_unlabelled").mkdir()
    Image.new("RGB", (5, 6), (1, 2, 3)).save(photos / "_unlabelled" / "a.png")  # as an export has it
    (photos / "README.txt").write_text("my photos")
    (photos / ".hidden.png").write_text("no image")
    notes = prepare_with("data.name=rows", *folder(photos)).notes
    assert notes == [f"2 files in {photos} are no images and were left out.", "2 rows have no label."]
    version = open_version(datasets, "rows")
    assert by_key(version, "label", ["who.png", "dog/a.png", "_unlabelled/a.png"]).tolist() == [-1, 1, -1]
    assert version.classes == ["cat", "dog"]


@pytest.mark.slow
def test_grey_images_have_one_channel(bring: Bring, photos: Path) -> None:
    for path in photos.rglob("*.[pP]*"):
        Image.open(path).convert("L").save(path)
    assert bring(*folder(photos)).columns["image"].shape == (6, 5, 1)


@pytest.mark.slow
def test_images_are_resized_and_converted_when_that_is_asked_for(bring: Bring, photos: Path) -> None:
    Image.fromarray(np.full((9, 9), 77, np.uint8)).save(photos / "dog" / "grey.png")
    version = bring(*folder(photos), "source.size=[4,4]", "source.channels=3")
    assert version.columns["image"].shape == (4, 4, 3)
    assert (by_key(version, "image", ["dog/grey.png"]) == 77).all()


@pytest.mark.slow
def test_a_photo_stands_upright_as_its_camera_said(bring: Bring, tmp_path: Path) -> None:
    (tmp_path / "p" / "cat").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(np.zeros((4, 8, 3), np.uint8)).save(tmp_path / "p" / "cat" / "a.jpg", exif=exif)
    assert bring(*folder(tmp_path / "p")).columns["image"].shape == (8, 4, 3)


def test_an_unreadable_image_is_named(bring: Bring, photos: Path, datasets: Path) -> None:
    (photos / "dog" / "b.png").write_bytes((photos / "dog" / "a.png").read_bytes()[:50])
    assert refused(bring, datasets, *folder(photos)).startswith(f"{photos}/dog/b.png: it cannot be read as an image")


def test_an_image_of_another_size_is_named_with_the_way_out(bring: Bring, photos: Path, datasets: Path) -> None:
    Image.fromarray(np.zeros((7, 5, 3), np.uint8)).save(photos / "dog" / "b.png")
    text = refused(bring, datasets, *folder(photos))
    assert text.startswith(f"{photos}/dog/b.png: it is 7×5 where the first image is 6×5.")
    assert "source.size=[6,5]" in text


@pytest.mark.slow
def test_an_image_of_another_kind_is_named_with_the_way_out(bring: Bring, photos: Path, datasets: Path) -> None:
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(photos / "dog" / "b.png")
    assert "dog/b.png: it has 1 channel(s) where the first image has 3" in refused(bring, datasets, *folder(photos))
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(photos / "dog" / "b.png")
    assert "more than 8 bits" in refused(bring, datasets, *folder(photos))


@pytest.mark.slow
def test_a_folder_that_is_not_there_or_empty_is_refused(bring: Bring, tmp_path: Path, datasets: Path) -> None:
    assert "there is no such folder" in refused(bring, datasets, *folder(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "it holds no image" in refused(bring, datasets, *folder(tmp_path / "empty"))


@pytest.mark.slow
def test_a_class_that_was_not_named_is_refused(bring: Bring, photos: Path, datasets: Path) -> None:
    text = refused(bring, datasets, *folder(photos), "source.classes=[cat,bird]")
    assert "dog/a.png: label 'dog' is none of the classes cat, bird" in text


# -- tables


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "wine.csv"
    path.write_text("id,acid,sugar,quality\nw1,1.5,2,good\nw2,3,4e1,bad\n\nw3,5,6,\n")
    return path


def csv(path: Path, *more: str) -> list[str]:
    return ["source=csv", f"source.path={path}", "source.label=quality", "source.key=id", *more]


@pytest.mark.slow
def test_a_table_becomes_one_column_of_numbers_with_names(bring: Bring, table: Path) -> None:
    version = bring(*csv(table))
    x = version.columns["x"]
    assert (x.dtype.name, x.shape, x.names) == ("float32", (2,), ["acid", "sugar"])
    assert by_key(version, "x", ["w1", "w2", "w3"]).tolist() == [[1.5, 2], [3, 40], [5, 6]]
    assert version.classes == ["bad", "good"]
    assert by_key(version, "label", ["w1", "w2", "w3"]).tolist() == [1, 0, -1]


@pytest.mark.slow
def test_columns_can_be_chosen_and_rows_named_by_their_number(bring: Bring, table: Path) -> None:
    version = bring("source=csv", f"source.path={table}", "source.label=null", "source.columns=[sugar]")
    assert "label" not in version.columns
    assert by_key(version, "x", ["wine.csv#0", "wine.csv#2"]).tolist() == [[2], [6]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("w4,red,1,good", "line 6: 'red' in column 'acid' is not a finite number"),
        ("w4,1,,good", "line 6: '' in column 'sugar' is not a finite number"),
        ("w4,1,nan,good", "line 6: 'nan' in column 'sugar'"),
        ("w4,1,1e99,good", "line 6: '1e99' in column 'sugar'"),
        ("w4,1,good", "line 6: it has 3 cells where the header has 4"),
    ],
)
def test_a_wrong_cell_is_named_by_line_and_column(
    bring: Bring, table: Path, datasets: Path, row: str, problem: str
) -> None:
    table.write_text(table.read_text() + row + "\n")
    assert f"{table}, {problem}" in refused(bring, datasets, *csv(table))


@pytest.mark.slow
def test_a_label_outside_the_classes_is_named_by_line(bring: Bring, table: Path, datasets: Path) -> None:
    text = refused(bring, datasets, *csv(table, "source.classes=[good]"))
    assert f"{table}, line 3: label 'bad' is none of the classes good" in text


@pytest.mark.slow
def test_a_column_that_is_not_there_is_told_from_those_that_are(bring: Bring, table: Path, datasets: Path) -> None:
    text = refused(bring, datasets, "source=csv", f"source.path={table}", "source.label=qualty")
    assert "called 'qualty'; there is: id, acid, sugar, quality. Did you mean quality?" in text


# -- arrays


@pytest.mark.slow
def test_numbers_are_classes_in_order_of_number(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays(x=np.arange(4), label=np.array([10, 9, -1, 10]))
    version = open_version(datasets, "tiny")
    assert version.classes == ["9", "10"]
    assert sorted(version.read("label").tolist()) == [-1, 0, 1, 1]


@pytest.mark.slow
def test_numbers_under_given_names_are_indices(prepare_arrays: Run, datasets: Path) -> None:
    prepare_arrays("source.classes=[cat,dog]", x=np.arange(3), label=np.array([1, 0, 1]))
    version = open_version(datasets, "tiny")
    assert version.classes == ["cat", "dog"]
    assert by_key(version, "label", [f"tiny.npz#{i}" for i in range(3)]).tolist() == [1, 0, 1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "problem"),
    [
        ({"x": np.arange(3), "label": np.arange(2)}, "different lengths: x 3, label 2"),
        ({"x": np.arange(3), "label": np.zeros(3)}, "labels are one integer or name for each row, not float64"),
        ({"x": np.arange(3), "y": np.arange(3)}, "called 'label'; there is: x, y"),
        ({"label": np.arange(3)}, "it holds no array of features"),
        (
            {"x": np.array(["a", "b"]), "label": np.arange(2)},
            "column 'x': <U1 of shape (2,) is not an array of numbers",
        ),
        ({"x": np.array([{}, {}]), "label": np.arange(2)}, "array 'x' cannot be read"),
        ({"x": np.arange(2), "label": np.arange(2) + 5, "classes": ["a", "b"]}, "row 0: label '5' is none of"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    prepare_arrays: Run, datasets: Path, arrays: dict[str, Array], problem: str
) -> None:
    overrides = [f"source.classes=[{','.join(arrays.pop('classes'))}]"] if "classes" in arrays else []
    with pytest.raises(InputError) as caught:
        prepare_arrays(*overrides, **arrays)
    assert problem in str(caught.value)
    assert not datasets.exists() or not list(datasets.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(("content", "problem"), [(b"", "cannot be read"), (b"PK nonsense", "cannot be read")])
def test_a_file_that_is_no_archive_is_refused(
    bring: Bring, tmp_path: Path, datasets: Path, content: bytes, problem: str
) -> None:
    (tmp_path / "a.npz").write_bytes(content)
    assert problem in refused(bring, datasets, "source=npz", f"source.path={tmp_path}/a.npz")
    assert "there is no such file" in refused(bring, datasets, "source=npz", f"source.path={tmp_path}/b.npz")


# -- a reader of one's own

READERS = """
import numpy as np

class Scans:
    classes = ["well", "ill"]
    def __init__(self, count, crooked=False):
        self.count, self.crooked = count, crooked
    def __iter__(self):
        for i in range(self.count):
            shape = (2, 3) if self.crooked and i == 2 else (2, 2)
            image = np.full(shape, i, np.uint8)
            yield {"key": f"scan {i}", "label": "ill" if i % 2 else None, "image": image, "age": i}

def nothing():
    return []

def odd():
    yield {"label": 1, "x": 2}

def broken():
    raise ValueError("no scanner")
"""


@pytest.fixture
def readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "myreaders.py").write_text(READERS)
    monkeypatch.syspath_prepend(tmp_path)


def own(name: str, *more: str) -> list[str]:
    return ["source=own", f"source._target_=myreaders.{name}", *more]


@pytest.mark.slow
@pytest.mark.usefixtures("readers")
def test_a_reader_of_ones_own_brings_any_columns(bring: Bring) -> None:
    version = bring(*own("Scans", "+source.count=5"))
    assert version.classes == ["well", "ill"]
    assert version.features == ["age", "image"]
    keys = [f"scan {i}" for i in range(5)]
    assert by_key(version, "age", keys).tolist() == list(range(5))
    assert by_key(version, "label", keys).tolist() == [-1, 1, -1, 1, -1]


@pytest.mark.slow
@pytest.mark.usefixtures("readers")
@pytest.mark.parametrize(
    ("source", "kind", "problem"),
    [
        (
            own("Scans", "+source.count=5", "+source.crooked=true"),
            SourceError,
            "of row 2 is uint8 (2, 3) where row 0 has",
        ),
        (own("nothing"), SourceError, "myreaders.nothing: it has no rows"),
        (own("odd"), SourceError, "row 0 is not a mapping with 'key'"),
        (own("broken"), TargetError, "no scanner"),
        (own("Scan"), TargetError, "Scans"),
    ],
)
def test_a_reader_that_does_not_work_is_refused(
    bring: Bring, datasets: Path, source: list[str], kind: type[InputError], problem: str
) -> None:
    with pytest.raises(kind) as caught:
        bring(*source)
    assert problem in str(caught.value)
    assert list_datasets(datasets) == []


# -- any


@pytest.mark.slow
def test_a_key_of_the_source_that_does_not_fit_is_named_in_full(bring: Bring, table: Path) -> None:
    with pytest.raises(ConfigError, match=r"source\.size"):
        bring(*csv(table), "+source.size=big")
    with pytest.raises(UnknownName, match="kind of source 'exel'"):
        bring("~source", "+source.kind=exel")


def test_the_runs_identity_follows_the_sources_content(table: Path, photos: Path) -> None:
    def pins() -> list[str]:
        sources = [
            {"kind": "csv", "path": str(table), "label": "quality", "key": "id"},
            {"kind": "imagefolder", "path": str(photos)},
        ]
        return [pin_source(OmegaConf.create(source)) for source in sources]

    before = pins()
    assert pins() == before
    table.write_text(table.read_text().replace("4e1", "4e2"))
    (photos / "dog" / "a.png").rename(photos / "dog" / "c.png")
    assert not set(pins()) & set(before)
