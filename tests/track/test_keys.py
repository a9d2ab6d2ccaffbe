"""What tells one run from another."""

from __future__ import annotations

from hpctool.track.keys import changed_values, scalar, typed_values


def test_words_are_read_as_the_values_they_stand_for() -> None:
    assert [scalar(text) for text in ("3", "1e-3", "true", "null", "cnn", "'two words'")] == [
        3,
        0.001,
        True,
        None,
        "cnn",
        "two words",
    ]


def test_the_last_override_of_a_key_counts() -> None:
    assert typed_values(["optim.lr=1", "+note=a=b", "~loop.clip", "optim.lr=2"]) == {
        "optim.lr": 2,
        "note": "a=b",
        "loop.clip": "",
    }


def test_varied_keys_stand_first_and_the_machine_is_left_out() -> None:
    record = {
        "overrides": ["cluster=slurm", "resources.nodes=2", "model=cnn", "optim.lr=1e-3", "paths.runs=/x"],
        "varied": ["optim.lr"],
        "choices": {"model": "cnn", "cluster": "slurm"},
    }
    assert list(changed_values(record, {"optim.lr": 0.001}).items()) == [("optim.lr", 0.001), ("model", "cnn")]


def test_a_key_of_the_machine_counts_if_a_sweep_varies_it() -> None:
    record = {"overrides": ["resources.nodes=2"], "varied": ["resources.nodes"]}
    assert changed_values(record, {"resources.nodes": 2}) == {"resources.nodes": 2}
