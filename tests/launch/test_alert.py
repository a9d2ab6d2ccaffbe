"""Telling somebody how a run ended: who is told what, and that nothing of it can hurt the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hpctool.errors import ConfigError
from hpctool.launch import limits
from hpctool.launch.alert import tell
from hpctool.rundir import RunDir, create_run
from tests.launch.test_limits import composed


def a_run(folder: Path, **asked: object) -> RunDir:
    record = {"name": "train", "identity": "1a2b" * 16, "job": "train"}
    cfg = OmegaConf.create({"cluster": {"alert": {"when": ["failed", "stalled"], **asked}}})
    return create_run(folder, record, {"config.yaml": OmegaConf.to_yaml(cfg)})


@pytest.fixture
def chat() -> Iterator[tuple[str, list[bytes]]]:
    """A service that takes messages."""
    heard: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/hook", heard
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_webhook_hears_of_the_endings_that_were_asked_for(tmp_path: Path, chat: tuple[str, list[bytes]]) -> None:
    url, heard = chat
    run = a_run(tmp_path, webhook=url)
    tell(run, "completed", "")
    assert heard == []
    tell(run, "failed", "ValueError: no such lamp")
    tell(run, "requeued", "hang: rank 2 has not reached step 12")
    told = [json.loads(body) for body in heard]
    assert [one["text"] for one in told] == [
        f"{run.id} failed: ValueError: no such lamp",
        f"{run.id} stalled: hang: rank 2 has not reached step 12",
    ]
    assert told[0]["folder"] == str(run.path)


def test_a_command_gets_the_facts_in_its_environment_and_never_in_its_words(tmp_path: Path) -> None:
    words = ["sh", "-c", f'echo "$HPCTOOL_ALERT_RUN|$HPCTOOL_ALERT_STATE|$HPCTOOL_ALERT_CAUSE" > {tmp_path}/told']
    run = a_run(tmp_path / "runs", command=words)
    tell(run, "failed", "$(touch hacked); `true`")
    assert (tmp_path / "told").read_text() == f"{run.id}|failed|$(touch hacked); `true`\n"


def test_a_run_whose_rank_only_knows_that_it_was_stopped_is_told_as_cancelled(tmp_path: Path) -> None:
    run = a_run(tmp_path, when=["cancelled"], command=["sh", "-c", f'echo "$HPCTOOL_ALERT_CAUSE" >> {tmp_path}/told'])
    run.ledger.append({"kind": "begun", "attempt": 1, "where": "local"})
    tell(run, "requeued", "preempted")
    run.ledger.append({"kind": "cancel", "by": "me@here"})
    run.ledger.append({"kind": "ended", "attempt": 1, "state": "requeued", "cause": "preempted"})
    tell(run, "requeued", "preempted")
    assert (tmp_path / "told").read_text() == "cancelled by me@here\n"


def test_mail_goes_through_the_hosts_sendmail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sendmail").write_text(f"#!/bin/sh\ncat > {tmp_path}/mail\n")
    (tmp_path / "sendmail").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    run = a_run(tmp_path / "runs", mail="me@example.org")
    tell(run, "failed", "two\nBcc: everybody@example.org")
    head, _, body = (tmp_path / "mail").read_text().partition("\n\n")
    assert head == f"To: me@example.org\nSubject: hpctool: {run.id} failed"
    assert "Bcc" in body


def test_what_cannot_be_told_is_said_and_raises_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = a_run(tmp_path, webhook="http://127.0.0.1:1/", command=["false"], mail=None)
    tell(run, "failed", "")
    said = capfd.readouterr().err
    assert "cluster.alert.webhook failed" in said
    assert "cluster.alert.command failed" in said
    run.config_yaml.unlink()
    tell(run, "failed", "")
    assert "it could not be told" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("when", ["done"], "'done'"),
        ("webhook", "ftp://x", "is no http address"),
        ("command", ["no-such-program"], "there is no program 'no-such-program' here"),
    ],
)
def test_an_alert_that_could_never_be_told_is_refused_before_the_run(key: str, value: object, words: str) -> None:
    cfg = composed()
    cfg.cluster.alert[key] = value
    with pytest.raises(ConfigError, match=words):
        limits.check(cfg)
