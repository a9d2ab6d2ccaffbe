"""Meters of a machine. There is no GPU here: nvidia-smi is a stand-in that prints what the real one would."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpctool.track.meters import Meters, gpu_readings, idle_gpus

SMI = "0, 97, 40000, 80000\n1, 2, 800, 80000\n2, [N/A], [N/A], [N/A]\n"


@pytest.fixture
def nvidia_smi(tmp_path: Path) -> str:
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\necho \"$@\" >> {tmp_path}/calls\nprintf '%s' '{SMI}'\n")
    path.chmod(0o755)
    return str(path)


def test_readings_come_when_they_are_due_and_are_of_the_time_between(nvidia_smi: str) -> None:
    meters = Meters(10.0, nvidia_smi)
    assert meters.due(0.0) == {}  # only begins
    deadline = time.process_time() + 0.05
    while time.process_time() < deadline:
        pass
    assert meters.due(9.9) == {}
    found = meters.due(10.0)
    meters.close()
    assert 0.4 < found["system/cpu_percent"] < 20
    assert 0 <= found["system/host_memory_percent"] <= 100
    assert found["system/memory_gb"] > 0.01


def test_nvidia_smi_is_read_at_the_reading_after_and_never_waited_for(nvidia_smi: str) -> None:
    meters = Meters(1.0, nvidia_smi)
    meters.due(0.0)
    assert meters._asked is not None
    meters._asked.wait(20)
    found = meters.due(1.0)
    assert (found["system/gpu0_percent"], found["system/gpu0_memory_percent"]) == (97.0, 50.0)
    assert "system/gpu2_percent" not in found
    meters.close()
    Path(nvidia_smi).write_text("#!/bin/sh\nexec sleep 60\n")  # a driver that hangs
    hanging = Meters(1.0, nvidia_smi)
    began = time.monotonic()
    for moment in range(5):
        hanging.due(float(moment))
    hanging.close()
    assert time.monotonic() - began < 20


def test_only_the_gpus_that_a_process_sees_are_its_own() -> None:
    assert set(gpu_readings(SMI, "1")) == {"system/gpu1_percent", "system/gpu1_memory_percent"}
    # Names of another kind cannot be told from here.
    assert len(gpu_readings(SMI, "GPU-8f6a")) == 4
    assert gpu_readings("No devices were found", None) == {}


def test_a_gpu_that_did_nothing_is_named() -> None:
    steps = range(6)
    curves = {
        "system/gpu0_percent": [(step, 90.0) for step in steps],
        "system/gpu1_percent": [(step, 2.0) for step in steps],
        "system/gpu1_memory_percent": [(step, 1.0) for step in steps],
        "system/gpu2_percent": [(0, 0.0)],  # too little to tell
    }
    assert idle_gpus(curves) == ["GPU 1 (2 %)"]


def test_meters_that_are_off_or_cannot_read_say_nothing() -> None:
    assert Meters(0.0).due(1e9) == {}
    broken = Meters(1.0, "/no/such/program")
    broken.due(0.0)
    assert not [name for name in broken.due(1.0) if "gpu" in name]
