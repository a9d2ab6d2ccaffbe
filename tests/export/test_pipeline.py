"""Export as a whole: what is published answers like the run it came from; what does not is not published."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hpctool.data.version import open_version
from hpctool.errors import ConfigError, OperationError, ParityError
from hpctool.export import child, golden
from hpctool.export.bundle import Bundle
from hpctool.export.pipeline import export_job, export_run
from hpctool.export.verify import load_verified
from hpctool.rundir import RunDir, list_run_ids
from hpctool.train.params import load_params
from tests.export.conftest import Project

pytestmark = pytest.mark.slow  # the project's runs are trained first


@pytest.fixture(scope="module")
def exported(project: Project, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the project's MLP; nobody changes it."""
    return export_run(project.config("mlp", tmp_path_factory.mktemp("exported") / "models")).bundle


def test_the_bundle_answers_like_the_runs_own_model(project: Project, exported: Bundle) -> None:
    model, _ = load_params(RunDir(project.root / "runs" / project.runs["mlp"]))
    version = open_version(project.root / "datasets", "digits")
    images = version.read("image", version.split_rows("test"))
    with torch.inference_mode():
        logits = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255.0).numpy()
    assert np.allclose(load_verified(exported.path)(images)["logits"], logits, atol=1e-5)


def test_the_signature_says_what_a_server_must_know(exported: Bundle) -> None:
    signature = exported.signature()
    assert [vars(spec) for spec in signature.inputs] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 8, 8, 1]}]
    assert [vars(spec) for spec in signature.outputs] == [
        {"name": "probabilities", "datatype": "FP32", "shape": [-1, 10]},
        {"name": "logits", "datatype": "FP32", "shape": [-1, 10]},
    ]
    assert (signature.method, signature.reason, signature.dtype) == ("script", "", "float32")
    assert signature.preprocessing.startswith("ToFloat: uint8 images (N, H, W, C) → float32 (N, C, H, W)")
    assert signature.temperature == exported.reference()["calibration"]["temperature"] != 1.0
    assert type(signature).from_json(signature.to_json()) == signature


def test_golden_rows_are_rows_of_the_split_with_their_names(project: Project, exported: Bundle) -> None:
    rows = golden.read(exported.path / "golden.npz")
    version = open_version(project.root / "datasets", "digits")
    assert rows.uids[-2:] == ["black", "white"]
    found = version.find(rows.uids[:-2])
    assert set(found.tolist()) <= set(version.split_rows("val").tolist())
    assert np.array_equal(version.read("image", found), rows.inputs[:-2])


def test_the_reference_adds_up(project: Project, exported: Bundle) -> None:
    reference = exported.reference()
    num_rows = open_version(project.root / "datasets", "digits").splits["val"]
    assert reference["num_rows"] == reference["num_labelled"] == num_rows
    assert sum(reference["predicted"]) == sum(reference["labels"]) == num_rows
    confusion = np.array(reference["confusion"])
    assert confusion.sum(axis=1).tolist() == reference["labels"]
    assert confusion.sum(axis=0).tolist() == reference["predicted"]
    assert np.trace(confusion) / num_rows == pytest.approx(reference["calibration"]["accuracy"])
    assert exported.lineage()["metrics"]["val/accuracy"] == pytest.approx(reference["calibration"]["accuracy"])


def test_lineage_leads_to_run_code_config_and_data(project: Project, exported: Bundle) -> None:
    lineage = exported.lineage()
    rundir = RunDir(project.root / "runs" / project.runs["mlp"])
    assert lineage["run"] == rundir.id
    assert lineage["run_identity"] == rundir.record()["identity"]
    assert lineage["data"] == {"name": "digits", "commit": open_version(project.root / "datasets", "digits").commit}
    assert lineage["code"]["snapshot"] == rundir.record()["code"]["snapshot"]
    assert lineage["param_digest"] == (rundir.result() or {})["param_digest"]


def test_the_same_run_gives_the_same_bytes_and_finds_its_version(project: Project, exported: Bundle) -> None:
    again = export_job(project.config("mlp", exported.path.parents[1]))
    assert again["outputs"]["model"] == "digits@0001"
    assert again["outputs"]["content"] == exported.manifest()["content"]


def test_other_settings_are_another_version(project: Project, exported: Bundle) -> None:
    other = export_run(project.config("mlp", exported.path.parents[1], "calibration.fit=false"))
    assert (str(other.bundle), other.is_new) == ("digits@0002", True)
    assert other.bundle.signature().temperature == 1.0
    assert other.bundle.reference()["calibration"]["note"] == "not asked for"


def test_a_model_that_can_only_be_traced_is_published_with_the_reason(project: Project, tmp_path: Path) -> None:
    said: list[str] = []
    found = export_run(project.config("Traceable", tmp_path / "models", "bundle.name=mine"), said.append).bundle
    assert str(found) == "mine@0001"
    assert found.signature().method == "trace"
    assert "keyword-only arguments" in found.signature().reason
    load_verified(found.path)


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("Branching", "batch of 1, call 1: 'probabilities' differs by up to"),
        ("Baked", "batch of 1, call 1: the exported graph cannot take it: .*shape '.3, 64.' is invalid"),
    ],
)
def test_a_graph_that_is_not_the_model_is_refused_and_nothing_is_published(
    project: Project, tmp_path: Path, model: str, reason: str
) -> None:
    with pytest.raises(ParityError, match=rf"{project.runs[model]} is not published. {reason}.* It was traced because"):
        export_run(project.config(model, tmp_path / "models"))
    assert not list((tmp_path / "models").rglob("*"))


def test_a_dtype_without_a_tolerance_is_refused(project: Project, tmp_path: Path) -> None:
    cfg = project.config("mlp", tmp_path / "models")
    del cfg.parity.tolerance["float32"]
    with pytest.raises(ConfigError, match=r"add \+parity\.tolerance\.float32="):
        export_run(cfg)


def test_a_model_that_cannot_be_made_again_is_an_error_in_one_line(project: Project, tmp_path: Path) -> None:
    missing = RunDir(tmp_path / "train-00000000")
    with pytest.raises(OperationError, match=r"train-00000000 could not be exported: .* no checkpoint yet"):
        child.graph_of(missing, 1.0, np.zeros((3, 8, 8, 1), np.uint8))


def test_the_job_fails_with_one_sentence_and_leaves_only_its_run(project: Project, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpctool.cli.main", "export", f"run={project.runs['Branching']}"]
    environment = {**os.environ, "HPCTOOL_ROOT": str(project.root), "PYTHONPATH": str(project.root)}
    done = subprocess.run(
        [*command, f"paths.models={tmp_path}/models"],
        cwd=project.root,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 1
    assert "is not published" in done.stderr
    assert "Traceback" not in done.stderr
    run = next(id for id in list_run_ids(project.root / "runs") if id.startswith("export-"))
    assert "is not published" in (RunDir(project.root / "runs" / run).result() or {})["cause"]
    assert not list((tmp_path / "models").rglob("*"))
