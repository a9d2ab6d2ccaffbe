"""Composing with Hydra, typing with dataclasses, and saying in one sentence what does not fit.

YAML chooses, dataclasses type, `_target_` opens only the user's doors. A user's configuration lies in a folder
(`--config-dir`), or in an installed package that names itself in the entry point group `hpctool.conf`.
"""

from __future__ import annotations

import ast
import importlib.machinery
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError

from hpctool.errors import ConfigError, InputError, TargetError, UnknownName, nearest

ENTRY_POINT_GROUP = "hpctool.conf"
CONF_PACKAGE = "hpctool.conf"


@dataclass(frozen=True)
class Composed:
    """A composed configuration: the values, which choice each group took, and the overrides as typed."""

    cfg: DictConfig
    choices: dict[str, str]
    overrides: list[str]


class _UsersFolders(SearchPathPlugin):  # type: ignore[misc]
    """Hydra's own door for further config folders; `folders` are searched after hpctool's."""

    folders: list[str] = []

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for number, folder in enumerate(self.folders):
            search_path.append(provider=f"user-{number}", path=folder)


def compose(job: str, overrides: Sequence[str] = (), config_dirs: Sequence[Path] = (), primary: str = "") -> Composed:
    """Compose a job's configuration; nothing is typed or resolved yet.

    `primary` is another primary config than the job's own. Raises ConfigError, UnknownName, InputError.
    """
    with hydra_context(config_dirs):
        try:
            whole = hydra_compose(primary or job, list(overrides), return_hydra_config=True)
        except (HydraException, OmegaConfBaseException, ValueError) as error:
            raise _explained(error, job, primary, overrides) from error
        choices = {k: str(v) for k, v in whole.hydra.runtime.choices.items() if "hydra/" not in k and v is not None}
    cfg = OmegaConf.create({k: v for k, v in whole._content.items() if k != "hydra"})
    assert isinstance(cfg, DictConfig)
    return Composed(cfg, choices, list(overrides))


def typed(cfg: DictConfig, schema: type) -> DictConfig:
    """The configuration with the schema's types; values are converted where that loses nothing. Raises ConfigError."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise ConfigError(key, "there is no such key.", nearest(key, schema_keys(schema))) from error
    except ValidationError as error:
        raise ConfigError(str(error.full_key), _first_line(error) + ".") from error
    assert isinstance(merged, DictConfig)
    return merged


def resolved(cfg: DictConfig) -> DictConfig:
    """Every interpolation replaced by its value. Raises ConfigError on a missing value or a dead interpolation."""
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise ConfigError(missing[0], f"it has no value. Give it one: {missing[0]}=…")
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise ConfigError(str(error.full_key or "?"), _first_line(error) + ".") from error
    return cfg


def to_plain(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, interpolations resolved."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(k): v for k, v in plain.items()}


def load(path: Path) -> DictConfig:
    """A run's config.yaml. Raises FileNotFoundError, ConfigError."""
    try:
        cfg = OmegaConf.load(path)
    except (OmegaConfBaseException, ValueError) as error:
        raise ConfigError(str(path), f"it cannot be read: {error}.") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(str(path), "it holds no mapping.")
    return cfg


