from __future__ import annotations

import json
import random
import re
import signal
import stat
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import numpy as np
import pytest
from omegaconf import OmegaConf

from hpctool import config, files
from hpctool.errors import EXIT_CONTINUE, EXIT_INPUT, EXIT_INTERRUPTED, ConfigError, InputError, UnknownName
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from hpctool.export.verify import load_verified
from hpctool.launch import local
from hpctool.launch.result import current_story
from hpctool.rundir import RunDir
from hpctool.serve import server as serving
from hpctool.serve.resolve import resolve_serve
from hpctool.serve.schema import ServeConfig
from tests.serve.samples import Running, Start, command, images, output, publish_model, question, read_all

INFER = "/v2/models/digits/infer"


def until(condition: Any, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def in_service(server: Running, version: str) -> bool:
    return bool(server.client.get("/v2/models/digits").json()["versions"] == [version])


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_2000_requests_while_versions_switch_ten_times(project: Path, start: Start) -> None:
    """None fails, and every answer is that of the version that it names, by whatever request and at whatever moment."""
    bundles = [Bundle(project / "models" / "digits" / "0001"), *(publish_model(project / "models", s) for s in (2, 3))]
    x = images(16, seed=3)
    expected = {b.version: load_verified(b.path)(x)["logits"] for b in bundles}
    server = start()
    answers: list[tuple[int, httpx.Response]] = []
    lock, left = threading.Lock(), iter(range(2000))

    def client(number: int) -> None:
        with httpx.Client(base_url=server.endpoint["url"], headers=server.client.headers, timeout=60) as http:
            while True:
                with lock:
                    count = next(left, None)
                if count is None:
                    return
                row = count % len(x)
                answer = http.post(INFER, json=question(x[row : row + 1], id=f"{number}-{count}"))
                with lock:
                    answers.append((row, answer))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for switch in range(1, 11):
        reached = partial(lambda count: len(answers) >= count, 180 * switch)
        until(reached)
        bundle = bundles[switch % 3]
        server.promote(bundle)
        until(partial(in_service, server, bundle.version))
    for thread in threads:
        thread.join()
    assert len(answers) == 2000
    assert {answer.status_code for _, answer in answers} == {200}
    found = [(row, answer.json()) for row, answer in answers]
    for row, answer in found:
        np.testing.assert_allclose(output(answer)[0], expected[answer["model_version"]][row], atol=1e-4)
    assert {answer["model_version"] for _, answer in found} == {"0001", "0002", "0003"}
    ids = [answer["parameters"]["prediction_ids"][0] for _, answer in found]
    code, _ = server.end()
    assert code == EXIT_INTERRUPTED
    journal = server.journal.read()
    assert sorted(journal.ids) == sorted(ids)
    model_of = dict(zip(journal.ids, journal.model, strict=True))
    assert all(model_of[i] == f"digits@{a['model_version']}" for i, (_, a) in zip(ids, found, strict=True))


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_kill_9_loses_nothing_that_was_acknowledged_before_the_flush_interval(start: Start) -> None:
    """The journal holds every answer that was given more than the interval (and a slow disk's moment) before."""
    rng = random.Random(5)
    given: list[tuple[float, str]] = []
    for _ in range(3):
        server = start("journal.flush_s=0.1")
        ends = time.monotonic() + rng.uniform(0.5, 1.5)
        while time.monotonic() < ends:
            ids = server.ask(images(2))["parameters"]["prediction_ids"]
            given += [(time.monotonic(), i) for i in ids]
        killed = time.monotonic()
        server.kill()
        kept = set(server.journal.read().ids)
        safe = [i for when, i in given if when < killed - 0.4]
        assert len(safe) > 10
        assert not [i for i in safe if i not in kept]
        assert server.journal.lost_rows == 0
        # What the kill took is gone for good; what is in the journal stays.
        given = [(0.0, i) for i in kept]


@pytest.mark.slow
def test_a_bundle_that_fails_its_test_is_refused_and_the_old_one_stays(project: Path, start: Start) -> None:
    server = start()
    good, bad = publish_model(project / "models", seed=2), publish_model(project / "models", seed=3)
    server.promote(bad)
    until(lambda: server.ask(images(1))["model_version"] == "0003")
    server.promote(good)
    until(lambda: server.ask(images(1))["model_version"] == "0002")
    # Damaged after it was promoted the first time.
    path = bad.path / "model.ts"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    aliases.promote(project / "models", bad, "production", lambda _: None)
    until(lambda: server.client.get("/v2/models/digits/ready").json()["refused"])
    refused = server.client.get("/v2/models/digits").json()["parameters"]["refused"]
    assert "digits@production has moved and is refused; digits@0002 stays in service" in refused
    assert "its bytes are not those that were published" in refused
    assert server.ask(images(1))["model_version"] == "0002"
    newest = publish_model(project / "models", seed=4)
    server.promote(newest)
    until(lambda: server.ask(images(1))["model_version"] == "0004")
    assert server.client.get("/v2/models/digits/ready").json()["refused"] == ""
    _, said = server.end()
    assert said.count("is refused") == 1


@pytest.mark.slow
def test_asked_to_stop_it_answers_what_is_under_way_and_writes_the_journal(start: Start) -> None:
    server = start("journal.flush_s=600", model="digits")
    results: list[Any] = []

    def ask() -> None:
        with httpx.Client(base_url=server.endpoint["url"], headers=server.client.headers, timeout=30) as client:
            while True:
                try:
                    results.append(client.post(INFER, json=question(images(4))))
                except httpx.TransportError as error:
                    results.append(error)
                    return

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(results) > 40)
    assert (server.run / "artifacts" / "endpoint.json").exists()
    content = json.dumps(question(images(4))).encode()
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.token}\r\n"
    with server.line() as line:
        line.sendall(f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content[:50])
        time.sleep(0.2)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        line.sendall(content[50:])
        reply = read_all(line)
    assert reply.startswith("HTTP/1.1 200")
    said, _ = server.process.communicate(timeout=60)
    for thread in threads:
        thread.join()
    assert server.process.returncode == EXIT_CONTINUE
    assert re.search(r"Stopped \(.+\) after [\d,]+ rows; the same command serves \S+ again\.", said)
    answers = [r for r in results if isinstance(r, httpx.Response)]
    assert {answer.status_code for answer in answers} == {200}
    ids = [i for answer in answers for i in answer.json()["parameters"]["prediction_ids"]]
    ids += json.loads(reply.partition("\r\n\r\n")[2])["parameters"]["prediction_ids"]
    assert sorted(server.journal.read().ids) == sorted(ids)
    assert not (server.run / "artifacts" / "endpoint.json").exists()
    story = current_story(RunDir(server.run))
    assert (story.state, story.cause) == ("requeued", "preempted")
    assert story.step == len(ids)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_time_limit_brings_it_back_and_a_cancel_ends_it(project: Path) -> None:
    """In the local queue: told to stop 55 s before its limit of a minute, it comes back with the same token."""
    limits = ["resources.time=1", "cluster.signal_delay_s=55"]
    process = command(project, "cluster=local", "serve.model=digits", "serve.port=0", *limits)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0, said
    (rundir,) = [RunDir(path) for path in (project / "runs").glob("serve-*")]
    endpoint = rundir.path / "artifacts" / "endpoint.json"
    try:
        until(endpoint.exists)
        first = files.read_json(endpoint)
        token = Path(first["token_file"]).read_text()
        until(lambda: endpoint.exists() and files.read_json(endpoint)["pid"] != first["pid"], timeout_s=60)
        assert Path(files.read_json(endpoint)["token_file"]).read_text() == token
    finally:
        assert local.cancel(project / "runs", rundir.id)
        local.wait(project / "runs", [rundir.id], timeout_s=60)
    story = current_story(rundir)
    assert story.state == "cancelled"
    assert [e["cause"] for e in story.of_kind("ended")][:1] == ["timeout"]
    assert not endpoint.exists()


