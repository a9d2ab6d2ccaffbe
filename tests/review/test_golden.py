"""Reviews that were kept in tests/assets are read for ever."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpctool.review.queue import open_queue
from tests.review.conftest import images_of

ASSETS = Path(__file__).parents[1] / "assets"


def test_a_review_of_predictions_of_format_1() -> None:
    queue = open_queue(ASSETS / "review_v1", "digits")
    assert (queue.of_rows, queue.model, queue.subject, queue.dataset) == (
        False,
        "digits@0001",
        "digits@0001",
        "digits@main",
    )
    assert (images_of(queue).shape, queue.probabilities.shape) == ((3, 8, 8, 1), (3, 10))
    assert [item.guess for item in queue.items] == queue.probabilities.argmax(axis=1).tolist()
    said = queue.answers()
    labels = {item: {who: answer.label for who, answer in by.items()} for item, by in said.items()}
    assert labels == {queue.items[0].prediction: {"ann": 3}, queue.items[1].prediction: {"ann": None}}
    assert (queue.applied() or {})["dataset"] == "digits@main"


def test_a_review_of_rows_of_format_2() -> None:
    queue = open_queue(ASSETS / "review_v2", "tiny")
    assert (queue.of_rows, queue.model, queue.subject, queue.classes) == (True, "", "tiny@main", ["cat", "dog"])
    assert (images_of(queue).shape, images_of(queue).dtype, queue.probabilities.shape) == (
        (3, 2, 2, 1),
        np.dtype(np.uint8),
        (3, 0),
    )
    assert [(item.guess, item.reason, item.source) for item in queue.items] == [
        (-1, "unlabelled", "train"),
        (-1, "unlabelled", "test"),
        (-1, "unlabelled", "production"),
    ]
    assert [by["ann"].label for by in queue.answers().values()] == [1, None]
    assert (queue.applied() or {})["format"] == 2
