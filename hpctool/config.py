"""Composing with Hydra, typing with dataclasses, and saying in one sentence what does not fit.

YAML chooses, dataclasses type, `_target_` opens only the user's doors. A user's configuration lies in a folder
(`--config-dir`), or in an installed package that names itself in the entry point group `hpctool.conf`.
"""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException, ValidationError
from yaml import YAMLError

from hpctool import yamltraps
from hpctool.errors import ConfigError, InputError, TargetError, UnknownName, listing, nearest
from hpctool.targets import why_not_importable

ENTRY_POINT_GROUP = "hpctool.conf"
CONF_PACKAGE = "hpctool.conf"
# Hydra's launchers, logging and folders are not used here, and composing them takes a quarter of the time.
_HYDRAS_OWN = ("help", "hydra_help", "hydra_logging", "job_logging", "launcher", "output", "sweeper")


@dataclass(frozen=True)
class Composed:
    """A composed configuration: the values, which choice each group took, and the overrides as typed."""

    cfg: DictConfig
    choices: dict[str, str]
    overrides: list[str]


class _UsersFolders(SearchPathPlugin):
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
            try:
                whole = _composed(primary or job, overrides)
            except ConfigCompositionException:
                added = _added(primary or job, overrides)
                if added == list(overrides):
                    raise
                whole = _composed(primary or job, added)
        except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:
            raise _explained(error, primary or job, overrides) from error
        choices = {k: str(v) for k, v in whole.hydra.runtime.choices.items() if "hydra/" not in k and v is not None}
    names = [primary or job, *(f"{group.partition('@')[0]}/{choice}" for group, choice in choices.items())]
    for path in (folder / f"{name}.yaml" for folder in config_dirs for name in names):
        yamltraps.check_file(path)
    nodes = whole._content
    assert isinstance(nodes, dict)
    cfg = OmegaConf.create({key: node for key, node in nodes.items() if key != "hydra"})
    return Composed(cfg, choices, list(overrides))


def _composed(primary: str, overrides: Sequence[str] = ()) -> DictConfig:
    """The configuration and, under `hydra`, how it came to be."""
    unused = [f"~hydra/{group}" for group in _HYDRAS_OWN if not any(f"hydra/{group}" in text for text in overrides)]
    return hydra_compose(primary, [*overrides, *unused], return_hydra_config=True)


def _added(primary: str, overrides: Sequence[str]) -> list[str]:
    """The overrides with a `+` before keys of a mapping that is empty in conf (`params: {}`): it takes any key."""
    cfg = hydra_compose(primary)
    found = []
    for override in overrides:
        parts = override.partition("=")[0].split(".")
        outer = (OmegaConf.select(cfg, ".".join(parts[:n]), throw_on_missing=False) for n in range(1, len(parts)))
        is_open = any(isinstance(node, DictConfig) and not node for node in outer)
        found.append(f"+{override}" if is_open else override)
    return found


def typed(cfg: DictConfig, schema: type) -> DictConfig:
    """The configuration with the schema's types; values are converted where that loses nothing. Raises ConfigError."""
    try:
        merged = OmegaConf.merge(OmegaConf.structured(schema), cfg)
    except ConfigKeyError as error:
        key = error.full_key or str(error.key)
        raise ConfigError(key, "there is no such key.", nearest(key, schema_keys(schema))) from error
    except ValidationError as error:
        raise _does_not_fit(schema, cfg, str(error.full_key)) from error
    except OmegaConfBaseException as error:
        raise _dead_end(error) from error
    assert isinstance(merged, DictConfig)
    yamltraps.check_texts(merged, cfg)
    return merged


def check_complete(cfg: DictConfig) -> None:
    """Raises ConfigError on a value that somebody must still give (`???`), or a dead interpolation."""
    try:
        missing = sorted(OmegaConf.missing_keys(cfg))
    except OmegaConfBaseException as error:
        raise _dead_end(error) from error
    if missing:
        raise ConfigError(missing[0], f"it has no value. Give it one: {missing[0]}=…")


def resolved(cfg: DictConfig) -> DictConfig:
    """Every interpolation replaced by its value. Raises ConfigError on a missing value or a dead interpolation."""
    check_complete(cfg)
    try:
        OmegaConf.resolve(cfg)
    except OmegaConfBaseException as error:
        raise _dead_end(error) from error
    return cfg


def to_plain(cfg: DictConfig, resolve: Collection[str] | None = None) -> dict[str, Any]:
    """The configuration as dicts, lists and scalars, interpolations resolved; only below these keys if some are given.

    Raises ConfigError on a dead interpolation.
    """
    try:
        plain = OmegaConf.to_container(cfg, resolve=resolve is None)
        assert isinstance(plain, dict)
        for key in resolve or ():
            if key in plain:
                value = cfg[key]
                plain[key] = OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise _dead_end(error) from error
    return {str(k): v for k, v in plain.items()}