@pytest.mark.slow
def test_a_busy_port_is_exit_code_2_and_one_sentence(project: Path) -> None:
    with serving.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        process = command(project, "serve.model=digits", f"serve.port={port}")
        said, _ = process.communicate(timeout=60)
    assert process.returncode == EXIT_INPUT
    assert f"Port {port} of 127.0.0.1 is taken by another program. Choose another with serve.port=…" in said
    assert "Traceback" not in said


def test_an_address_that_is_not_ours_is_said() -> None:
    with pytest.raises(InputError, match=r"203\.0\.113\.1:0 cannot be listened on"):
        serving.listen("203.0.113.1", 0)


@pytest.mark.slow
def test_a_token_of_ones_own_must_be_private(project: Path) -> None:
    rundir = RunDir(project / "run", attempt=1)
    rundir.path.mkdir()
    path = project / "token"
    path.write_text("secret\n")
    path.chmod(0o640)
    with pytest.raises(InputError, match=f"chmod 600 {path}"):
        serving.read_token(rundir, typed(project, f"serve.token_file={path}"))
    path.chmod(0o600)
    assert serving.read_token(rundir, typed(project, f"serve.token_file={path}")) == (str(path), "secret")
    path.write_text("\n")
    with pytest.raises(InputError, match="holds no token"):
        serving.read_token(rundir, typed(project, f"serve.token_file={path}"))
    path.unlink()
    with pytest.raises(InputError, match="cannot be read"):
        serving.read_token(rundir, typed(project, f"serve.token_file={path}"))
    made, token = serving.read_token(rundir, typed(project))
    assert stat.S_IMODE(Path(made).stat().st_mode) == 0o600
    assert serving.read_token(rundir, typed(project)) == (made, token)
    assert serving.read_token(rundir, typed(project, "serve.auth=none")) == ("", "")


@pytest.mark.slow
def test_a_model_without_a_version_is_pinned_and_an_alias_is_followed(project: Path) -> None:
    cfg = composed(project)
    (note,) = resolve_serve(cfg).notes
    assert cfg.serve.model == "digits@0001"
    assert "serve.model=digits@<alias> follows one" in note
    cfg = composed(project, "serve.model=digits@production")
    assert [one.name for one in resolve_serve(cfg).inputs] == ["digits@production"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "error"),
    [
        ("serve.model=letters", UnknownName),
        ("serve.model=digits@staging", UnknownName),
        ("serve.model=digits@0007", UnknownName),
        ("serve.port=70000", ConfigError),
        ("serve.auth=basic", ConfigError),
        ("journal.flush_s=0", ConfigError),
        ("serve.max_batch_rows=0", ConfigError),
        ("resources.tasks_per_node=2", ConfigError),
    ],
)
def test_what_cannot_be_is_said_before_anything_starts(project: Path, override: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        resolve_serve(composed(project, override))


def composed(project: Path, *overrides: str) -> Any:
    return config.typed(
        config.compose("serve", [f"paths.root={project}", "serve.model=digits", *overrides]).cfg, ServeConfig
    )


def typed(project: Path, *overrides: str) -> ServeConfig:
    return cast(ServeConfig, OmegaConf.to_object(config.resolved(composed(project, *overrides))))
