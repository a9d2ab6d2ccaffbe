"""A project with a model in production, and servers of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.serve.samples import Running, Start, make_project, start_server


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return make_project(tmp_path)


@pytest.fixture
def start(project: Path) -> Iterator[Start]:
    """Start servers of the project; what still runs is killed after the test."""
    started: list[Running] = []

    def begin(*overrides: str, **options: Any) -> Running:
        started.append(start_server(project, *overrides, **options))
        return started[-1]

    yield begin
    for running in started:
        running.kill()
