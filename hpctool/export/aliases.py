"""Aliases: names such as `production` that point at a version and remember where they pointed.

models/<name>/aliases/<alias>/ is a log; an entry is one decision: operation, version, content, by, time, message.
A server polls `current`; moving an alias is a compare-and-swap, so two people at once are both on record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hpctool.errors import ConflictError, CorruptError, InputError, UnknownName
from hpctool.export.bundle import Bundle, find_version, known_versions
from hpctool.log import Log
from hpctool.rundir import now, who

_ALIAS = re.compile(r"[A-Za-z][A-Za-z0-9._-]*")

#: What a bundle must pass before an alias may point at it: `verify.load_verified`, which imports torch.
Check = Callable[[Path], object]


@dataclass(frozen=True)
class Move:
    """One entry of an alias's history: `operation` is promote or rollback; `version` is where it pointed then."""

    number: int
    operation: str
    version: str
    content: str
    by: str
    time: str
    message: str = ""


def resolve(models: Path, ref: str) -> Bundle:
    """The bundle that `digits@production`, `digits@0003` or `digits` (the newest) names. Raises UnknownName.

    Raises CorruptError where an alias points at a version that has been replaced since.
    """
    name, _, revision = ref.partition("@")
    if not revision:
        return known_versions(models, name)[-1]
    if revision.isdecimal():
        return find_version(models, name, revision)
    move = current(models, name, revision)
    if move is None:
        versions = [b.version for b in known_versions(models, name)]
        raise UnknownName(f"version or alias of model '{name}' called", revision, [*names(models, name), *versions])
    return pointed_at(models, name, move)


def pointed_at(models: Path, name: str, move: Move) -> Bundle:
    """The bundle of an entry, which must still be the one that was meant. Raises UnknownName, CorruptError."""
    bundle = find_version(models, name, move.version)
    if bundle.manifest()["content"] != move.content:
        raise CorruptError(bundle.path, f"its content is not what was promoted by {move.by} at {move.time}")
    return bundle


def names(models: Path, name: str) -> list[str]:
    """The aliases of a model, in alphabetical order."""
    folder = models / name / "aliases"
    return sorted(p.name for p in folder.iterdir() if p.is_dir()) if folder.is_dir() else []


def history(models: Path, name: str, alias: str) -> list[Move]:
    """Where an alias has pointed, oldest first; empty where it never did."""
    return [Move(entry.number, **entry.body) for entry in _log(models, name, alias).entries()]


def current(models: Path, name: str, alias: str) -> Move | None:
    """Where an alias points now, or None: one listing and one small file, made for polling."""
    entry = _log(models, name, alias).newest()
    return Move(entry.number, **entry.body) if entry else None


def of_version(models: Path, name: str) -> dict[str, list[str]]:
    """The aliases that point at each version now, by version."""
    found: dict[str, list[str]] = {}
    for alias in names(models, name):
        if move := current(models, name, alias):
            found.setdefault(move.version, []).append(alias)
    return found


def promote(models: Path, bundle: Bundle, alias: str, check: Check, message: str = "") -> Move:
    """Point an alias at a bundle that passes `check`; nothing is added where it points there already.

    Raises InputError on a name that cannot be an alias, and whatever `check` raises: then the alias stays.
    """
    if not _ALIAS.fullmatch(alias):
        raise InputError(f"'{alias}' cannot be an alias; use letters, digits, '-', '_' and '.', a letter first.")
    check(bundle.path)
    content = bundle.manifest()["content"]
    while True:
        log = _log(models, bundle.name, alias)
        after = log.last()
        now_at = current(models, bundle.name, alias)
        if now_at and now_at.content == content and now_at.version == bundle.version:
            return now_at
        move = _move(after + 1, "promote", bundle.version, content, message)
        if log.cas(_body(move), after):
            return move


def rollback(models: Path, name: str, alias: str, check: Check, message: str = "") -> Move:
    """Point an alias at where it pointed before the last promotion that still stands; again goes further back.

    Raises UnknownName, InputError where there is nothing before, ConflictError where somebody moved it meanwhile
    (what they promoted is not what you wanted gone), and whatever `check` raises.
    """
    log = _log(models, name, alias)
    after = log.last()
    if after == 0:
        known_versions(models, name)
        raise UnknownName(f"alias of model '{name}' called", alias, names(models, name))
    standing = _standing([m for m in history(models, name, alias) if m.number <= after])
    if len(standing) < 2:
        raise InputError(f"{name}@{alias} has pointed at nothing else before; it stays where it is.")
    target = standing[-2]
    check(pointed_at(models, name, target).path)
    move = _move(after + 1, "rollback", target.version, target.content, message)
    if not log.cas(_body(move), after):
        theirs = current(models, name, alias)
        raise ConflictError(f"{name}@{alias}", f"back to {target.version}", f"to {theirs.version if theirs else '?'}")
    return move


def _standing(moves: list[Move]) -> list[Move]:
    """The promotions that no rollback has taken back, oldest first: a stack."""
    stack: list[Move] = []
    for move in moves:
        if move.operation == "promote":
            stack.append(move)
        elif len(stack) > 1:
            stack.pop()
    return stack


def _log(models: Path, name: str, alias: str) -> Log:
    return Log(models / name / "aliases" / alias)


def _move(number: int, operation: str, version: str, content: str, message: str) -> Move:
    return Move(number, operation, version, content, who(), now(), message)


def _body(move: Move) -> dict[str, str]:
    return {k: v for k, v in vars(move).items() if k != "number"}
