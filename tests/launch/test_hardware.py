"""What a machine is called: by files of Linux and of NVIDIA's driver; a GPU is made up here, for there is none."""

from pathlib import Path

import pytest

from hpctool.launch.hardware import hardware


def test_this_machine_has_a_processor_with_a_name() -> None:
    found = hardware()
    assert found["cpu"]
    assert found["num_cpus"] >= 1


@pytest.mark.slow
def test_gpus_are_named_by_the_driver_and_missing_files_are_no_error(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Thing  9000 @ 2GHz\n")
    for slot in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / "gpus" / slot).mkdir(parents=True)
        (tmp_path / "gpus" / slot / "information").write_text("Model: \t\t NVIDIA H100 PCIe\nIRQ: 7\n")
    found = hardware(tmp_path / "cpuinfo", tmp_path / "gpus")
    assert (found["cpu"], found["gpus"]) == ("Thing 9000 @ 2GHz", ["NVIDIA H100 PCIe"] * 2)
    assert hardware(tmp_path / "no", tmp_path / "no")["gpus"] == []
