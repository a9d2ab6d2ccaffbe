"""Ranks that succeed together or fail together: an error on one is raised on all, as what it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hpctool import errors
from hpctool.errors import HpctoolError, OperationError
from hpctool.world import World


def together(world: World, action: Callable[[], Any]) -> list[Any]:
    """Do something on every rank and give the JSON results of all to all. Collective: all ranks must call it.

    Where it failed, each rank raises its own error and the others that of the first rank that has one: OSError with
    its errno and our own errors with their fields; anything else is an OperationError there.
    """
    result, own_error = None, None
    try:
        result = action()
    except Exception as error:
        own_error = error
    answers = world.gather({"result": result} if own_error is None else {"error": _packed(own_error)})
    if own_error is not None:
        raise own_error
    for rank, answer in enumerate(answers):
        if "error" in answer:
            raise _unpacked(answer["error"], rank)
    return [answer["result"] for answer in answers]


def on_main(world: World, action: Callable[[], Any]) -> Any:
    """Like `together`, but only rank 0 acts. Collective: all ranks must call it."""
    return together(world, lambda: action() if world.is_main else None)[0]


def _packed(error: Exception) -> dict[str, Any]:
    if isinstance(error, OSError):
        return {"errno": error.errno, "text": error.strerror or str(error), "path": error.filename}
    if isinstance(error, HpctoolError):
        return {"class": type(error).__name__, "text": str(error), "fields": vars(error)}
    return {"text": f"{type(error).__name__}: {error}"}


def _unpacked(packed: dict[str, Any], rank: int) -> Exception:
    if "errno" in packed:
        return OSError(packed["errno"], packed["text"], packed["path"])
    kind = getattr(errors, packed.get("class", ""), None)
    if kind is None:
        return OperationError(f"Rank {rank} failed: {packed['text']}")
    # Not through __init__, which builds the sentence from the fields: both are here already.
    error: Exception = kind.__new__(kind, packed["text"])
    vars(error).update(packed["fields"])
    return error
