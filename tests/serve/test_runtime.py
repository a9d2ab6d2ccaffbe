"""The version in service, without a process and a socket around it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from omegaconf import OmegaConf

from hpctool import config
from hpctool.errors import OperationError
from hpctool.export import aliases
from hpctool.export.verify import load_verified
from hpctool.serve.batcher import Batcher, Limits
from hpctool.serve.metrics import Metrics
from hpctool.serve.runtime import Runtime
from hpctool.serve.schema import ServeConfig
from tests.serve.samples import full_log, images, publish_model


def runtime_of(project: Path, *overrides: str) -> Runtime:
    fixed = [f"paths.root={project}", "serve.model=digits@production", "serve.poll_s=0.02"]
    cfg = config.resolved(config.typed(config.compose("serve", [*fixed, *overrides]).cfg, ServeConfig))
    return Runtime(cast(ServeConfig, OmegaConf.to_object(cfg)), "serve-0123abcd", Metrics())


@contextmanager
def following(runtime: Runtime) -> Iterator[None]:
    """The runtime follows its alias until the block ends."""
    batcher = Batcher(runtime.current, Limits(4, 10, 1000), Metrics())
    runtime.start(batcher)
    try:
        yield
    finally:
        runtime.stop()
        batcher.close()


def test_an_alias_is_followed_while_the_log_cannot_be_written(project: Path) -> None:
    runtime = runtime_of(project)
    with full_log(), following(runtime):
        for seed in (2, 3):
            bundle = publish_model(project / "models", seed)
            aliases.promote(project / "models", bundle, "production", load_verified)
            deadline = time.monotonic() + 20
            while runtime.current.bundle.version != bundle.version:
                assert time.monotonic() < deadline, "the alias is not followed any more"
                time.sleep(0.02)
    runtime.close()


def test_a_journal_that_cannot_be_written_at_the_end_says_how_many_predictions_are_lost(
    project: Path, small_files: int
) -> None:
    runtime = runtime_of(project, "journal.flush_s=600")
    x = images(small_files)
    request = np.full(len(x), b"r:0", "S64")
    runtime.current.record(request, np.zeros(len(x), "S32"), x, runtime.current.answer(x))
    with pytest.raises(OperationError, match=f"{small_files:,} predictions that were answered are lost"):
        runtime.close()