def to_yaml(cfg: DictConfig) -> str:
    """The configuration as YAML, in the order of conf/."""
    return OmegaConf.to_yaml(cfg)


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dicts as dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value} if prefix else {}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(flatten(inner, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def set_value(cfg: DictConfig, key: str, value: Any) -> None:
    """Set a dotted key that is there, also in a closed config: how `resolve` pins what was asked."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, force_add=True)


def schema_keys(schema: type) -> list[str]:
    """The dotted keys of a schema."""
    return sorted(flatten(OmegaConf.to_container(OmegaConf.structured(schema))))


def check_target(key: str, cfg: Any, *, required: bool = True) -> None:
    """Check that `cfg._target_` can be imported, without importing it: torch stays out of the login node.

    Follows the dotted name through the import system's finders and then looks the last part up in the source.
    Raises TargetError.
    """
    target = OmegaConf.select(cfg, "_target_") if isinstance(cfg, DictConfig) else None
    if target is None:
        if required:
            raise ConfigError(f"{key}._target_", "it has no value. Give the importable name of your own class.")
        return
    parts = str(target).split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        raise TargetError(key, str(target), "that is not an importable name of the form package.module.Name")
    search: list[str] | None = None
    for depth, part in enumerate(parts):
        spec = _find_spec(".".join(parts[: depth + 1]), part, search)
        if spec is None:
            if depth == 0:
                raise TargetError(key, str(target), f"there is no module '{part}'")
            _check_attribute(key, str(target), ".".join(parts[:depth]), part)
            return
        origin, search = spec.origin, list(spec.submodule_search_locations or []) or None
        _check_attribute.__dict__["source"] = origin
        if search is None and depth + 1 < len(parts):
            _check_attribute(key, str(target), ".".join(parts[: depth + 1]), parts[depth + 1])
            return
    raise TargetError(key, str(target), "that is a module, not a class or function in one")


def _find_spec(full: str, part: str, search: list[str] | None) -> importlib.machinery.ModuleSpec | None:
    for finder in sys.meta_path:
        find = getattr(finder, "find_spec", None)
        spec = find(full, search) if find else None
        if spec is not None:
            return spec  # type: ignore[no-any-return]
    return None


def _check_attribute(key: str, target: str, module: str, name: str) -> None:
    origin = _check_attribute.__dict__.get("source")
    if not origin or not str(origin).endswith(".py"):
        return  # compiled: only importing would tell
    names = _top_level_names(Path(origin))
    if name not in names and "*" not in names:
        near = nearest(name, names)
        raise TargetError(key, target, f"{module} has no '{name}'" + (f" (it has {', '.join(near)})" if near else ""))


def _top_level_names(path: Path) -> set[str]:
    """The names a module's source binds at its top; `*` where that cannot be known from the text."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update((alias.asname or alias.name).split(".")[0] for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names | ({"*"} if "__getattr__" in names else set())


@contextmanager
def hydra_context(config_dirs: Sequence[Path]) -> Iterator[None]:
    _UsersFolders.folders = [f"file://{d}" for d in _checked_dirs(config_dirs)] + _installed_packages()
    if _UsersFolders not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(_UsersFolders)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_module(CONF_PACKAGE, version_base="1.3"):
            yield
    finally:
        _UsersFolders.folders = []


def _checked_dirs(config_dirs: Sequence[Path]) -> list[Path]:
    ours = {str(p) for p in _our_yaml_files()}
    for folder in config_dirs:
        if not folder.is_dir():
            raise InputError(f"--config-dir {folder}: there is no such folder.")
        for path in folder.rglob("*.yaml"):
            if str(path.relative_to(folder)) in ours:
                raise InputError(f"{path} has the name of one of hpctool's own files and would not be read; rename it.")
    return [folder.resolve() for folder in config_dirs]


def _our_yaml_files() -> list[Path]:
    root = Path(str(resources.files(CONF_PACKAGE)))
    return [path.relative_to(root) for path in root.rglob("*.yaml")]


def _installed_packages() -> list[str]:
    found = []
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            resources.files(point.value)
        except (ImportError, TypeError) as error:
            raise InputError(
                f"The installed package '{point.name}' offers configuration in '{point.value}', which cannot be "
                f"imported ({error}). Repair or uninstall it."
            ) from error
        found.append(f"pkg://{point.value}")
    return found


def group_choices(group: str) -> list[str]:
    """The choices that hpctool ships for a group, without the shared bases (`_base`)."""
    folder = Path(str(resources.files(CONF_PACKAGE))) / group
    return sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_"))


def _explained(error: Exception, job: str, primary: str, overrides: Sequence[str]) -> InputError:
    text = str(error)
    if isinstance(error, OverrideParseException):
        return ConfigError(str(error.override), f"this override cannot be read: {_first_line(error)}.")
    if isinstance(error, MissingConfigException):
        asked = str(error.missing_cfg_file or "")
        group, _, choice = asked.rpartition("/")
        if group:
            known = [c for c in (error.options or []) if not str(c).startswith("_")]
            return UnknownName(f"choice of the config group '{group}' called", choice, [str(c) for c in known])
        return UnknownName(
            "primary config", asked or primary or job, [str(p.stem) for p in _our_yaml_files() if "/" not in str(p)]
        )
    match = re.match(r"Could not override '([^'@]+)", text) or re.match(r"Key '([^']+)' is not in struct", text)
    if match:
        key = match.group(1)
        return ConfigError(key, "there is no such key.", nearest(key, _known_keys(job)))
    if isinstance(error, ConfigCompositionException | HydraException):
        return InputError(f"The configuration of {primary or job} cannot be composed: {_first_line(error)}.")
    key = str(getattr(error, "full_key", "") or "?")
    return ConfigError(key, _first_line(error) + ".")


def _known_keys(job: str) -> list[str]:
    """Every key and group of a job as it ships: what a typo may have meant."""
    base = compose(job).cfg
    flat = list(flatten(OmegaConf.to_container(base, resolve=False)))
    inner = {".".join(key.split(".")[:n]) for key in flat for n in range(1, key.count(".") + 1)}
    return sorted({*flat, *inner})


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
