"""The server as a job: listen, load, say where it is, answer until told to stop, finish what is under way."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn

from hpctool import files
from hpctool.errors import InputError, Stopped, counted
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.serve.app import Service, make_app
from hpctool.serve.batcher import Batcher, Limits
from hpctool.serve.log import say
from hpctool.serve.metrics import Metrics
from hpctool.serve.runtime import Runtime
from hpctool.serve.schema import ENDPOINT, ServeConfig

_TOKEN = "token"  # noqa: S105 - the file's name
_MB = 1 << 20


class _Server(uvicorn.Server):
    """uvicorn that leaves the signals to the job and asks it whether to stop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        return signals.stop_requested() or await super().on_tick(counter)


def serve(rundir: RunDir, cfg: ServeConfig) -> dict[str, Any]:
    """Serve until somebody asks to stop. Raises Stopped; InputError where the port is taken or the token is unsafe.

    Raises OperationError where answered predictions could not be written at the end.
    """
    rundir.artifact(ENDPOINT).unlink(missing_ok=True)  # of an attempt that was killed
    token_file, token = read_token(rundir, cfg)
    with listen(cfg.serve.host, cfg.serve.port) as listener:
        metrics = Metrics()
        runtime = Runtime(cfg, rundir.id, metrics)
        limits = Limits(cfg.serve.max_batch_rows, cfg.serve.max_queue_rows, int(cfg.serve.max_queue_mb * _MB))
        batcher = Batcher(runtime.current, limits, metrics, cfg.num_threads)
        runtime.start(batcher)
        metrics.watch("hpctool_queue_rows", "Rows that wait.", lambda: batcher.queued_rows)
        metrics.watch("hpctool_journal_backlog_rows", "Predictions not yet on disk.", lambda: runtime.backlog_rows)
        metrics.watch(
            "hpctool_journal_backlog_seconds", "The age of the oldest.", lambda: runtime.current.writer.backlog_s
        )
        max_body_bytes = int(cfg.serve.max_body_mb * _MB)
        service = Service(runtime, batcher, metrics, token, max_body_bytes, cfg.journal.max_backlog_rows)
        url = f"http://{_reachable(cfg.serve.host)}:{listener.getsockname()[1]}"
        endpoint = {"url": url, "token_file": token_file, "pid": os.getpid(), "model": cfg.serve.model}
        files.write_json(rundir.artifact(ENDPOINT), endpoint)
        say(f"{cfg.serve.model} answers at {url}/v2/models/{runtime.name}/infer")
        try:
            _answer_requests(service, cfg, listener)
        finally:
            rundir.artifact(ENDPOINT).unlink(missing_ok=True)
            runtime.stop()
            batcher.close()
            runtime.close()
    # The step of a server: how many rows it has answered, in all its attempts.
    cause, rows = signals.stop_cause(), batcher.answered_rows
    said = f"Stopped ({cause}) after {counted(rows, 'row')}; the same command serves {cfg.serve.model} again."
    raise Stopped(cause, rundir.story().step + rows, sentence=said)


def read_token(rundir: RunDir, cfg: ServeConfig) -> tuple[str, str]:
    """The token's file and the token, both empty where none is asked for; made in the run's folder where none is named.

    Raises InputError where others can read it.
    """
    if cfg.serve.auth == "none":
        return "", ""
    path = Path(cfg.serve.token_file) if cfg.serve.token_file else rundir.artifact(_TOKEN)
    if not cfg.serve.token_file:
        # A run that comes back keeps its token.
        files.create(path, f"{secrets.token_urlsafe(32)}\n".encode(), mode=0o600)
    try:
        mode, token = stat.S_IMODE(path.stat().st_mode), path.read_text().strip()
    except OSError as error:
        raise InputError(f"The token in {path} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise InputError(f"The token in {path} can be read by others (mode {mode:o}). Run: chmod 600 {path}")
    if not token or not token.isascii():
        raise InputError(f"{path} holds no token: one line of ASCII characters is needed.")
    return str(path.absolute()), token


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises InputError where the port is taken or the address is not ours."""
    # With the protocol named, asyncio sets TCP_NODELAY; without it every answer waits 40 ms for an acknowledgement.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise InputError(
                f"Port {port} of {host} is taken by another program. Choose another with serve.port=…, or 0 for a "
                "free one."
            ) from error
        raise InputError(f"{host}:{port} cannot be listened on: {error.strerror or error}.") from error
    return listener


def _answer_requests(service: Service, cfg: ServeConfig, listener: socket.socket) -> None:
    config = uvicorn.Config(
        make_app(service),
        loop="asyncio",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(cfg.serve.drain_s)),
    )
    asyncio.run(_Server(config).serve(sockets=[listener]))


def _reachable(host: str) -> str:
    """The name under which others reach the address."""
    if host in ("0.0.0.0", "::"):  # noqa: S104 - compared, not listened on
        return socket.getfqdn()
    return f"[{host}]" if ":" in host else host
