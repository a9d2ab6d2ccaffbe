"""Publishing: whole or not at all, a number for each content, nobody overwritten."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from hpctool.export import publish
from hpctool.export.bundle import Bundle, list_models, list_versions
from tests.conftest import Spawn
from tests.export.conftest import Make

PUBLISH = """
import sys
from pathlib import Path
from hpctool.export import publish
models, text, go = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
with publish.staging(models, "digits") as staged:
    for name in ("model.ts", "golden.npz"):
        publish.put(staged, name, (text * 1000).encode())
    for name in ("signature.json", "reference.json"):
        publish.put_json(staged, name, {"text": text})
    print("staged", flush=True)
    while not go.exists():
        pass
    print(publish.publish(staged, {"run": text}).bundle.version)
"""


def test_versions_are_numbered_and_their_files_cannot_be_written(make_bundle: Make, tmp_path: Path) -> None:
    first, second = make_bundle("one"), make_bundle("two")
    assert (first.bundle.version, second.bundle.version) == ("0001", "0002")
    assert first.is_new
    assert second.is_new
    assert {path.stat().st_mode & 0o777 for path in first.bundle.path.iterdir()} == {0o444}
    assert list_models(tmp_path / "models") == ["digits"]
    first.bundle.check_files()


def test_the_same_content_finds_the_version_that_is_there(make_bundle: Make, tmp_path: Path) -> None:
    make_bundle("one")
    make_bundle("two")
    again = make_bundle("one")
    assert (again.bundle.version, again.is_new) == ("0001", False)
    assert [b.version for b in list_versions(tmp_path / "models", "digits")] == ["0001", "0002"]
    assert not list((tmp_path / "models" / "digits").glob(".*"))


def test_another_origin_is_another_content(make_bundle: Make) -> None:
    make_bundle("one", lineage={"run": "train-aa"})
    assert make_bundle("one", lineage={"run": "train-bb"}).bundle.version == "0002"


def test_lineage_names_the_version_that_it_lies_in(make_bundle: Make) -> None:
    make_bundle("one")
    lineage = make_bundle("two").bundle.lineage()
    assert lineage["model"] == {"name": "digits", "version": "0002"}
    assert lineage["format"] == 1
    assert "@" in lineage["by"]


def test_a_damaged_version_keeps_its_number(make_bundle: Make) -> None:
    path = make_bundle("one").bundle.path
    (path / "MANIFEST.json").unlink()
    assert make_bundle("one").bundle.version == "0002"


def test_what_fails_before_publishing_leaves_nothing(tmp_path: Path) -> None:
    with publish.staging(tmp_path / "models", "digits") as staged:
        publish.put(staged, "model.ts", b"half")
    assert not (tmp_path / "models" / "digits").exists()


@pytest.mark.slow
def test_exports_at_once_get_different_numbers(tmp_path: Path, spawn: Spawn) -> None:
    go = tmp_path / "go"
    started = [spawn(PUBLISH, tmp_path / "models", f"text-{i}", go) for i in range(6)]
    assert all(process.stdout and process.stdout.readline() == "staged\n" for process in started)
    go.touch()
    numbers = sorted(process.communicate(timeout=60)[0].strip() for process in started)
    assert numbers == [f"{i:04d}" for i in range(1, 7)]
    for bundle in list_versions(tmp_path / "models", "digits"):
        bundle.check_files()
        assert bundle.lineage()["model"]["version"] == bundle.version


@pytest.mark.slow
def test_the_same_content_at_once_gets_one_number(tmp_path: Path, spawn: Spawn) -> None:
    go = tmp_path / "go"
    started = [spawn(PUBLISH, tmp_path / "models", "same", go) for _ in range(4)]
    assert all(process.stdout and process.stdout.readline() == "staged\n" for process in started)
    go.touch()
    assert {process.communicate(timeout=60)[0].strip() for process in started} == {"0001"}


@pytest.mark.slow
@pytest.mark.parametrize("delay_s", [0.0, 0.002, 0.004, 0.008, 0.016])
def test_a_kill_while_publishing_leaves_all_or_nothing(tmp_path: Path, spawn: Spawn, delay_s: float) -> None:
    models = tmp_path / "models"
    process = spawn(PUBLISH, models, "one", tmp_path / "go")
    assert process.stdout
    assert process.stdout.readline() == "staged\n"
    (tmp_path / "go").touch()
    time.sleep(delay_s)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for bundle in list_versions(models, "digits"):
        bundle.check_files()
    after = spawn(PUBLISH, models, "one", tmp_path / "go")
    assert after.communicate(timeout=60)[0].split() == ["staged", "0001"]


def test_staging_folders_of_the_dead_are_swept_after_a_day(make_bundle: Make, tmp_path: Path) -> None:
    make_bundle("one")
    old, young = tmp_path / "models/digits/.stage-x-1-a", tmp_path / "models/digits/.stage-x-2-b"
    for folder in (old, young):
        folder.mkdir()
        (folder / "model.ts").write_bytes(b"half")
    yesterday = time.time() - 2 * 86_400
    os.utime(old, (yesterday, yesterday))
    make_bundle("two")
    assert not old.exists()
    assert young.exists()


def test_a_number_taken_meanwhile_is_left_alone(make_bundle: Make, tmp_path: Path) -> None:
    """What NFS answers when a rename has lost the race: the next number is taken."""
    models = tmp_path / "models"
    with publish.staging(models, "digits") as staged:
        publish.put(staged, "model.ts", b"slow")
        fast = make_bundle("fast").bundle
        slow = publish.publish(staged, {"run": "slow"}).bundle
    assert (fast.version, slow.version) == ("0001", "0002")
    assert Bundle(fast.path).lineage()["run"] == "train-0123abcd"
