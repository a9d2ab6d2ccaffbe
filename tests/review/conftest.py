"""A project with a dataset of digits, the golden bundle as the model in service, and a journal of what it said."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import uvicorn

from hpctool import config
from hpctool.cli.output import Folders, resolve_paths
from hpctool.data.prepare import prepare
from hpctool.data.prepare import resolve as resolve_prepare
from hpctool.data.schema import PrepareConfig
from hpctool.export.bundle import Bundle
from hpctool.review.app import make_app
from hpctool.review.queue import Queue, make_queue
from hpctool.review.select import Selection
from hpctool.review.server import bind
from hpctool.serve.journal import Journal
from hpctool.serve.writer import JournalWriter
from hpctool.world import Array, World

ASSET = Path(__file__).parents[1] / "assets" / "bundle_v1"
TOKEN = "a-token"

MakeQueue = Callable[..., Queue]


def digits() -> tuple[Array, Array]:
    """Images uint8 (N, 8, 8, 1) and labels: the first handwritten digits that scikit-learn carries."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return np.round(found.images[:160] * 255 / 16).astype(np.uint8)[..., None], found.target[:160].astype(np.int64)


def answers_of_a_model(truth: Array, seed: int = 0) -> Array:
    """Logits (N, 10) of a model that is right four times of five, with every grade of confidence."""
    random = np.random.default_rng(seed)
    meant = np.where(random.random(len(truth)) < 0.8, truth, random.integers(0, 10, len(truth)))
    logits = random.normal(size=(len(truth), 10))
    logits[np.arange(len(truth)), meant] += random.uniform(0, 6, len(truth))
    return logits.astype(np.float32)


def predict(journals: Path, images: Array, truth: Array, source: str = "", model: str = "digits@0001") -> list[str]:
    """Write predictions of these images; the request's id tells the truth, as that of an oracle would. Returns ids."""
    logits = answers_of_a_model(truth)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    writer = JournalWriter(journals / "digits", model=model, bundle="b" * 64, origin="server", run="serve-0123abcd")
    request = np.array([f"truth-{label}:{row}".encode() for row, label in enumerate(truth)])
    writer.add(request, np.full(len(truth), source.encode(), "S32"), images, probabilities, logits)
    writer.close()
    return [f"{writer.writer}-{row:06d}" for row in range(len(truth))]


def true_label(queue: Queue, place: int) -> int:
    """What the item shows."""
    return int(queue.items[place].request.removeprefix("truth-").partition(":")[0])


def images_of(queue: Queue) -> Array:
    """What the queue shows, (items, H, W, C)."""
    assert isinstance(queue.inputs, np.ndarray)
    return queue.inputs


@dataclass(frozen=True)
class Page:
    """A review page that is being served."""

    url: str
    port: int


@contextmanager
def serve_page(queue: Queue, port: int = 0) -> Iterator[Page]:
    """The page of a queue, served from a thread until the block ends."""
    with bind("127.0.0.1", port) as listener:
        server = uvicorn.Server(uvicorn.Config(make_app(queue, TOKEN), log_level="critical", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.005)
            found = listener.getsockname()[1]
            yield Page(f"http://127.0.0.1:{found}", found)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 100 digits as dataset `digits` and a journal of 60 predictions of others."""
    root = tmp_path_factory.mktemp("review")
    images, truth = digits()
    np.savez(root / "digits.npz", image=images[:100, :, :, 0], label=truth[:100])
    overrides = [f"paths.root={root}", "data.name=digits", "source=npz", f"source.path={root / 'digits.npz'}"]
    cfg = config.typed(config.compose("prepare", overrides).cfg, PrepareConfig)
    resolve_prepare(cfg)
    prepare(config.resolved(cfg), World())
    shutil.copytree(ASSET, root / "models")
    predict(root / "journals", images[100:], truth[100:], source="worn")
    return root


@pytest.fixture
def folders(original: Path, tmp_path: Path) -> Folders:
    """That root as a copy that may be changed."""
    root = tmp_path / "root"
    shutil.copytree(original, root)
    return resolve_paths(root)


@pytest.fixture
def make(folders: Folders) -> MakeQueue:
    """Make a queue of the project; arguments are those of a Selection, and `dataset`."""

    def make(num_uncertain: int = 8, num_audit: int = 4, dataset: str | None = None, **options: object) -> Queue:
        asked = Selection(num_uncertain, num_audit, **options)  # type: ignore[arg-type]
        bundle = Bundle(folders.models / "digits" / "0001")
        journal = Journal(folders.journals / "digits")
        return make_queue(folders.reviews, folders.datasets, journal, bundle, asked, dataset)

    return make


@pytest.fixture
def queue(make: MakeQueue) -> Queue:
    """8 uncertain and 4 audit items."""
    return make()
