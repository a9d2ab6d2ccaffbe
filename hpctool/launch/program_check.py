"""Whether somebody's own program can be started, found out on the login node."""

from __future__ import annotations

import ast
import functools
import os
import shutil
from pathlib import Path

from omegaconf import DictConfig

from hpctool.config import set_value
from hpctool.errors import ConfigError, SourceError, nearest
from hpctool.launch.job import Resolved
from hpctool.targets import find_module

_PARAMS_AS = ("flags", "assignments", "environment")
_SIGNALS = ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGQUIT")


def resolve(cfg: DictConfig) -> Resolved:
    """Find the program and the folder it runs in, and write both down in full. Raises ConfigError, SourceError."""
    if (cfg.script is None) == (cfg.module is None):
        raise ConfigError("script", "give one of script=train.py and module=myproject.train.")
    if cfg.params_as not in _PARAMS_AS:
        raise ConfigError("params_as", f"'{cfg.params_as}' is not one of {', '.join(_PARAMS_AS)}.")
    if cfg.stop_signal not in _SIGNALS:
        raise ConfigError(
            "stop_signal",
            f"'{cfg.stop_signal}' is not one of {', '.join(_SIGNALS)}.",
            nearest(cfg.stop_signal, _SIGNALS),
        )
    _check_words(cfg)
    if cfg.cwd != "run":
        folder = Path(cfg.cwd).expanduser().absolute()
        if not folder.is_dir():
            raise ConfigError("cwd", f"there is no folder {folder}.")
        set_value(cfg, "cwd", os.path.normpath(folder))
    if cfg.module is not None:
        _check_module(str(cfg.module))
    elif (script := _located(str(cfg.script))) != cfg.script:
        set_value(cfg, "script", script)
    return Resolved()


def _check_words(cfg: DictConfig) -> None:
    for word in cfg.args:
        if not isinstance(word, str) or "\0" in word:
            raise ConfigError("args", f"{word!r} is no argument; it takes texts and numbers.")
    for key in cfg.params:
        if str(key).startswith("-"):
            raise ConfigError(f"params.{key}", f"its name has no dashes: params.{str(key).lstrip('-')}=…")


def _located(script: str) -> str:
    """The full path of a script; an installed program keeps its name. Raises ConfigError, SourceError."""
    path = Path(os.path.normpath(Path(script).expanduser().absolute()))
    if not path.exists():
        if os.sep not in script and shutil.which(script):
            return script
        near = nearest(path.name, [p.name for p in path.parent.iterdir()]) if path.parent.is_dir() else []
        raise ConfigError("script", f"there is no file {path}.", near)
    if not path.is_file():
        raise ConfigError("script", f"{path} is a folder. A package is run as module=….")
    try:
        _check_file(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError("script", f"{path} cannot be read: {error.strerror}.") from error
    return str(path)


@functools.lru_cache
def _check_file(path: Path, _changed_ns: int) -> None:
    """Whether a file can be started at all; once for all cells of a sweep. Raises ConfigError, SourceError, OSError."""
    if path.suffix == ".py":
        try:
            ast.parse(path.read_bytes(), filename=str(path))
        except SyntaxError as error:
            raise SourceError(path, f"this is not Python: {error.msg}.", error.lineno) from error
        except ValueError as error:
            raise SourceError(path, f"this is not Python: {error}.") from error
        return
    if not os.access(path, os.X_OK):
        raise ConfigError("script", f"{path} is not executable. chmod +x {path}")
    with open(path, "rb") as file:
        head = file.read(256)
    if head.startswith(b"#!"):
        interpreter = head[2:].split(b"\n")[0].split()
        if not interpreter or not os.access(os.fsdecode(interpreter[0]), os.X_OK):
            raise SourceError(path, "there is no such interpreter as its first line (#!…) names.", 1)
    elif not head.startswith(b"\x7fELF"):
        raise SourceError(path, "it does not say what runs it. Begin it with #!/bin/bash or another interpreter.", 1)


def _check_module(name: str) -> None:
    found = find_module(name)
    if found is None:
        raise ConfigError("module", f"there is no module '{name}' that could be imported from {os.getcwd()}.")
    if found.submodule_search_locations is not None and find_module(f"{name}.__main__") is None:
        raise ConfigError("module", f"'{name}' is a package without __main__.py; name the module in it that is run.")
