"""Digits with a small classifier, as a bundle's reference and as a journal of its predictions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from hpctool.export import publish, statistics
from hpctool.export.bundle import Bundle
from hpctool.export.calibration import Fit, fit_temperature
from hpctool.export.reference import reference
from hpctool.export.signature import Signature, TensorSpec
from hpctool.serve.writer import JournalWriter
from hpctool.train.scores import softmax

Images = npt.NDArray[np.uint8]
NUM_TRAIN, NUM_REFERENCE = 800, 165


@dataclass(frozen=True)
class Rows:
    """What `compare` takes: inputs and what the classifier says of them."""

    input: npt.NDArray[Any]
    probabilities: npt.NDArray[np.float32]


@dataclass(frozen=True)
class Digits:
    """Images uint8 (N, 8, 8, 1) that the classifier has not seen, and what it says of any."""

    images: Images
    labels: npt.NDArray[np.int64]
    classifier: LogisticRegression
    fit: Fit

    def logits(self, images: Images) -> npt.NDArray[np.float32]:
        scores = self.classifier.decision_function(images.reshape(len(images), -1) / 255.0)
        return np.asarray(scores, np.float32)

    def rows(self, images: Images) -> Rows:
        return Rows(images, self.probabilities(images))

    def probabilities(self, images: Images) -> npt.NDArray[np.float32]:
        return softmax(self.logits(images), self.fit.temperature).astype(np.float32)

    def reference(self, chosen: npt.NDArray[np.int64]) -> dict[str, Any]:
        """reference.json of these rows."""
        images, labels = self.images[chosen], self.labels[chosen]
        return make_reference(images, self.logits(images), labels, self.fit)

    def split(self, seed: int, num_now: int) -> tuple[dict[str, Any], Images]:
        """A reference of 165 random rows, and `num_now` others as they come in."""
        order = np.random.default_rng(seed).permutation(len(self.images))
        now = order[NUM_REFERENCE : NUM_REFERENCE + num_now]
        assert len(now) == num_now
        return self.reference(order[:NUM_REFERENCE]), self.images[now]


def make_reference(
    inputs: npt.NDArray[Any], logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], fit: Fit | None = None
) -> dict[str, Any]:
    found = statistics.input_statistics(inputs)
    return reference(found, logits, labels, fit or Fit(1.0), split="val", num_bins=10, num_calibration_bins=15)


@pytest.fixture(scope="session")
def digits() -> Digits:
    data = load_digits()
    images = np.round(data.images * 255 / 16).astype(np.uint8)[..., None]
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = images[order], data.target[order].astype(np.int64)
    classifier = LogisticRegression(C=0.1, max_iter=300)
    classifier.fit(images[:NUM_TRAIN].reshape(NUM_TRAIN, -1) / 255.0, labels[:NUM_TRAIN])
    unseen = Digits(images[NUM_TRAIN:], labels[NUM_TRAIN:], classifier, Fit(1.0))
    return dataclasses.replace(unseen, fit=fit_temperature(unseen.logits(unseen.images), unseen.labels))


Publish = Callable[..., Bundle]
Serve = Callable[..., None]


@pytest.fixture
def publish_bundle(tmp_path: Path, digits: Digits) -> Publish:
    """Publish digits@0001 with a reference; its graph is never loaded."""

    def make(content: dict[str, Any] | None = None, classes: list[str] | None = None) -> Bundle:
        image, answers = TensorSpec("image", "UINT8", [-1, 8, 8, 1]), TensorSpec("probabilities", "FP32", [-1, 10])
        names = classes or [str(k) for k in range(10)]
        signature = Signature([image], [answers], names, "", 1.0, "float32", 1e-4, [1], "script")
        with publish.staging(tmp_path / "models", "digits") as staged:
            for name in ("model.ts", "golden.npz"):
                publish.put(staged, name, b"not used")
            publish.put_json(staged, "signature.json", signature.to_json())
            publish.put_json(staged, "reference.json", content or digits.split(0, 0)[0])
            return publish.publish(staged, {"run": "train-0123abcd"}).bundle

    return make


@pytest.fixture
def serve(tmp_path: Path, digits: Digits) -> Serve:
    """Write predictions of images into the journal, as one segment."""

    def write(images: Images, source: str = "", model: str = "digits@0001", folder: Path | None = None) -> None:
        where = folder or tmp_path / "journals" / "digits"
        writer = JournalWriter(where, model=model, bundle="b" * 64, origin="server", run="serve-0123abcd")
        logits = digits.logits(images)
        request = np.array([f"r{i}:0".encode() for i in range(len(images))], "S64")
        sources = np.full(len(images), source.encode(), "S32")
        writer.add(request, sources, images, digits.probabilities(images), logits)
        writer.close()

    return write
