"""`hpctool flywheel cluster=slurm`: what is submitted, what each job waits for, and what asking again finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hpctool.errors import InputError, UnknownName
from hpctool.export.named import named_bundle
from hpctool.launch import submit
from hpctool.rundir import RunDir
from tests.launch.conftest import toy_slurm
from tests.launch.toy_slurm import ToySlurm

__all__ = ["toy_slurm"]

TOLD = ["experiment=digits", "cluster=slurm", "cluster.partition=batch", "resources.time=10"]


def ask(slurm: ToySlurm, said: list[str], *overrides: str) -> submit.Submission:
    slurm.forget()
    return submit.submit(submit.Request("flywheel", [*TOLD, *overrides]), say=said.append)


@pytest.mark.slow
def test_the_loop_on_slurm_is_a_chain_that_is_submitted_whole_and_only_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_slurm: ToySlurm
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    made = ask(toy_slurm, said)
    assert list(made.links) == ["prepare", "train", "evaluate", "export", "score", "monitor"]
    waits = [re.findall(r"--dependency=(\S+)", line) for line in toy_slurm.calls("sbatch")]
    assert waits == [[], ["afterok:101"], ["afterok:102"], ["afterok:102"], ["afterok:104"], ["afterok:105"]]
    records = {job: RunDir(tmp_path / "runs" / one).record() for job, one in made.links.items() if job != "train"}
    after = {job: record["after"] and record["after"]["id"] for job, record in records.items()}
    links = made.links
    assert after == {
        **{"prepare": None, "evaluate": links["train"], "export": links["train"]},
        **{"score": links["export"], "monitor": links["score"]},
    }
    assert (tmp_path / "runs" / "sweeps" / links["train"] / "sweep.json").exists()
    assert "hpctool review queue digits@production" in "\n".join(said)
    # Each job was told what the chain was told of the cluster.
    assert all("cluster.partition=batch" in record["overrides"] for record in records.values())

    again = ask(toy_slurm, said)
    assert (again.links, again.submitted) == (links, [])
    assert len(toy_slurm.calls("sbatch")) == 6


@pytest.mark.slow
def test_a_dry_run_of_the_chain_says_what_would_be_typed_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines = submit.dry_run(submit.Request("flywheel", TOLD), multirun=False).splitlines()
    assert [line.split()[1] for line in lines] == ["prepare", "train", "evaluate", "export", "score", "monitor"]
    assert lines[1].endswith("after=<prepare>")
    assert not list(tmp_path.iterdir())


def test_a_bundle_is_named_by_the_run_that_exported_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    from omegaconf import OmegaConf

    from hpctool.rundir import create_run

    paths = OmegaConf.create({"runs": str(tmp_path / "runs"), "models": str(tmp_path / "models")})
    code = {"commit": "", "dirty": False, "snapshot": "none", "patch_sha256": ""}
    record = {"name": "export", "identity": "1a2b" * 16, "job": "export", "code": code, "cwd": str(tmp_path)}
    run = create_run(tmp_path / "runs", record, {})
    with pytest.raises(InputError, match=r"Run export-1a2b1a2b \(export, queued\) has exported no bundle"):
        named_bundle(paths, "export-1a2b")
    with pytest.raises(UnknownName):
        named_bundle(paths, "digits@0001")
    run.result_json.write_text('{"outputs": {"model": "digits@0007"}}')
    with pytest.raises(UnknownName, match="digits"):  # it is looked for, and was deleted
        named_bundle(paths, "export-1a2b")
