"""The types of what `hpctool flywheel` and `hpctool gate` are told; the values stand in conf/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig


@dataclass
class Rehearsal:
    """The parts of the loop that a demonstration plays for the world outside."""

    #: train the best configuration twice more, once killed with -9, and compare the bits
    kill: bool = MISSING
    #: ranks of that
    num_ranks: int = MISSING
    #: and its length: one that is killed at a fifth of it shows no less than one as long as the best run
    max_steps: int = MISSING
    #: how often each row of the split `production` is sent worn
    worn_copies: int = MISSING
    #: of the worn scanner's noise
    seed: int = MISSING


@dataclass
class Flywheel:
    """What goes round, and how far."""

    #: the dataset and the model are named so
    name: str = MISSING
    #: overrides of `prepare`, of every `train`, and of the sweep on top of it
    prepare: list[str] = MISSING
    train: list[str] = MISSING
    sweep: list[str] = MISSING
    #: predictions for people to look at: the least certain ones, and a random sample
    num_uncertain: int = MISSING
    num_audit: int = MISSING
    #: the gate's level
    alpha: float = MISSING
    #: leave the server running at the end
    keep_server: bool = MISSING
    rehearsal: Rehearsal = MISSING


@dataclass
class FlywheelConfig(JobConfig):
    """Everything of `hpctool flywheel`."""

    flywheel: Flywheel = MISSING


@dataclass
class Gate:
    """Evaluations of the old and the new model, run ids, in pairs."""

    #: where nothing may be lost
    keep_old: str = MISSING
    keep_new: str = MISSING
    #: where something is to be won; null where nothing is
    improve_old: str | None = MISSING
    improve_new: str | None = MISSING
    #: the level of the tests
    alpha: float = MISSING


@dataclass
class GateConfig(JobConfig):
    """Everything of `hpctool gate`."""

    gate: Gate = MISSING
