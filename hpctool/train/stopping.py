"""Told to stop: what there is still time for, on which all ranks agree. Which signal it was, and until when: launch."""

from __future__ import annotations

from dataclasses import dataclass

from hpctool.checkpoint import deadline
from hpctool.checkpoint.engine import Checkpointer
from hpctool.launch import signals
from hpctool.rundir import RunDir
from hpctool.world import World


@dataclass(frozen=True)
class Stop:
    """Why the ranks stop, and what they do: save, or keep the newest checkpoint because nothing else fits."""

    cause: str
    #: what is said of the choice
    words: str
    #: the step of the checkpoint that is kept; None: save
    kept: int | None = None

    @property
    def note(self) -> str:
        """What the ledger says beside the cause, where nothing new was saved."""
        return self.words if self.kept is not None else ""


def decide(rundir: RunDir, world: World, checkpoints: Checkpointer) -> Stop:
    """What all ranks do now that they have agreed to stop. Collective: all ranks must call it.

    The shortest time that any of them knows of counts; rank 0, which has seen the saves, chooses.
    """
    told = world.gather([signals.stop_cause(), signals.seconds_left()])
    cause = next(cause for cause, _ in told if cause)
    left_s = min((seconds for _, seconds in told if seconds is not None), default=None)

    words, kept = world.on_main(lambda: _chosen(rundir, checkpoints, cause, left_s))
    return Stop(cause, words, kept)


def _chosen(rundir: RunDir, checkpoints: Checkpointer, cause: str, left_s: float | None) -> list[str | int | None]:
    """Rank 0: what is said, and the step that is kept; the step at hand is done when the ranks have agreed."""
    if left_s is None:
        return [f"told to stop ({cause}): saving", None]
    commits = rundir.story().checkpoints
    save_s, choice = checkpoints.expected_save_s, checkpoints.choose(left_s, 0.0)
    if save_s is None:
        # This attempt has not saved yet; those before it have.
        save_s = deadline.expected_s([body["save_s"] for body in commits if "save_s" in body])
        choice = deadline.choose(left_s, 0.0, save_s)
    takes = "nobody knows how long a save takes" if save_s is None else f"a save takes {save_s:.1f} s"
    time = f"{left_s:.0f} s are left and {takes}"
    if not commits or choice != "keep":
        return [f"told to stop ({cause}), {time}: saving", None]
    return [f"{time}, so the checkpoint of step {commits[-1]['step']} is kept", commits[-1]["step"]]
