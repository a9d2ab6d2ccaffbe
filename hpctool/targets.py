"""Can this be imported? Answered from the import system's finders and the source text; nothing is imported.

A login node must not load torch to see whether `torch.optim.AdamV` is a typo. A dotted name is followed to a file, and
the rest of it is looked up in that file's text. What only running it would tell (compiled code, a module's
`__getattr__`, the bases of a class) is believed.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path

from hpctool.errors import nearest

#: a name → the names inside it, or None where the text cannot tell
Names = dict[str, "Names | None"]


def why_not_importable(target: str) -> str:
    """Why `package.module.Name` cannot be imported, as the end of a sentence; empty if it can, as far as one sees."""
    parts = target.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return "that is not an importable name of the form package.module.Name"
    try:
        return _why_not(parts)
    except (ImportError, OSError, SyntaxError, ValueError) as error:
        return f"its module cannot be read ({error})"


def find_module(name: str) -> ModuleSpec | None:
    """The spec of the module `package.module`, or None if there is none; nothing is imported."""
    parts = name.split(".")
    specs = _module_chain(parts)
    return specs[-1] if len(specs) == len(parts) else None


def _why_not(parts: list[str]) -> str:
    specs = _module_chain(parts)
    if not specs:
        return f"there is no module '{parts[0]}'"
    depth = len(specs)
    if depth == len(parts):
        # A package may import a class under the name of the module that holds it: then the class is what is found.
        depth -= 1
        if depth == 0 or parts[-1] not in (_names(specs[-2]) or ()):
            return "that is a module, not a class or function in one"
    names = _names(specs[depth - 1])
    for number, part in enumerate(parts[depth:], start=depth):
        if names is None:
            break
        if part not in names:
            near = nearest(part, names)
            return f"{'.'.join(parts[:number])} has no '{part}'" + (f" (it has {', '.join(near)})" if near else "")
        names = names[part]
    return ""


def _module_chain(parts: list[str]) -> list[ModuleSpec]:
    """The specs of `a`, `a.b`, … as far as they are modules; nothing is imported."""
    importlib.invalidate_caches()
    specs: list[ModuleSpec] = []
    for depth in range(1, len(parts) + 1):
        search = list(specs[-1].submodule_search_locations or []) if specs else None
        if search == []:  # a module that is no package
            break
        finders = (getattr(finder, "find_spec", None) for finder in sys.meta_path)
        found = (find(".".join(parts[:depth]), search) for find in finders if find is not None)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is None:
            break
        specs.append(spec)
    return specs


def _names(spec: ModuleSpec, seen: frozenset[str] = frozenset()) -> Names | None:
    """The names that a module's source binds at its top; None where that cannot be known from the text."""
    if spec.origin is None:
        return {}  # a folder without __init__.py holds modules only
    if not spec.origin.endswith(".py") or spec.name in seen:
        return None
    names: Names = {}
    for node in _top_level(ast.parse(Path(spec.origin).read_bytes(), filename=spec.origin)):
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            package = spec.name if spec.submodule_search_locations else spec.parent or ""
            path = importlib.util.resolve_name("." * node.level + (node.module or ""), package).split(".")
            chain = _module_chain(path)
            more = _names(chain[-1], seen | {spec.name}) if len(chain) == len(path) else None
            if more is None:
                return None
            names.update(more)
        names.update(_bound(node))
    return None if "__getattr__" in names or "globals()" in names else names


def _bound(node: ast.AST) -> Names:
    if isinstance(node, ast.ClassDef):
        inner: Names = {}
        for part in node.body:
            for one in _top_level(part):
                inner.update(_bound(one))
        return {node.name: None if node.bases or node.keywords or node.decorator_list else inner}
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return {node.name: None}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {(alias.asname or alias.name).split(".")[0]: None for alias in node.names}
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        return {node.id: None}
    is_globals = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "globals"
    return {"globals()": None} if is_globals else {}


def _top_level(node: ast.AST) -> Iterator[ast.AST]:
    """A statement and what runs with it: not the bodies of functions and classes."""
    yield node
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        for child in ast.iter_child_nodes(node):
            yield from _top_level(child)
