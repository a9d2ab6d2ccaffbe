"""hpctool: data, experiments, training, export, serving, review and back, on plain files and Slurm.

The public names are loaded when they are used: `import hpctool` does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# public name → the module that holds it
_HOMES = {
    "HpctoolError": "hpctool.errors",
    "InputError": "hpctool.errors",
    "Preemptible": "hpctool.checkpoint.preemptible",
    "RunDir": "hpctool.rundir",
    "World": "hpctool.world",
    "make_world": "hpctool.world",
    "report": "hpctool.track.telling",
}
__all__ = ["HpctoolError", "InputError", "Preemptible", "RunDir", "World", "__version__", "make_world", "report"]

if TYPE_CHECKING:
    from hpctool.checkpoint.preemptible import Preemptible
    from hpctool.errors import HpctoolError, InputError
    from hpctool.rundir import RunDir
    from hpctool.track.telling import report
    from hpctool.world import World, make_world


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'hpctool' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