def load(path: Path) -> DictConfig:
    """A run's config.yaml. Raises FileNotFoundError, ConfigError."""
    try:
        cfg = OmegaConf.load(path)
    except (OmegaConfBaseException, YAMLError, ValueError) as error:
        raise ConfigError(str(path), f"it cannot be read: {_first_line(error)}.") from error
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


def overlaid(plain: dict[str, Any], own: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """A copy of nested dicts with other values at some places (paths of keys that are there); the rest is shared."""
    copied: dict[tuple[str, ...], dict[str, Any]] = {(): dict(plain)}
    for path, value in own.items():
        for depth in range(1, len(path)):
            if path[:depth] not in copied:
                outer = copied[path[: depth - 1]]
                outer[path[depth - 1]] = copied[path[:depth]] = dict(outer[path[depth - 1]])
        copied[path[:-1]][path[-1]] = value
    return copied[()]


def set_value(cfg: DictConfig, key: str, value: Any) -> None:
    """Set a dotted key that is there, also in a closed config: how `resolve` pins what was asked."""
    with open_dict(cfg):
        OmegaConf.update(cfg, key, value, force_add=True)


def schema_keys(schema: type) -> list[str]:
    """The dotted keys of a schema, those of the schemas inside it too."""
    keys: list[str] = []
    for name, kind in get_type_hints(schema).items():
        inner = schema_keys(kind) if isinstance(kind, type) and is_dataclass(kind) else []
        keys += [name, *(f"{name}.{key}" for key in inner)]
    return sorted(keys)


def check_target(key: str, cfg: Any, *, required: bool = True) -> None:
    """Check that `cfg._target_` can be imported, without importing it: torch stays out of the login node.

    Raises TargetError, and ConfigError where it is required and has no value.
    """
    target = OmegaConf.select(cfg, "_target_") if isinstance(cfg, DictConfig) else None
    if target is None:
        if required:
            raise ConfigError(f"{key}._target_", "it has no value. Give the importable name of your own class.")
        return
    if reason := why_not_importable(str(target)):
        raise TargetError(key, str(target), reason)


@contextmanager
def hydra_context(config_dirs: Sequence[Path]) -> Iterator[None]:
    """Hydra with hpctool's configuration, the installed packages' and that of these folders. Raises InputError."""
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
    for folder in config_dirs:
        if not folder.is_dir():
            raise InputError(
                f"--config-dir {folder}: there is no such folder. It should hold model/mine.yaml and so on."
            )
        _refuse_shadows(folder)
    return [folder.resolve() for folder in config_dirs]


def _refuse_shadows(folder: Path) -> None:
    for name in _our_yaml_files():
        if (folder / name).exists():
            raise InputError(
                f"{folder / name} has the name of one of hpctool's own files and would not be read. Rename it; "
                f"what it changes can also go on top of ours: defaults: [{name.stem}, _self_]."
            )


def _our_yaml_files() -> list[Path]:
    root = Path(str(resources.files(CONF_PACKAGE)))
    return [path.relative_to(root) for path in root.rglob("*.yaml")]


def _installed_packages() -> list[str]:
    found = []
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            folder = resources.files(point.value)
        except Exception as error:  # whatever somebody else's package raises while it is imported
            raise InputError(
                f"The installed package '{point.name}' offers configuration in '{point.value}', which cannot be "
                f"imported ({error}). Repair or uninstall it."
            ) from error
        _refuse_shadows(Path(str(folder)))
        found.append(f"pkg://{point.value}")
    return found


def group_choices(group: str) -> list[str]:
    """The choices that hpctool ships for a group, without the shared bases (`_base`)."""
    folder = Path(str(resources.files(CONF_PACKAGE))) / group
    return sorted(p.stem for p in folder.glob("*.yaml") if not p.stem.startswith("_"))


@functools.cache
def shipped_values(group: str, target: str) -> dict[str, Any]:
    """What hpctool ships in a group as arguments of a `_target_`, as it is written; nothing for a user's own target."""
    folder, found = Path(str(resources.files(CONF_PACKAGE))) / group, dict[str, Any]()
    for choice in group_choices(group):
        plain = OmegaConf.to_container(OmegaConf.load(folder / f"{choice}.yaml"))
        if isinstance(plain, dict) and plain.get("_target_") == target:
            found |= {str(key): value for key, value in plain.items()}
    return found


def unreadable(override: str, error: Exception) -> ConfigError:
    """What to say of an override that Hydra's grammar refuses."""
    if "=" not in override:
        what = "there is no such option." if override.startswith("-") else "it has no '='."
        return ConfigError(override, f"{what} What a job takes is written key=value.")
    return ConfigError(
        override,
        f"it cannot be read ({_first_line(error)}). Lists are [a,b]; a text with commas, spaces or brackets needs "
        "quotes inside those of the shell: 'key=\"a, b\"'.",
    )


def _explained(error: Exception, primary: str, overrides: Sequence[str]) -> InputError:
    text = _first_line(error)
    if isinstance(error, OverrideParseException):
        return unreadable(str(error.override), error)
    if isinstance(error, MissingConfigException):
        return _missing_file(error, primary)
    if isinstance(error, YAMLError):
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else primary
        return InputError(f"{where}: this is not YAML ({getattr(error, 'problem', None) or text}).")
    if text.startswith("Config group override must be"):
        for key, _, value in (override.partition("=") for override in overrides):
            if key and group_choices(key) and (not re.search("[a-zA-Z]", value) or value in ("null", "true", "false")):
                return ConfigError(key, f"it takes one of {listing(group_choices(key))}, and got '{value}'.")
        return unreadable(next((o for o in overrides if o.startswith("=")), "?"), error)
    match = (
        re.match(r"Could not override '([^']+)", text)
        or re.match(r"Key '([^']+)' is not in struct", text)
        or re.match(r"Could not delete from config. '([^']+)' does not exist", text)
    )
    if match:
        return _no_such_key(match.group(1), primary, overrides)
    ambiguous = re.match(r"Ambiguous value for argument '([^=]+)=", text)
    if ambiguous:
        return ConfigError(ambiguous.group(1), "it has several values. Add -m for a sweep over them, or quote them.")
    twice = re.match(r"Multiple values for ([^.]+)\.", text) or re.match(
        r"Could not append .* already at '([^']+)'", text
    )
    if twice:
        return ConfigError(twice.group(1), "it has a value already, so '+' cannot add it. Leave out the '+'.")
    merging = re.match(r"Error merging override ([^=]+)=(.*)", text)
    if merging and error.__cause__ is not None:
        return ConfigError(merging.group(1), f"'{merging.group(2)}' does not fit ({_first_line(error.__cause__)}).")
    return InputError(f"The configuration of {primary} cannot be composed: {text}.")


def _missing_file(error: MissingConfigException, primary: str) -> InputError:
    group, _, choice = str(error.missing_cfg_file or "").rpartition("/")
    if group:
        known = [str(option) for option in error.options or [] if not str(option).startswith("_")]
        return UnknownName(f"choice of the config group '{group}' called", choice, known)
    ours = [path.stem for path in _our_yaml_files() if path.parent == Path()]
    return UnknownName("primary config", choice or primary, sorted(ours), "Your own need --config-dir.")


def _no_such_key(key: str, primary: str, overrides: Sequence[str]) -> ConfigError:
    if group_choices(key):
        return ConfigError(key, f"{primary} does not use this config group.")
    # With everything else that was asked, so that `model=cnn model.chanels=3` finds the keys of cnn.
    others = [override for override in overrides if override.partition("=")[0].lstrip("+~") != key]
    try:
        cfg = hydra_compose(primary, others)
    except (HydraException, OmegaConfBaseException, ValueError):
        cfg = hydra_compose(primary)
    flat = list(flatten(OmegaConf.to_container(cfg, resolve=False)))
    inner = {".".join(known.split(".")[:n]) for known in flat for n in range(1, known.count(".") + 1)}
    if isinstance(OmegaConf.select(cfg, key), DictConfig):
        return ConfigError(key, f"it takes keys of your own, which are added with a plus: '+{key}={{name: value}}'.")
    return ConfigError(key, "there is no such key.", nearest(key, sorted({*flat, *inner})))


def _dead_end(error: OmegaConfBaseException) -> ConfigError:
    """What to say of a value that refers to something that is not there."""
    text, key = _first_line(error), str(error.full_key or error.key or "?")
    variable = re.search(r"Environment variable '([^']+)' not found", text)
    if variable:
        name = variable.group(1)
        return ConfigError(key, f"it needs the environment variable {name}, which is not set. export {name}=…")
    gone = re.search(r"Interpolation key '([^']+)' not found", text)
    if gone:
        return ConfigError(key, f"it refers to ${{{gone.group(1)}}}, and there is no such key.")
    return ConfigError(key, text + ".")


_WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list", dict: "keys"}


def _does_not_fit(schema: type, cfg: DictConfig, key: str) -> ConfigError:
    kind: Any = schema
    for part in re.split(r"\.|(?=\[)", key):
        inner = get_args(kind)[-1:] if get_origin(kind) in (list, dict) else ()
        kind = get_type_hints(kind).get(part) if is_dataclass(kind) else inner[0] if inner else None
    choices = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    words = " or ".join(
        "null" if one is types.NoneType else _WORDS.get(get_origin(one) or one, "keys") for one in choices
    )
    found = OmegaConf.select(cfg, key)
    return ConfigError(key, f"it takes {words}, and got {'null' if found is None else repr(found)}.")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
