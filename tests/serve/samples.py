"""Tiny published models, and real server processes: what the tests of serving share."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from torch import Tensor, nn

from hpctool.export import aliases, calibration, golden, parity, publish, statistics, torchscript
from hpctool.export.bundle import Bundle
from hpctool.export.deployed import OUTPUTS, Deployed
from hpctool.export.reference import reference
from hpctool.export.signature import Signature, TensorSpec
from hpctool.export.verify import load_verified
from hpctool.serve.journal import Journal
from hpctool.world import Array

CLASSES = ["nought", "one", "two"]
MAIN = "import sys; from hpctool.cli.main import main; sys.exit(main())"


class Scale(nn.Module):
    """uint8 (N, 4, 4, 1) to float 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.to(torch.float32) / 255.0


def publish_model(models: Path, seed: int, name: str = "digits", shape: tuple[int, ...] = (4, 4, 1)) -> Bundle:
    """Publish a linear model of its own weights as the next version; seed says what it answers."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), len(CLASSES)))
    module = Deployed(Scale(), model, 1.5)
    module.eval()
    inputs = images(8, seed=7, shape=shape)
    graph = torchscript.to_graph(module, torch.from_numpy(inputs))
    outputs = parity.answers(module, torch.from_numpy(inputs))
    specs = [TensorSpec(output, "FP32", [-1, len(CLASSES)]) for output in OUTPUTS]
    signature = Signature(
        [TensorSpec("image", "UINT8", [-1, *shape])], specs, CLASSES, "Scale", 1.5, "float32", 1e-4, [1], graph.method
    )
    counts = reference(
        statistics.input_statistics(inputs),
        outputs["logits"],
        outputs["logits"].argmax(axis=1),
        calibration.Fit(1.5),
        split="val",
        num_bins=4,
        num_calibration_bins=5,
    )
    with publish.staging(models, name) as staged:
        publish.put(staged, "model.ts", graph.data)
        publish.put_json(staged, "signature.json", signature.to_json())
        rows = golden.Golden(inputs, dict(outputs), [f"{i:032x}" for i in range(len(inputs))])
        publish.put(staged, "golden.npz", golden.to_bytes(rows))
        publish.put_json(staged, "reference.json", counts)
        return publish.publish(staged, {"run": "train-0123abcd", "seed": seed}).bundle


def images(rows: int, seed: int = 0, shape: tuple[int, ...] = (4, 4, 1)) -> Array:
    """Random uint8 rows."""
    return np.random.default_rng(seed).integers(0, 256, (rows, *shape)).astype(np.uint8)


def question(inputs: Array, **more: Any) -> dict[str, Any]:
    """A valid request for these rows."""
    tensor = {"name": "image", "shape": list(inputs.shape), "datatype": "UINT8", "data": inputs.tolist()}
    return {"inputs": [tensor], **more}


def output(answer: dict[str, Any], name: str = "logits") -> Array:
    """One output of an answer, (N, K)."""
    (tensor,) = [t for t in answer["outputs"] if t["name"] == name]
    return np.array(tensor["data"], np.float32).reshape(tensor["shape"])


@dataclass
class Running:
    """A server process, and a client that knows its token."""

    process: subprocess.Popen[str]
    root: Path
    run: Path
    endpoint: dict[str, Any]
    client: httpx.Client

    @property
    def token(self) -> str:
        return Path(self.endpoint["token_file"]).read_text().strip()

    @property
    def journal(self) -> Journal:
        return Journal(self.root / "journals" / "digits")

    def line(self) -> socket.socket:
        """A bare connection to it."""
        url = httpx.URL(self.endpoint["url"])
        assert url.port
        return socket.create_connection((url.host, url.port), timeout=20)

    def ask(self, inputs: Array, **more: Any) -> dict[str, Any]:
        answer = self.client.post("/v2/models/digits/infer", json=question(inputs, **more))
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def promote(self, bundle: Bundle) -> None:
        aliases.promote(self.root / "models", bundle, "production", load_verified)

    def end(self, number: int = signal.SIGINT) -> tuple[int, str]:
        """Ask it to stop; its exit code and what it said."""
        self.process.send_signal(number)
        said, _ = self.process.communicate(timeout=60)
        return self.process.returncode, said

    def kill(self) -> None:
        """End it without a word."""
        self.client.close()
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def make_project(root: Path) -> Path:
    """A folder with digits@0001, in production."""
    bundle = publish_model(root / "models", seed=1)
    aliases.promote(root / "models", bundle, "production", load_verified)
    return root


def command(root: Path, *overrides: str, job: str = "serve") -> subprocess.Popen[str]:
    """`hpctool serve …` in a process of its own."""
    arguments = [sys.executable, "-c", MAIN, job, f"paths.root={root}", *overrides]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(arguments, cwd=root, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


def start_server(root: Path, *overrides: str, model: str = "digits@production") -> Running:
    """Start a server of a project and wait until it answers."""
    fixed = [f"serve.model={model}", "serve.port=0", "serve.poll_s=0.05", "journal.flush_s=0.2"]
    process = command(root, *fixed, *overrides)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for path in (root / "runs").glob("serve-*/artifacts/endpoint.json"):
            endpoint = json.loads(path.read_text())
            # That of a server that was killed is still there.
            if endpoint["pid"] == process.pid:
                token = Path(endpoint["token_file"]).read_text().strip() if endpoint["token_file"] else ""
                headers = {"Authorization": f"Bearer {token}"}
                client = httpx.Client(base_url=endpoint["url"], headers=headers, timeout=30)
                return Running(process, root, path.parents[1], endpoint, client)
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"the server did not get ready: {process.communicate()[0]}")


@contextlib.contextmanager
def full_log() -> Iterator[None]:
    """stdout and stderr go to a disk that is full."""
    with (
        contextlib.suppress(OSError),
        open("/dev/full", "w", buffering=1) as full,
        contextlib.redirect_stdout(full),
        contextlib.redirect_stderr(full),
    ):
        yield


def read_all(line: socket.socket) -> str:
    """What comes until the other side ends it."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := line.recv(65536):
            parts.append(part)
    return b"".join(parts).decode()


Start = Callable[..., Running]
