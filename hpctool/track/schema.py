"""The types of `track`; the values stand in conf/track/."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING


@dataclass
class Track:
    """What a run writes down while it goes (conf/track/). It does not count for the run's identity."""

    #: write TensorBoard event files beside metrics/<attempt>.jsonl
    tensorboard: bool = MISSING
    #: training metrics are logged every so many steps
    every_steps: int = MISSING
    #: processor, memory and GPUs of rank 0's machine are noted every so many seconds, with the metrics; 0: never
    system_every_s: float = MISSING
