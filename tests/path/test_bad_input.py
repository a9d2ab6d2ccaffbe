"""Whatever is typed wrong gets one sentence, exit code 2, no traceback, and nothing is written."""

from pathlib import Path

import pytest

from tests.path.conftest import Shell

pytestmark = pytest.mark.slow  # whole commands and processes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "data.name=digits", "optim.lrr=0.1"], ["optim.lrr", "optim.lr"]),
        (["train", "data.name=digits", "modl=cnn"], ["modl", "model"]),
        (["train", "data.name=digits", "model=cnm"], ["cnm", "cnn"]),
        (["train", "data.name=digits", "loop.max_steps=many"], ["loop.max_steps", "many"]),
        (["train", "data.name=digits", "model._target_=mynets.Net"], ["mynets.Net", "mynets"]),
        (["train", "data.name=digits", "model._target_=hpctool.nets.CNM"], ["CNM", "CNN"]),
        (["train", "data.name=digts"], ["digts", "digits"]),
        (["train", "data.name=digits@v7"], ["v7", "v1"]),
        (["train"], ["data.name"]),
        (["train", "data.name=digits", "loop.max_steps=10", "loop.max_epochs=1"], ["max_steps", "max_epochs"]),
        (["train", "data.name=digits", "data.val_split=vall"], ["vall", "val"]),
        (["train", "data.name=digits", "optim.lr=1e-3,1e-2"], ["-m"]),
        (["train", "data.name=digits", "resources.tasks_per_node=3"], ["cluster=local", "3 ranks"]),
        (["train", "data.name=digits", "cluster=local", "resources.tasks_per_node=7"], ["48", "7"]),
        (["train", "data.name=digits", "resources.time=soon"], ["resources.time", "soon"]),
        (["train", "data.name=digits", "cluster=local", "resources.time=1"], ["signal_delay_s"]),
        (["train", "data.name=digits", "=3"], ["=3"]),
        (["evaluate", "run=nothing"], ["nothing", "short-"]),
        (["export", "run=nothing"], ["nothing", "short-"]),
        (["runs", "show", "nothing"], ["nothing", "short-"]),
        (["sweep", "status", "nothing"], ["nothing"]),
        (["data", "show", "digts"], ["digts", "digits"]),
        (["models", "show", "nothing"], ["nothing"]),
    ],
)
def test_one_sentence_says_what_was_asked_and_what_there_is(
    shell: Shell, arguments: list[str], words: list[str]
) -> None:
    if arguments[-1] == "cluster=slurm":
        # A folder in which nothing is found: this machine may have a Slurm.
        import os

        os.environ["PATH"] = str(shell.folder)
    sentence = shell.refused(*arguments)
    for word in words:
        assert word in sentence


def test_a_command_that_does_not_exist_is_named_with_its_neighbours(shell: Shell) -> None:
    done = shell.run("trian")
    assert done.returncode == 2
    assert "train" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_image_folder_with_an_unreadable_file_names_it(shell: Shell) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (shell.folder / "photos" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 200).save(shell.folder / "photos" / name / "good.png")
    bad = shell.folder / "photos" / "dog" / "torn.png"
    bad.write_bytes((shell.folder / "photos" / "dog" / "good.png").read_bytes()[:40])
    done = shell.run("prepare", "data.name=photos", "source=imagefolder", "source.path=photos")
    assert done.returncode == 2
    assert "torn.png" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (shell.root / "datasets" / "photos" / "refs").exists()


def test_a_relabel_file_with_a_label_out_of_range_names_the_line(shell: Shell) -> None:
    rows = shell.json("data", "show", "digits", "--rows", "2")
    fixes = shell.folder / "fixes.csv"
    fixes.write_text(f"uid,label\n{rows[0]['uid']},3\n{rows[1]['uid']},11\n")
    sentence = shell.refused("data", "relabel", "digits", "--from", str(fixes), "-m", "second look")
    assert "fixes.csv, line 3" in sentence
    assert "11" in sentence


def test_training_refuses_a_corrupt_dataset_and_verify_names_the_object(tmp_path: Path) -> None:
    shell = Shell(tmp_path, tmp_path)
    shell.json("prepare", "data.name=digits", "source=digits")
    largest = max((tmp_path / "datasets" / "digits" / "objects").rglob("*.h5"), key=lambda p: p.stat().st_size)
    largest.chmod(0o644)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.write_bytes(data)
    done = shell.run("data", "verify", "digits", "--deep")
    assert done.returncode == 1
    assert largest.stem[:12] in done.stdout + done.stderr
    sentence = shell.refused("train", "data.name=digits", "loop.max_steps=5")
    assert largest.stem[:12] in sentence
