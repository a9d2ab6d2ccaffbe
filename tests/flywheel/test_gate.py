"""The gate opens for a model that keeps what was good, and only then."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy import stats

from hpctool import files
from hpctool.errors import InputError
from hpctool.flywheel.gate import Predictions, compare, holm, judge, pair
from hpctool.flywheel.loop import resolve_gate
from hpctool.rundir import create_run


def right(count: int, wrong: list[int]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    answers = np.ones(count, bool)
    answers[wrong] = False
    return answers


def test_the_p_values_are_those_of_the_exact_binomial_test() -> None:
    one = compare("test", right(100, [0, 1, 2]), right(100, list(range(10, 22))))
    assert (one.only_old, one.only_new) == (12, 3)
    assert one.p_worse == pytest.approx(stats.binomtest(12, 15, 0.5, alternative="greater").pvalue)
    assert one.p_better == pytest.approx(stats.binomtest(3, 15, 0.5, alternative="greater").pvalue)
    assert one.gain == pytest.approx(-0.09)


def test_equal_models_pass_and_no_difference_is_no_gain() -> None:
    same = compare("test", right(50, [3]), right(50, [3]))
    assert (same.p_worse, same.p_better) == (1.0, 1.0)
    assert judge([same], [], [], 0.05).passed
    shut = judge([same], [], [same], 0.05)
    assert not shut.passed
    assert "did not get better" in shut.reasons[0]


def test_a_loss_beyond_chance_shuts_the_gate_and_one_within_does_not() -> None:
    slightly = compare("test", right(200, []), right(200, [1, 2]))
    clearly = compare("test", right(200, []), right(200, list(range(8))))
    assert judge([slightly], [], [], 0.05).passed
    verdict = judge([clearly], [], [], 0.05)
    assert not verdict.passed
    assert "1.0000 → 0.9600 on 200 rows" in verdict.reasons[0]


def test_one_lost_class_shuts_the_gate_though_the_whole_got_better() -> None:
    overall = compare("test", right(1000, list(range(100))), right(1000, list(range(900, 930))))
    lost = compare("class 7", right(100, []), right(100, list(range(30))))
    others = [compare(f"class {k}", right(100, [k]), right(100, [k])) for k in range(9)]
    verdict = judge([overall], [*others, lost], [], 0.05)
    assert not verdict.passed
    assert "class 7" in " ".join(verdict.reasons)


def test_many_classes_are_corrected_together() -> None:
    # Five rows lost in one of 100 classes, p = 0.031, is what chance does now and then.
    classes = [compare(f"class {k}", right(50, []), right(50, [])) for k in range(99)]
    classes.append(compare("class 99", right(50, []), right(50, list(range(5)))))
    assert classes[-1].p_worse < 0.05
    assert judge([], classes, [], 0.05).passed


def test_holm_steps_down_and_never_falls() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == []
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_rows_are_paired_by_uid_and_other_rows_are_refused(tmp_path: Path) -> None:
    labels = np.array([0, 1, 2], np.int64)
    np.savez(tmp_path / "old.npz", uid=["a", "b", "c"], label=labels, predicted=np.array([0, 1, 0]))
    np.savez(tmp_path / "new.npz", uid=["c", "a", "b"], label=labels[[2, 0, 1]], predicted=np.array([2, 0, 0]))
    old, new = Predictions.read(tmp_path / "old.npz", "c1"), Predictions.read(tmp_path / "new.npz", "c1")
    old_right, new_right, paired_labels = pair(old, new)
    assert old_right.tolist() == [True, True, False]
    assert new_right.tolist() == [True, False, True]
    assert paired_labels.tolist() == [0, 1, 2]
    np.savez(tmp_path / "other.npz", uid=["a", "b", "d"], label=labels, predicted=labels)
    with pytest.raises(InputError, match="different rows"):
        pair(old, Predictions.read(tmp_path / "other.npz", "c1"))
    with pytest.raises(InputError, match="no predictions"):
        Predictions.read(tmp_path / "nothing.npz", "c1")


def test_rows_that_were_relabelled_between_two_evaluations_are_refused_with_both_commits() -> None:
    uids, answers = [str(n) for n in range(100)], np.zeros(100, np.int64)
    relabelled = answers.copy()
    relabelled[:20] = 1
    # The same answers: without the refusal the model would be 20 rows better than itself.
    old, new = Predictions(uids, relabelled, answers, "a" * 64), Predictions(uids, answers, answers, "b" * 64)
    with pytest.raises(InputError, match=r"commits a{12} and b{12}, in which 20 of 100 labels differ: evaluate both"):
        pair(old, new)


def test_rows_without_a_label_are_no_mistakes_and_alone_no_reason_to_open() -> None:
    uids = ["a", "b", "c"]
    labels, none = np.array([1, -1, 0], np.int64), np.full(3, -1, np.int64)
    old_right, new_right, paired_labels = pair(
        Predictions(uids, labels, np.array([1, 0, 0]), "c1"), Predictions(uids, labels, np.array([1, 1, 1]), "c1")
    )
    assert (old_right.tolist(), new_right.tolist()) == ([True, True], [True, False])
    assert paired_labels.tolist() == [1, 0]
    blank = Predictions(uids, none, none, "c1")
    with pytest.raises(InputError, match="None of the 3 rows"):
        pair(blank, blank)


def test_evaluations_that_do_not_pair_are_refused_before_the_gate_begins(tmp_path: Path) -> None:
    answers = np.zeros(10, np.int64)
    gate: dict[str, Any] = {"improve_old": None, "improve_new": None, "alpha": 0.05}
    for key, labels in (("keep_old", answers), ("keep_new", 1 - answers)):
        run = create_run(tmp_path, {"job": "evaluate", "name": key, "identity": "ab" * 32}, {})
        files.write_json(run.result_json, {"state": "completed", "data_commit": f"{key}-of-a-version"})
        run.artifact("predictions.npz").parent.mkdir(exist_ok=True)
        np.savez(run.artifact("predictions.npz"), uid=list("abcdefghij"), label=labels, predicted=answers)
        gate[key] = run.id
    with pytest.raises(InputError, match="keep_old-of- and keep_new-of-, in which 10 of 10 labels differ"):
        resolve_gate(OmegaConf.create({"paths": {"runs": str(tmp_path)}, "gate": gate}))
