"""The page's server: nothing without the token, every answer on disk before it says so."""

from __future__ import annotations

import io
import json
import socket
import stat
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from hpctool.errors import InputError
from hpctool.review.queue import Queue
from hpctool.review.server import bind, token_file, token_of
from tests.review.conftest import TOKEN, images_of, serve_page


@pytest.fixture
def url(queue: Queue) -> Iterator[str]:
    with serve_page(queue) as page:
        yield page.url


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        yield client


def fact(queue: Queue, client_id: str = "1", **values: Any) -> dict[str, Any]:
    return {"item": queue.items[0].prediction, "label": 3, "who": "ann", "client": client_id} | values


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "", "b-token", "ä"])
def test_without_the_token_nothing_is_seen(queue: Queue, url: str, token: str | None) -> None:
    with httpx.Client(base_url=url, params=None if token is None else {"token": token}) as stranger:
        for path in ("/", "/page.js", "/page.css", "/queue", "/image/0.png", "/nowhere"):
            reply = stranger.get(path)
            assert reply.status_code == 401, path
            assert "hpctool review serve" in reply.text
            assert "set-cookie" not in reply.headers
        assert stranger.post("/answers", json=fact(queue)).status_code == 401
    assert queue.answers() == {}


@pytest.mark.slow
def test_the_token_in_the_url_becomes_a_cookie_that_scripts_cannot_read(queue: Queue, url: str) -> None:
    with httpx.Client(base_url=url) as browser:
        reply = browser.get("/", params={"token": TOKEN})
        assert browser.get("/queue").status_code == 200
    assert reply.status_code == 200
    cookie = reply.headers["set-cookie"].lower()
    assert cookie.startswith(f"hpctool-{queue.id}={TOKEN}")
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "default-src 'self'" in reply.headers["content-security-policy"]
    assert reply.headers["referrer-policy"] == "no-referrer"


@pytest.mark.slow
def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in ("/", "/page.css", "/page.js"):
        text = client.get(path).text
        assert "http://" not in text
        assert "https://" not in text
        assert 'src="/' not in text
        assert "url(" not in text


@pytest.mark.slow
def test_the_queue_is_told_without_its_reasons(client: httpx.Client, queue: Queue) -> None:
    queue.answer(queue.items[1].prediction, 4, "ann", "7")
    queue.answer(queue.items[1].prediction, 5, "bob", "8")
    found = client.get("/queue", params={"who": "ann"}).json()
    assert found["keys"] == found["classes"] == [str(n) for n in range(10)]
    assert [item["item"] for item in found["items"]] == [item.prediction for item in queue.items]
    assert found["items"][0]["guess"] == queue.items[0].guess
    assert sum(found["items"][0]["probabilities"].values()) == pytest.approx(1, abs=0.001)
    assert found["answers"] == [{"item": queue.items[1].prediction, "label": 4, "client": "7"}]
    assert "audit" not in client.get("/queue").text
    assert client.get("/queue", params={"who": "import"}).status_code == 400


@pytest.mark.slow
def test_an_image_is_what_the_model_saw(client: httpx.Client, queue: Queue) -> None:
    reply = client.get("/image/2.png")
    assert reply.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(reply.content))), images_of(queue)[2, :, :, 0])
    assert client.get("/image/999.png").status_code == 404


@pytest.mark.slow
def test_an_answer_is_on_disk_when_the_server_says_saved(client: httpx.Client, queue: Queue) -> None:
    assert client.post("/answers", json=fact(queue)).json() == {"saved": "1"}
    assert Queue(queue.path).answers()[queue.items[0].prediction]["ann"].label == 3
    assert client.post("/answers", json=fact(queue)).status_code == 200
    skip = fact(queue, "2", label=None, item=queue.items[1].prediction)
    assert client.post("/answers", json=skip).status_code == 200
    undo = {key: value for key, value in fact(queue, "3", undo="1").items() if key != "label"}
    assert client.post("/answers", json=undo).status_code == 200
    assert len(list((queue.path / "answers").iterdir())) == 3
    assert [(a.item, a.label) for a in queue.history("ann")] == [(queue.items[1].prediction, None)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"label": 10}, "Label 10 is out of range"),
        ({"label": "3"}, "Label '3' is neither"),
        ({"label": True}, "Label True is neither"),
        ({"item": "ffffffff-000001"}, "no item of review"),
        ({"who": ""}, "cannot be the name"),
        ({"undo": "9"}, "no answer '9' of ann"),
    ],
)
def test_what_is_no_answer_is_refused_with_the_reason(
    client: httpx.Client, queue: Queue, values: dict[str, Any], said: str
) -> None:
    reply = client.post("/answers", json=fact(queue, **values))
    assert reply.status_code == 400
    assert said in reply.json()["error"]
    assert queue.answers() == {}


@pytest.mark.slow
def test_what_is_no_json_is_refused(client: httpx.Client, queue: Queue) -> None:
    surrogate = json.dumps(fact(queue, item="\ud800"))
    for body in ("{", "[]", "3", "{}", '"x"', "[" * 8000 + "]" * 8000, surrogate):
        assert client.post("/answers", content=body).status_code == 400
    assert client.post("/answers", content=b"x" * 20_000).status_code == 413


@pytest.mark.slow
def test_an_answer_that_cannot_be_written_is_not_called_saved(client: httpx.Client, queue: Queue) -> None:
    (queue.path / "answers").write_text("a file where the log should be")
    reply = client.post("/answers", json=fact(queue))
    assert reply.status_code == 507
    assert "could not be saved" in reply.json()["error"]


def test_the_token_stays_and_only_its_owner_may_read_it(queue: Queue) -> None:
    token = token_of(queue)
    assert len(token) >= 32
    assert token_of(queue) == token
    assert stat.S_IMODE(token_file(queue).stat().st_mode) == 0o600


def test_a_busy_port_is_said_in_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(InputError, match="cannot be had: somebody else uses it"):
            bind("127.0.0.1", taken.getsockname()[1])
    for host, port in (("203.0.113.7", 0), ("127.0.0.1", 99_999)):
        with pytest.raises(InputError, match="cannot be had"):
            bind(host, port)
