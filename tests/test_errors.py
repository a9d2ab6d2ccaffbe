"""Every error is one sentence, and stays what it is when it travels between processes."""

from __future__ import annotations

import inspect
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from hpctool import errors
from hpctool.errors import (
    CancelledError,
    ConfigError,
    ConflictError,
    CorruptError,
    FencedError,
    HpctoolError,
    NewerFormat,
    OperationError,
    ParityError,
    SourceError,
    Stopped,
    SubmitError,
    TargetError,
    UnknownName,
    WorldError,
    from_record,
    listing,
    nearest,
    to_record,
)

EXAMPLES: list[HpctoolError] = [
    HpctoolError("Something failed."),
    errors.InputError("--config-dir conf: there is no such folder."),
    ConfigError("optim.lr2", "there is no such key.", ["optim.lr"]),
    errors.MergeConflict("digits@main", "digits@mine", [], "they have no commit in common."),
    UnknownName("dataset", "digit", ["digits", "faces"], "They lie in datasets."),
    TargetError("model", "my.Net", "there is no module 'my'"),
    SourceError("fixes.csv", "label 11 is none of the 10 classes.", line=3),
    OperationError("The disk is full."),
    CorruptError("a.h5", "its checksum differs", "Restore it from a copy."),
    NewerFormat("run.json", "run", 2, 1),
    ConflictError("Branch main", "a1", "b2"),
    FencedError("train-12345678", 1, 2),
    CancelledError("train-12345678", "anna@login"),
    WorldError("Rank 1 lost its peers."),
    errors.DesyncError(8, {"lr": [0.1, 0.1, 0.2]}, "lr is 0.2 on rank 2", "a clock"),
    errors.HangError("Rank 2 has not got further than step 7."),
    errors.NodeError({"n3": "its clock is 400 s behind that of the others"}),
    errors.ProgramError("train.py", "ended with exit code 3", "Traceback …\nSystemExit: there is no such file."),
    SubmitError("submit.sh", "invalid account."),
    errors.SchedulerError(["squeue", "--me"], "no answer within 60 s"),
    ParityError("The exported model differs."),
    Stopped("preempted", 120),
]


def classes() -> set[type[HpctoolError]]:
    return {
        kind
        for _, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, HpctoolError) and kind.__module__ == errors.__name__
    }


def test_the_tree_in_the_docstring_names_every_class() -> None:
    assert {type(e) for e in EXAMPLES} == classes(), "add an example of the new error here"
    assert errors.__doc__ is not None
    drawn = {word for word in errors.__doc__.replace("─", " ").split() if word.isidentifier()}
    assert {kind.__name__ for kind in classes()} <= drawn


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_a_message_is_one_line_with_an_end(error: HpctoolError) -> None:
    assert "\n" not in str(error)
    assert str(error)[-1] in ".?"


def test_the_exit_code_says_whose_fault_it_was() -> None:
    for error in EXAMPLES:
        if isinstance(error, Stopped):
            assert error.exit_code == 75
        else:
            assert error.exit_code == (2 if isinstance(error, errors.InputError) else 1)


def test_unknown_names_are_answered_with_those_that_exist() -> None:
    said = str(UnknownName("dataset", "digit", ["digits", "faces"], "They lie in datasets."))
    assert said == "There is no dataset 'digit'; there is: digits, faces. Did you mean digits? They lie in datasets."
    assert str(UnknownName("dataset", "digit", ["digits"], make="Make it.")).endswith("Did you mean digits?")
    assert str(UnknownName("dataset", "faces", [], "They lie in /d.", "Make it.")).endswith("They lie in /d. Make it.")
    assert str(UnknownName("run", "x", [])) == "There is no run 'x'; there is: none."


def test_source_errors_name_the_line() -> None:
    assert str(SourceError("a.csv", "no column 'uid'.")) == "a.csv: no column 'uid'."
    assert str(SourceError("a.csv", "no number.", line=7)) == "a.csv, line 7: no number."


def test_nearest_finds_typos_and_forgotten_prefixes() -> None:
    keys = ["optim.lr", "optim.weight_decay", "loop.max_steps", "seed"]
    assert nearest("optim.lrr", keys)[0] == "optim.lr"
    assert nearest("lr", keys) == ["optim.lr"]
    assert nearest("sed", keys) == ["seed"]
    assert nearest("zzzzzz", keys) == []
    assert len(nearest("ax", [f"a{n}" for n in range(10)])) == 3
    assert nearest("optim.lrr", ["optim.lr", "optim"]) == ["optim.lr"]


def test_long_listings_are_cut() -> None:
    assert listing([]) == "none"
    assert listing(["a", "b"]) == "a, b"
    assert listing(map(str, range(11))) == "0, 1, 2, 3, 4, 5, 6, 7 and 3 more"


def same(one: BaseException, other: BaseException) -> bool:
    return type(one) is type(other) and str(one) == str(other) and vars(one) == vars(other)


def fail(number: int) -> None:
    raise EXAMPLES[number]


@pytest.mark.parametrize("error", EXAMPLES, ids=lambda e: type(e).__name__)
def test_an_error_reaches_another_rank_as_what_it_is(error: HpctoolError) -> None:
    assert same(from_record(json.loads(json.dumps(to_record(error))), rank=3), error)


def test_errors_that_are_not_ours_keep_what_matters() -> None:
    full = OSError(28, "No space left on device", "/a/b")
    told = from_record(json.loads(json.dumps(to_record(full))), rank=3)
    assert isinstance(told, OSError)
    assert (told.errno, str(told)) == (28, str(full))
    assert same(from_record(to_record(ValueError("odd")), 3), OperationError("Rank 3 failed: ValueError: odd"))
    assert same(from_record(to_record(OSError("odd")), 3), OperationError("Rank 3 failed: OSError: odd"))


def test_an_error_reaches_the_parent_of_a_worker_process() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        for number, error in enumerate(EXAMPLES):
            caught = pool.submit(fail, number).exception(timeout=30)
            assert caught is not None
            assert same(caught, error)
