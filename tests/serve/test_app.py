from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from hpctool.export.verify import load_verified
from tests.serve.samples import CLASSES, Running, images, make_project, output, question, read_all, start_server

INFER = "/v2/models/digits/infer"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One server for all tests of this file, with small limits."""
    root = make_project(tmp_path_factory.mktemp("project"))
    running = start_server(root, "serve.max_body_mb=0.1", "serve.max_queue_rows=500", "serve.max_batch_rows=32")
    yield running
    running.kill()


@pytest.mark.slow
def test_an_answer_is_that_of_the_bundle(server: Running) -> None:
    x = images(40)
    answer = server.ask(x, id="mine")
    loaded = load_verified(server.root / "models" / "digits" / "0001")
    for name, expected in loaded(x).items():
        np.testing.assert_allclose(output(answer, name), expected, rtol=1e-5, atol=1e-6)
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "0001", "mine")
    assert len(set(answer["parameters"]["prediction_ids"])) == 40


def test_the_protocols_other_routes(server: Running) -> None:
    get = server.client.get
    assert get("/v2").json()["name"] == "hpctool"
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    assert get("/v2/models/digits/ready").json()["ready"] is True
    assert get("/v2/models/digits/versions/1/ready").json()["version"] == "0001"
    model = get("/v2/models/digits").json()
    assert model == get("/v2/models/digits/versions/0001").json()
    assert model["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 4, 4, 1]}]
    assert [tensor["name"] for tensor in model["outputs"]] == ["probabilities", "logits"]
    assert model["parameters"]["classes"] == CLASSES
    asked = server.client.post("/v2/models/digits/versions/1/infer", json=question(images(1)))
    assert asked.json()["model_version"] == "0001"


@pytest.mark.parametrize("token", [None, "", "Bearer", "Bearer wrong", "Basic x", "Bearer é"])
def test_without_the_token_only_health_answers(server: Running, token: str | None) -> None:
    headers = {} if token is None else {"Authorization": token.encode()}
    with httpx.Client(base_url=server.endpoint["url"], headers=headers) as stranger:  # type: ignore[arg-type]
        for method, path in (("POST", INFER), ("GET", "/v2/models/digits"), ("GET", "/metrics"), ("GET", "/")):
            refused = stranger.request(method, path)
            assert refused.status_code == 401
            assert "token is missing or wrong" in refused.json()["error"]
        assert stranger.get("/v2/health/live").status_code == 200
        assert stranger.get("/v2/health/ready").status_code == 200


def test_the_token_is_only_for_its_owner(server: Running) -> None:
    status = Path(server.endpoint["token_file"]).stat()
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert len(server.token) >= 32


@pytest.mark.parametrize(
    ("status", "path", "content", "reason"),
    [
        (400, INFER, b"no json", "not JSON"),
        (400, INFER, b"\xff\xfe", "not JSON"),
        (400, INFER, b"", "not JSON"),
        (400, INFER, json.dumps(question(np.full((1, 4, 4, 1), 300))).encode(), "UINT8 holds 0 to 255"),
        (400, INFER, json.dumps(question(images(1, shape=(5, 4, 1)))).encode(), "[N, 4, 4, 1] is needed"),
        (404, "/v2/models/letters/infer", b"{}", "There is no model 'letters' here; there is: digits"),
        (404, "/v2/models/digits/versions/7/infer", b"{}", "Version '7' is not in service; digits@0001 is"),
        (404, "/v2/models/digits/versions/x/infer", b"{}", "Version 'x' is not in service"),
        (404, "/v1/predict", b"{}", "POST /v2/models/<name>/infer asks a model"),
        (405, "/v2/models/digits", b"{}", "Method Not Allowed"),
        (413, INFER, json.dumps(question(np.zeros((501, 4, 4, 1), np.uint8))).encode(), "Send it in parts"),
    ],
)
def test_bad_input_is_answered_with_a_reason(
    server: Running, status: int, path: str, content: bytes, reason: str
) -> None:
    answer = server.client.post(path, content=content)
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert reason in answer.json()["error"]


def test_a_body_beyond_the_limit_is_refused_before_it_has_come(server: Running) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    for rest in ("Content-Length: 99999999999\r\n\r\n", "Transfer-Encoding: chunked\r\n\r\n20000\r\n" + "x" * 0x20000):
        with server.line() as line:
            line.sendall((head + rest).encode())
            reply = read_all(line)
        assert reply.startswith("HTTP/1.1 413")
        assert "raise serve.max_body_mb" in reply


def test_a_client_that_leaves_amid_its_body_is_no_failure_of_the_server(server: Running) -> None:
    with server.line() as line:
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
        line.sendall(f"{head}Content-Length: 1000\r\n\r\nabc".encode())
        time.sleep(0.2)
    deadline = time.monotonic() + 10
    while 'hpctool_requests_total{code="499"} 1.0' not in (said := server.client.get("/metrics").text):
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


@pytest.mark.slow
def test_good_and_bad_requests_at_once_do_not_touch_each_other(server: Running) -> None:
    loaded = load_verified(server.root / "models" / "digits" / "0001")
    wrong: list[Any] = []

    def good(number: int) -> None:
        x = images(3, seed=number)
        with httpx.Client(base_url=server.endpoint["url"], headers=server.client.headers, timeout=30) as client:
            for _ in range(10):
                answer = client.post(INFER, json=question(x, id=f"good-{number}"))
                if answer.status_code != 200 or not np.allclose(output(answer.json()), loaded(x)["logits"], atol=1e-4):
                    wrong.append(answer.text)

    def bad(number: int) -> None:
        x = images(3).astype(np.int64) - 1000 * number
        with httpx.Client(base_url=server.endpoint["url"], headers=server.client.headers, timeout=30) as client:
            for _ in range(10):
                answer = client.post(INFER, json=question(x))
                if answer.status_code != 400:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=task, args=(number,)) for number in range(1, 5) for task in (good, bad)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_an_answer_leaves_at_once(server: Running) -> None:
    """Without TCP_NODELAY every answer waits 40 ms for the client's acknowledgement of its head."""

    def took_s() -> float:
        began = time.perf_counter()
        server.ask(images(1))
        return time.perf_counter() - began

    assert min(took_s() for _ in range(20)) < 0.03


def test_metrics_count_requests_rows_and_the_version(server: Running) -> None:
    def value(name: str) -> float:
        page = server.client.get("/metrics").text
        return next((float(line.rsplit(" ", 1)[1]) for line in page.splitlines() if line.startswith(name + " ")), 0.0)

    requests, rows = value('hpctool_requests_total{code="200"}'), value("hpctool_rows_total")
    server.ask(images(7))
    server.client.post(INFER, content=b"x")
    assert value("hpctool_rows_total") == rows + 7
    # The page itself was answered once in between.
    assert value('hpctool_requests_total{code="200"}') >= requests + 2
    assert value('hpctool_requests_total{code="400"}') >= 1
    assert value('hpctool_model_info{model="digits",version="0001"}') == 1
    assert value("hpctool_batch_rows_count") >= 1
    assert value("hpctool_queue_rows") == 0
