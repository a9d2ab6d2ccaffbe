"""Every class has one key as long as there are keys, and none of them is skip or undo."""

from __future__ import annotations

from hpctool.review.keys import class_keys


def test_digits_are_their_own_keys() -> None:
    assert class_keys([str(n) for n in range(10)]) == list("0123456789")
    assert class_keys(["5", "3", "A"]) == ["5", "3", "a"]


def test_other_names_are_counted_with_digits_and_then_letters() -> None:
    assert class_keys(["cat", "dog", "bird"]) == ["0", "1", "2"]
    many = class_keys([f"class {n}" for n in range(12)])
    assert many == [*"0123456789", "a", "b"]


def test_no_key_is_skip_or_undo_and_none_is_given_twice() -> None:
    keys = class_keys([f"class {n}" for n in range(40)])
    given = [key for key in keys if key]
    assert not {"s", "u"} & set(given)
    assert len(given) == len(set(given)) == 34
    assert keys[34:] == [""] * 6
    assert class_keys(["s", "u"]) == ["0", "1"], "names that would be keys of their own, but are taken"
    assert class_keys(["a", "A"]) == ["0", "1"]
