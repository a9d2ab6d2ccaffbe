"""Where ranks meet: at a file that nobody else has, on the network that was asked for, or where torchrun says."""

from __future__ import annotations

import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from hpctool import files, rendezvous
from hpctool.errors import WorldError
from hpctool.place import Place

TOGETHER = [Place(rank, 2, rank, 2, "slurm") for rank in range(2)]
#: two ranks that believe themselves on two machines
APART = [Place(rank, 2, 0, 1, "slurm") for rank in range(2)]
LOOPBACK = "0100007F"


@pytest.fixture(autouse=True)
def _started_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_", "HPCTOOL_")):
            monkeypatch.delenv(name)


def listens_on(port: int) -> set[str]:
    """The addresses, as the kernel spells them, on which something listens at a port."""
    lines = [line.split() for table in ("tcp", "tcp6") for line in Path(f"/proc/net/{table}").read_text().splitlines()]
    found = (fields[1].split(":") for fields in lines if fields[3] == "0A")
    return {address for address, number in found if int(number, 16) == port}


def meet(places: list[Place], file: Path) -> dict[str, Any]:
    """Let two ranks meet; what rank 0 wrote down for the other, and on which addresses it listened."""
    stores = {}

    def go(place: Place) -> None:
        stores[place.rank] = rendezvous.meet(place, file, 20.0)

    first = threading.Thread(target=go, args=(places[0],))
    first.start()
    while not file.exists():
        assert first.is_alive()
    said = files.read_json(file)
    said["listens_on"] = listens_on(said["port"])
    go(places[1])
    first.join()
    stores[0].set("from 0", "hello")
    assert stores[1].get("from 0") == b"hello"
    return dict(said)


def test_ranks_of_one_machine_meet_where_no_other_machine_reaches_them(tmp_path: Path) -> None:
    said = meet(TOGETHER, tmp_path / "logs" / "meet.json")
    assert (said["host"], said["listens_on"]) == ("127.0.0.1", {LOOPBACK})


def test_a_file_that_was_met_at_is_gone_so_that_nobody_is_led_to_an_old_address(tmp_path: Path) -> None:
    ports = {meet(TOGETHER, tmp_path / "meet.json")["port"] for _ in range(2)}
    assert len(ports) == 2
    assert list(tmp_path.iterdir()) == []


def test_machines_meet_under_the_name_of_the_first(tmp_path: Path) -> None:
    said = meet(APART, tmp_path / "meet.json")
    assert said["host"] == socket.gethostname()
    assert said["listens_on"] != {LOOPBACK}


def test_machines_meet_on_the_network_interface_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCTOOL_INTERFACE", "lo")
    said = meet(APART, tmp_path / "meet.json")
    assert (said["host"], said["listens_on"]) == ("127.0.0.1", {LOOPBACK})


def test_an_interface_that_is_not_there_is_answered_with_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HPCTOOL_INTERFACE", "ib7")
    with pytest.raises(
        WorldError, match=r"HPCTOOL_INTERFACE=ib7: .* there is .*lo \(127\.0\.0\.1\).* cluster.interface"
    ):
        rendezvous.meet(APART[0], tmp_path / "meet.json", 5.0)


def test_each_start_meets_at_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files_of_starts = [rendezvous.meeting_file(tmp_path, TOGETHER[0])]
    for step, restarts in (("0", "0"), ("1", "0"), ("0", "1")):
        for name, value in (("JOB_ID", "7"), ("STEP_ID", step), ("RESTART_COUNT", restarts)):
            monkeypatch.setenv(f"SLURM_{name}", value)
        files_of_starts.append(rendezvous.meeting_file(tmp_path, TOGETHER[0]))
        assert rendezvous.meeting_file(tmp_path, APART[1]) == files_of_starts[-1]
    assert len(set(files_of_starts)) == 4


def test_what_a_rank_starts_does_not_meet_at_the_file_of_that_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for take in (rendezvous.named_file, lambda: rendezvous.meeting_file(tmp_path, Place())):
        monkeypatch.setenv("HPCTOOL_RENDEZVOUS", "/shared/meet.json")
        assert take() == Path("/shared/meet.json")
        assert "HPCTOOL_RENDEZVOUS" not in os.environ
    assert rendezvous.named_file() is None


def test_torchruns_address_counts_where_torchrun_started_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert rendezvous.meeting_file(tmp_path, Place(1, 2, 0, 1, "torchrun")) is None
    # an address that a batch script exports for all, and that two of its steps would share
    assert rendezvous.meeting_file(tmp_path, APART[1]) is not None


def test_ranks_that_do_not_know_where_to_meet_are_told_what_to_set() -> None:
    with pytest.raises(
        WorldError, match=r"2 ranks started by slurm .* set MASTER_ADDR and MASTER_PORT, or HPCTOOL_RENDEZVOUS"
    ):
        rendezvous.meet(APART[0], None, 5.0)
