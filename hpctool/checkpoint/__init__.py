"""Checkpoint: state to disk and back, committed through the run's ledger."""

from hpctool.checkpoint.commits import Commit, committed
from hpctool.checkpoint.digest import param_digest, state_digest
from hpctool.checkpoint.engine import Checkpointer
from hpctool.checkpoint.flatten import check_state
from hpctool.checkpoint.pins import kept, pin, unpin
from hpctool.checkpoint.restore import Restored, load
from hpctool.checkpoint.streams import random_state, set_random_state

__all__ = [
    "Checkpointer",
    "Commit",
    "Restored",
    "check_state",
    "committed",
    "kept",
    "load",
    "param_digest",
    "pin",
    "random_state",
    "set_random_state",
    "state_digest",
    "unpin",
]
