"""Initial weights (`init_from`): those that another run came to, or a file of weights that somebody else has made.

A file is .safetensors, or torch's .pt, .pth, .bin or .ckpt, of which only tensors are ever read: nothing in it can run.
It is read when a run begins from nothing; what the run commits holds the weights. The names must be those of the model,
all of them; what usually surrounds a state dict (a `state_dict` or `model` key, the `module.` of DDP) is taken off.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from hpctool import files
from hpctool.config import set_value
from hpctool.errors import ConfigError, InputError, SourceError
from hpctool.launch.job import Input, Resolved
from hpctool.rundir import RunDir
from hpctool.train.schema import TrainConfig

if TYPE_CHECKING:
    from torch import Tensor

KEY = "init_from"
_TORCH = (".pt", ".pth", ".bin", ".ckpt")
_SUFFIXES = (".safetensors", *_TORCH)
#: under which keys others put a state dict
_WRAPPERS = ("state_dict", "model_state_dict", "model")


def resolve_initial(cfg: DictConfig, chosen: Any) -> Resolved | None:
    """Pin `init_from` to a file's contents or to a completed run.

    `chosen` finds a run, or the best of a sweep. Raises UnknownName, InputError, ConfigError.
    """
    if not cfg.init_from:
        return None
    if cfg.get("continue_from"):
        raise ConfigError(KEY, "continue_from brings weights, too; give one of the two.")
    path = Path(str(cfg.init_from)).expanduser()
    if path.suffix in _SUFFIXES:
        if not path.is_file():
            raise ConfigError(KEY, f"there is no file {path}.")
        set_value(cfg, KEY, str(path.absolute()))
        return Resolved([Input("weights", path.name, _digest(path.absolute(), path.stat().st_mtime_ns))])
    rundir, notes = chosen(Path(cfg.paths.runs), str(cfg.init_from), cfg.loop.best_metric, cfg.loop.best_mode)
    record, result = rundir.record(), rundir.result() or {}
    if record["job"] != "train" or result.get("state") != "completed":
        state = f"a run of '{record['job']}'" if record["job"] != "train" else f"not completed ({rundir.story().state})"
        raise InputError(f"init_from={rundir.id}: it is {state}; name a completed run of 'train', or a file.")
    set_value(cfg, KEY, rundir.id)
    return Resolved([Input("run", rundir.id, record["identity"])], notes)


@functools.lru_cache(maxsize=32)
def _digest(path: Path, changed_ns: int) -> str:
    """The SHA-256 of a file; once per command, however many cells a sweep has."""
    return files.sha256_file(path)


def read_initial(cfg: TrainConfig, rundir: RunDir) -> tuple[dict[str, Tensor], str]:
    """The weights that `init_from` names, on the CPU, and words for where they are from.

    Raises InputError where the file has changed, SourceError, CorruptError.
    """
    assert cfg.init_from is not None
    path = Path(cfg.init_from)
    if path.suffix not in _SUFFIXES:
        from hpctool.train.params import trained_values

        values, _, where = trained_values(RunDir(Path(cfg.paths.runs) / cfg.init_from))
        return values, where
    pinned = [one["id"] for one in rundir.inputs() if one["kind"] == "weights"]
    if not path.is_file() or pinned != [files.sha256_file(path)]:
        raise InputError(
            f"init_from={path}: the file is gone, or another than when the run was asked for. Put it back; or ask "
            "again, for another run."
        )
    return unwrapped(path, _load(path)), f"init_from={path}"


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        import safetensors
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise SourceError(path, f"it is not a safetensors file ({error}).") from error
    import torch

    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise SourceError(path, f"torch cannot read it ({str(error).splitlines()[0][:120]}).") from error
        raise SourceError(
            path,
            f"it holds more than tensors ({str(error).splitlines()[0][:120]}), and hpctool runs nothing out of a file. "
            "Where you trust it, save its weights alone: torch.save(model.state_dict(), 'weights.pt')",
        ) from error


def unwrapped(path: Path, found: Any) -> dict[str, Tensor]:
    """The state dict in what a file holds. Raises SourceError where there is none."""
    import torch

    for name in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
            break
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise SourceError(path, "it holds no state dict (names with tensors): torch.save(model.state_dict(), path)")
    if all(str(name).startswith("module.") for name in found):
        found = {str(name).removeprefix("module."): value for name, value in found.items()}
    return {str(name): value for name, value in found.items()}
