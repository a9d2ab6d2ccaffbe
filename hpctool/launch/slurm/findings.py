"""What `hpctool doctor` finds: a sentence or two each, with what to change if something should be."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["OK", "NOTE", "CHANGE"]


@dataclass(frozen=True)
class Finding:
    """One thing that is as it should be (OK), worth knowing (NOTE), or better changed (CHANGE)."""

    level: Level
    text: str
    #: what to do about it, as a sentence; empty where nothing is to be done
    advice: str = ""

    def to_json(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)
