"""Slurm's words in ours."""

from __future__ import annotations

import pytest

from hpctool.launch.slurm import states
from hpctool.launch.slurm.reasons import REASONS, sentence
from hpctool.rundir import STATES

#: The states and flags of Slurm's page of job states, with what 25.05 has added.
DOCUMENTED = """
BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PENDING PREEMPTED RUNNING SUSPENDED TIMEOUT
COMPLETING CONFIGURING LAUNCH_FAILED POWER_UP_NODE RECONFIG_FAIL REQUEUED REQUEUE_FED REQUEUE_HOLD RESIZING
RESV_DEL_HOLD REVOKED SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED UPDATE_DB EXPEDITING
"""


def test_every_documented_state_has_a_word_of_ours_and_none_is_invented() -> None:
    assert set(states.STATES) == set(DOCUMENTED.split())
    assert set(states.STATES.values()) <= set(STATES)
    assert set(states.COMPACT.values()) <= set(DOCUMENTED.split())
    assert set(states.CAUSES) <= set(DOCUMENTED.split())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Priority", "waits behind jobs of higher priority"),
        ("(Resources)", "waits for free resources"),
        ("QOSMaxJobsPerUserLimit", "its QOS's limit on jobs per user is reached"),
        ("QOSGrpCPURunMinutesLimit", "its QOS's limit on minutes of CPUs is reached by all its jobs together"),
        ("AssocGrpGRES", "its account's limit on GPUs or other gres is reached by all its jobs together"),
        ("AssocMaxWallDurationPerJobLimit", "its account's limit on time per job is reached"),
        ("QOSMinCpuNotSatisfied", "it asks for less of CPUs than its QOS's least"),
        ("MaxNodePerAccount", "its QOS's limit on nodes per account is reached"),
        (
            "ReqNodeNotAvail, UnavailableNodes:n[1-4]",
            "a node it asks for is down, reserved or in use (n[1-4])",
        ),
        ("RaisedSignal:53(Real-time_signal_19)", "it was killed by a signal"),
        ("", ""),
    ],
)
def test_a_reason_is_a_sentence(text: str, expected: str) -> None:
    assert sentence(text) == expected


def test_a_reason_that_nobody_knows_is_shown_as_it_is() -> None:
    assert sentence("MoonPhase") == "MoonPhase"
    assert sentence("(MoonPhase (new))") == "MoonPhase (new)"


def test_no_sentence_ends_like_one() -> None:
    assert not [text for text in REASONS.values() if text.endswith(".")]
