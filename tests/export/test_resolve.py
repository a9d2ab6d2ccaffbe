"""What is wrong with an export is said on the login node, without torch."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hpctool.errors import ConfigError, InputError, UnknownName
from hpctool.rundir import RunDir
from tests.export.conftest import Project

pytestmark = pytest.mark.slow  # the project's runs are trained first


def test_the_bundle_is_named_after_the_dataset_unless_a_name_is_given(project: Project, tmp_path: Path) -> None:
    assert project.config("mlp", tmp_path).bundle.name == "digits"
    assert project.config("mlp", tmp_path, "bundle.name=faces").bundle.name == "faces"


def test_run_and_data_are_pinned(project: Project, tmp_path: Path) -> None:
    cfg = project.config(project.runs["mlp"][:-4], tmp_path)
    assert cfg.run == project.runs["mlp"]
    assert cfg.data.name is not None
    assert cfg.data.name.startswith("digits@")


def test_a_run_that_has_not_completed_is_refused_with_its_state(project: Project, tmp_path: Path) -> None:
    run = RunDir(project.root / "runs" / project.runs["mlp"])
    copy = project.root / "runs" / "half-00000000"
    copy.mkdir()
    for name in ("run.json", "config.yaml"):
        (copy / name).write_bytes((run.path / name).read_bytes())
    with pytest.raises(InputError, match="half-00000000 is queued, not completed; export takes a completed run"):
        project.config("half-00000000", tmp_path)


def test_a_run_of_another_job_is_refused(project: Project, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is a run of 'prepare'; export takes a run of 'train'"):
        project.config("prepare-", tmp_path)


def test_a_run_of_a_dataset_of_its_own_is_refused_before_any_work(project: Project, tmp_path: Path) -> None:
    copy = project.root / "runs" / "own-00000000"
    shutil.copytree(project.root / "runs" / project.runs["mlp"], copy)
    text = (copy / "config.yaml").read_text()
    assert "\n  dataset: null\n" in text
    (copy / "config.yaml").write_text(text.replace("  dataset: null", "  dataset: {_target_: mine.Pairs}"))
    with pytest.raises(
        InputError, match=r"learnt from a Dataset of its own \(mine.Pairs\), and export needs a version"
    ):
        project.config("own-00000000", tmp_path)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("bundle.name=a/b", r"bundle\.name"),
        ("bundle.formats=[onnx]", "'onnx' is none of torchscript"),
        ("bundle.formats=[]", "a bundle needs torchscript"),
        ("bundle.num_golden=0", r"bundle\.num_golden.*must be 1 or more"),
        ("parity.batch_sizes=[0,1]", r"parity\.batch_sizes"),
        ("parity.repeats=0", r"parity\.repeats"),
        ("calibration.num_bins=1", r"calibration\.num_bins"),
        ("data.split=vall", "no split 'vall'.*Did you mean val"),
        ("mode=best", "'best' is not one of max, min"),
    ],
)
def test_a_value_that_does_not_fit_is_named(project: Project, tmp_path: Path, override: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        project.config("mlp", tmp_path, override)


def test_an_unknown_run_is_answered_with_those_that_are_there(project: Project, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match=r"no run or sweep 'nowhere'; there is: .*train-"):
        project.config("nowhere", tmp_path)


def test_neither_resolving_nor_listing_imports_torch(project: Project, tmp_path: Path) -> None:
    code = f"""
import sys
from hpctool import config
from hpctool.jobs import export
import hpctool.cli.models
cfg = config.compose("export", ["paths.root={project.root}", "run={project.runs["mlp"]}"]).cfg
export.resolve(config.typed(cfg, export.Config))
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
