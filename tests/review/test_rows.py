"""Rows without a label become a queue; what people say of them becomes their label, once; blame knows who it was."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from hpctool.cli.output import Folders
from hpctool.cli.review import group
from hpctool.data.append import Author, append
from hpctool.data.authors import label_authors
from hpctool.data.labels import Change, blame, relabel
from hpctool.data.manifest import NO_LABEL
from hpctool.data.version import Version, open_version
from hpctool.errors import InputError, UnknownName
from hpctool.export.bundle import Bundle
from hpctool.review.merge import apply
from hpctool.review.queue import Queue, make_queue
from hpctool.review.rows import Scored, make_rows_queue
from hpctool.review.select import Selection
from hpctool.serve.journal import Journal, Origin, write_segment
from tests.browser import NEEDS_BROWSER, browser
from tests.data.conftest import datasets, prepare_arrays, prepare_with
from tests.review.conftest import TOKEN, images_of, serve_page
from tests.review.test_page import Person

__all__ = ["browser", "datasets", "prepare_arrays", "prepare_with"]

NUM_ROWS, NUM_OPEN = 24, 12


@pytest.fixture
def partly(prepare_arrays: Callable[..., Any], datasets: Path) -> Version:
    """`tiny`: images of cats and dogs, every second one without a label."""
    images = np.random.default_rng(0).integers(0, 256, (NUM_ROWS, 4, 4, 3), np.uint8)
    names = np.array(["cat", "", "dog", ""] * (NUM_ROWS // 4))
    prepare_arrays(image=images, label=names)
    return open_version(datasets, "tiny")


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    return tmp_path / "reviews"


@contextmanager
def client_of(queue: Queue) -> Iterator[httpx.Client]:
    with (
        serve_page(queue) as page,
        httpx.Client(base_url=page.url, headers={"Authorization": f"Bearer {TOKEN}"}, trust_env=False) as client,
    ):
        yield client


def row_of(queue: Queue, place: int, version: Version) -> int:
    return int(version.find([queue.items[place].prediction])[0])


def say(queue: Queue, place: int, label: int | None, person: str = "ann") -> None:
    queue.answer(queue.items[place].prediction, label, person, f"{person}-{place}-{label}")


@NEEDS_BROWSER
@pytest.mark.slow
def test_somebody_labels_rows_on_the_page_and_blame_says_who(
    browser: Chrome, partly: Version, reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCTOOL_ROOT", str(tmp_path))
    made = CliRunner().invoke(group, ["rows", "tiny", "--num", "4", "--json"])
    assert json.loads(made.stdout) == {
        "review": made_id(made.stdout),
        "dataset": "tiny@main",
        "num_items": 4,
        "num_candidates": NUM_OPEN,
    }
    queue = Queue(reviews / made_id(made.stdout))
    with serve_page(queue) as page:
        browser.set_window_size(420, 900)
        ann = Person(browser, page.url, "ann")
        assert ann.text("model") == "tiny@main"
        assert ann.text("guess") == "", "no model was asked"
        button = browser.find_element(By.CSS_SELECTOR, "[data-label='1']")
        assert (button.text.split(), button.get_attribute("aria-label")) == (["1", "dog"], "dog")
        assert browser.execute_script("return document.documentElement.scrollWidth <= innerWidth")
        ann.press("1", "0", "s", "1", "u")
        ann.saved()
        ann.press("0")
        ann.saved()
        ann.until(lambda: ann.shown("done"))
        assert "become labels of tiny@main" in ann.text("done")
    said = CliRunner().invoke(group, ["apply", queue.id, "-m", "first look", "--tag", "v2"])
    assert "tiny@main: 3 rows labelled; commit" in said.output, said.exception
    after = open_version(partly.store.root.parent, "tiny@v2")
    rows = [row_of(queue, place, after) for place in range(4)]
    assert after.read("label")[rows].tolist() == [1, 0, -1, 0]
    assert after.num_rows == NUM_ROWS
    assert np.array_equal(after.read("image")[rows], images_of(queue))
    told = blame(after, queue.items[0].prediction)
    assert (told[0].old, told[0].new, told[0].who) == ("", "dog", "ann")
    assert told[0].why == f"review {queue.id}: unlabelled"
    assert label_authors(after) == {"import": NUM_ROWS - NUM_OPEN, "ann": 3}


def made_id(text: str) -> str:
    return str(json.loads(text)["review"])


@pytest.mark.slow
def test_a_label_that_came_meanwhile_or_was_taken_away_again_is_kept(
    partly: Version, datasets: Path, reviews: Path
) -> None:
    queue = make_rows_queue(reviews, datasets, "tiny", 50)
    assert make_rows_queue(reviews, datasets, "tiny", 50).id == queue.id
    assert sorted(item.prediction for item in queue.items) == sorted(
        partly.uids(np.flatnonzero(partly.read("label") < 0))
    )
    say(queue, 0, 1)
    say(queue, 1, 1)
    say(queue, 1, 0, "bob")  # disputed
    say(queue, 2, 0)
    say(queue, 2, 0, "bob")
    say(queue, 3, None)
    first = queue.items[0].prediction
    relabel(partly.store, "main", [Change(first, 0, "eve", "", "2026-01-01T00:00:00Z")], "quicker")
    with pytest.raises(InputError, match="stay in their splits"):
        apply(queue, datasets, "look", split="train")
    done = apply(queue, datasets, "look")
    assert (done.num_rows, done.num_there, done.changed, done.num_skipped) == (1, 1, [first], 1)
    assert done.disputed == [queue.items[1].prediction]
    after = open_version(datasets, "tiny")
    assert [int(after.read("label")[row_of(queue, place, after)]) for place in range(4)] == [0, -1, 0, -1]
    third = queue.items[2].prediction
    assert blame(after, third)[0].why == f"review {queue.id}: unlabelled, so says bob"
    relabel(partly.store, "main", [Change(third, -1, "eve", "", "2026-01-02T00:00:00Z")], "not so")
    again = apply(queue, datasets, "look")
    assert (again.num_rows, again.changed) == (0, [first, third])
    # What people skipped, or are at odds about, waits in its own review; what lost its label is asked once more.
    rest = {item.prediction for item in make_rows_queue(reviews, datasets, "tiny", 50).items}
    assert rest == {item.prediction for item in [queue.items[2], *queue.items[4:]]}


def test_rows_that_the_dataset_has_no_more_are_left_out_and_the_others_get_their_labels(
    partly: Version, datasets: Path, reviews: Path
) -> None:
    images = {"image": np.full((2, 4, 4, 3), 7, np.uint8)}
    author = Author("eve", "2026-01-01T00:00:00Z", "")
    append(partly.store, "main", images, ["a", "b"], np.full(2, NO_LABEL), [author] * 2, "two more")
    queue = make_rows_queue(reviews, datasets, "tiny", 50)
    partly.store.reset_branch("main", partly.commit)
    gone = [place for place in range(len(queue.items)) if row_of(queue, place, open_version(datasets, "tiny")) < 0]
    for place in gone:
        say(queue, place, 0)
    with pytest.raises(InputError, match="tiny@main has none of the 2 rows any more"):
        apply(queue, datasets, "look")
    there = min(set(range(len(queue.items))) - set(gone))
    say(queue, there, 1)
    done = apply(queue, datasets, "look")
    assert (done.num_rows, done.gone) == (1, [queue.items[place].prediction for place in gone])
    after = open_version(datasets, "tiny")
    assert after.read("label")[row_of(queue, there, after)] == 1


@pytest.mark.slow
def test_the_rows_that_a_model_is_least_sure_of_come_first_and_are_never_appended_again(folders: Folders) -> None:
    version = open_version(folders.datasets, "digits")
    uids = version.uids(np.arange(12))
    taken = [Change(uid, -1, "eve", "", "2026-01-01T00:00:00Z") for uid in uids[:10]]
    relabel(version.store, "main", taken, "nobody knows")
    bundle, journal = Bundle(folders.models / "digits" / "0001"), Journal(folders.journals / "digits")
    with pytest.raises(
        InputError, match=r"has scored no row of digits@main .* First: hpctool score data\.name=digits@main"
    ):
        make_rows_queue(folders.reviews, folders.datasets, "digits", 4, scored=Scored(bundle, journal))
    # As `hpctool score` writes it: row n is a 3, the surer the greater n is; rows 8 and 9 were not scored.
    scored = [*range(8), 10, 11]
    sure = np.linspace(0.3, 0.9, len(scored), dtype=np.float32)
    said = np.repeat(((1 - sure) / 9)[:, None], 10, axis=1)
    said[:, 3] = sure
    columns = {
        "number": np.arange(len(scored)),
        "time": np.full(len(scored), 1.7e9),
        "request": np.array([uids[row].encode() for row in scored]),
        "source": np.full(len(scored), b""),
        "input": version.read("image", np.array(scored)),
        "probabilities": said,
        "logits": np.log(said),
    }
    origin = Origin("digits@0001", "b" * 64, "score", "score-0123abcd", version.commit)
    write_segment(folders.journals / "digits", "0123abcd", origin, columns)
    queue = make_rows_queue(folders.reviews, folders.datasets, "digits", 4, scored=Scored(bundle, journal))
    assert [(item.prediction, item.guess, item.reason) for item in queue.items] == [
        (uid, 3, "uncertain") for uid in uids[:4]
    ]
    assert np.allclose(queue.probabilities[:, 3], sure[:4])
    queue.answer(uids[0], 5, "ann", "1")
    assert apply(queue, folders.datasets, "look").num_rows == 1
    after = open_version(folders.datasets, "digits")
    assert (after.num_rows, int(after.read("label")[0])) == (version.num_rows, 5)
    assert blame(after, uids[0])[0].why == f"review {queue.id}: uncertain"
    # Neither those that wait nor those with a label are offered as new rows; what was served is.
    served = make_queue(folders.reviews, folders.datasets, journal, bundle, Selection(100, 1))
    assert len(served.items) == served.record["num_candidates"] == 60


@pytest.mark.slow
def test_what_cannot_be_asked_is_one_sentence(
    partly: Version, datasets: Path, reviews: Path, prepare_arrays: Callable[..., Any]
) -> None:
    partly.store.create_tag("v1", partly.commit)
    for asked, message in (
        ({"dataset": "tiny@v1"}, "is no branch"),
        ({"num_rows": 0}, "ask for at least one"),
        ({"column": "sound"}, "no feature of tiny@main called 'sound'"),
        ({"split": "moon"}, "no split of tiny@main called 'moon'"),
    ):
        with pytest.raises((InputError, UnknownName), match=message):
            make_rows_queue(reviews, datasets, **{"dataset": "tiny", "num_rows": 5} | asked)  # type: ignore[arg-type]
    prepare_arrays("data.name=done", x=np.arange(6.0), y=np.arange(6.0), label=np.array(["a", "b"] * 3))
    with pytest.raises(InputError, match=r"has the features x, y; say which is shown: --column NAME"):
        make_rows_queue(reviews, datasets, "done", 5)
    with pytest.raises(InputError, match="No row of done@main waits for a label"):
        make_rows_queue(reviews, datasets, "done", 5, column="x")


@pytest.mark.slow
def test_encoded_images_of_any_size_and_texts_are_shown(
    prepare_with: Callable[..., Any], datasets: Path, reviews: Path, tmp_path: Path
) -> None:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    for number, size in enumerate([(30, 20), (20, 31), (2400, 10)]):
        Image.new("RGB", size, (number * 90, 0, 0)).save(photos / f"{number}.png")
        Image.new("RGB", size, (9, number, 0)).save(photos / "cat" / f"{number}.png")
    prepare_with("data.name=photos", "source=imagefolder", "source.fit=encoded", f"source.path={photos}")
    queue = make_rows_queue(reviews, datasets, "photos", 9)
    with client_of(queue) as client:
        found = [Image.open(io.BytesIO(client.get(f"/image/{place}.png").content)) for place in range(3)]
        assert sorted(image.size for image in found) == [(20, 31), (30, 20), (1600, 7)]
        assert {image.getpixel((0, 0)) for image in found} == {(0, 0, 0), (90, 0, 0), (180, 0, 0)}
        assert client.get("/image/3.png").status_code == 404

    pq.write_table(pa.table({"text": ["ä <b>", "word"], "label": ["", "x"]}), tmp_path / "t.parquet")
    prepare_with("data.name=texts", "source=parquet", f"source.path={tmp_path / 't.parquet'}")
    queue = make_rows_queue(reviews, datasets, "texts", 9)
    with client_of(queue) as client:
        (item,) = client.get("/queue").json()["items"]
        assert (item["text"], item["guess"], item["probabilities"]) == ("ä <b>", None, {})
