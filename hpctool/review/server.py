"""The review page's own small server: bound to this machine, with a token that lies in a file of mode 0600."""

from __future__ import annotations

import errno
import getpass
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from hpctool import files
from hpctool.errors import InputError
from hpctool.review.queue import Queue

LOCAL = "127.0.0.1"


def serve(queue: Queue, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """Show the page until somebody presses Ctrl-C. `say` gets the URL and what to do.

    `port` 0 takes a free one, None the queue's own or else a free one: a browser keeps what it could not save yet by
    port, so it should stay the same.

    Raises InputError where the port is busy or the address is not ours.
    """
    try:
        import uvicorn

        from hpctool.review.app import make_app
    except ImportError as error:
        raise InputError(f"The review page needs {error.name}: pip install 'hpctool[serve]'.") from error
    with bind(host, port) if port is not None else _bind_own(queue, host) as listener:
        token = token_of(queue)
        app = make_app(queue, token)
        for line in _instructions(queue, host, listener.getsockname()[1], token):
            say(line)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=3)
        try:
            uvicorn.Server(config).run(sockets=[listener])
        except KeyboardInterrupt:
            say(f"\nStopped; every answer that was shown as saved is on disk. See: hpctool review status {queue.id}")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises InputError."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
    except (OSError, OverflowError) as error:
        listener.close()
        busy = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        problem = "somebody else uses it" if busy else str(getattr(error, "strerror", None) or error)
        raise InputError(
            f"Port {port} of {host} cannot be had: {problem}. Choose another with --port; 0 takes a free one."
        ) from error
    return listener


def _bind_own(queue: Queue, host: str) -> socket.socket:
    try:
        return bind(host, 20_000 + int(files.crc32_hex(queue.id.encode()), 16) % 10_000)
    except InputError:
        return bind(host, 0)


def token_of(queue: Queue) -> str:
    """This user's token for a queue, made the first time; it stays, so that an open page survives a restart."""
    path = token_file(queue)
    if not path.exists():
        files.create(path, secrets.token_urlsafe(32).encode(), mode=0o600)
    return path.read_text().strip()


def token_file(queue: Queue) -> Path:
    """Where it lies; each user who serves the queue has their own."""
    return queue.path / f"token-{os.getuid()}"


def _instructions(queue: Queue, host: str, port: int, token: str) -> list[str]:
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}/?token={token}"
    lines = [f"Review {queue.id}: {len(queue.items)} items of {queue.subject}. Open in a browser:", "", f"  {url}", ""]
    if host == LOCAL:
        here = f"{getpass.getuser()}@{socket.gethostname()}"
        lines += ["From another machine, first:", "", f"  ssh -N -L {port}:{LOCAL}:{port} {here}", ""]
    else:
        lines += [f"{host} is open to the network and HTTP is not encrypted; better use {LOCAL} and ssh -L.", ""]
    return [*lines, "Ctrl-C stops it. Nothing is lost by stopping, restarting or reloading."]
