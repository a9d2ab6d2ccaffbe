"""TorchScript: script or trace, freeze, to bytes and back.

torch.jit is deprecated and works; only its own words about that are silenced, and only in here.
"""

from __future__ import annotations

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning

from hpctool.errors import CorruptError

# torch 2.13 says it with a DeprecationWarning, 2.14 and later with a FutureWarning.
_DEPRECATED = r"`?torch\.jit\.\w+`? is (deprecated|not supported)"


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch.jit's words about its own deprecation; every other warning is heard."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=_DEPRECATED, category=category)
        yield


@dataclass
class Graph:
    """An exported graph: the file's bytes, `script` or `trace`, why not script, and what tracing warned of."""

    data: bytes
    method: str
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


def to_graph(module: nn.Module, example: Tensor) -> Graph:
    """Script a module, or trace it where it cannot be scripted; freeze it; no parity is checked here.

    The bytes are the same in every fresh process, wherever the code lies; a process that has scripted before numbers
    its types on. They go through a buffer, since torch writes a file's own name into it. Raises what `module` raises.
    """
    module = module.eval()
    method, reason = "script", ""
    said: list[str] = []
    with quiet():
        try:
            scripted: torch.jit.ScriptModule = torch.jit.script(module)
        except Exception as error:  # the compiler raises whatever it meets in the user's code
            method, reason = "trace", f"{type(error).__name__}: {_first_line(error)}"
            scripted, said = _trace(module, example)
        buffer = io.BytesIO()
        torch.jit.save(torch.jit.freeze(scripted.eval()), buffer)
    return Graph(_without_debug(buffer.getvalue()), method, reason, said)


def load(path: Path) -> torch.jit.ScriptModule:
    """Load a TorchScript file on the CPU, in eval mode. Raises CorruptError where torch cannot read it."""
    with quiet():
        try:
            module = torch.jit.load(os.fspath(path), map_location="cpu")  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            raise CorruptError(path, f"torch cannot read it ({_first_line(error)})") from error
    module.eval()
    return module  # type: ignore[no-any-return]


def _trace(module: nn.Module, example: Tensor) -> tuple[torch.jit.ScriptModule, list[str]]:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always", TracerWarning)
        # Our own parity gate checks more than torch's check of one input.
        traced = torch.jit.trace(module, (example,), check_trace=False)  # type: ignore[no-untyped-call]
    said = [str(w.message) for w in caught if issubclass(w.category, TracerWarning)]
    return traced, list(dict.fromkeys(said))


def _without_debug(data: bytes) -> bytes:
    """The same archive without the records that hold source paths: the next checkout would give other bytes."""
    stripped = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(stripped, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            # The serialization id is a digest over all records, the left-out ones too; loading needs neither.
            if not name.endswith((".debug_pkl", ".data/serialization_id")):
                new.writestr(zipfile.ZipInfo(name), old.read(name))
    return stripped.getvalue()


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".: ") if lines else "no reason given"
