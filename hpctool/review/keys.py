"""Which key gives which label on the page: one stroke each, as long as there are keys."""

from __future__ import annotations

_SKIP_AND_UNDO = "su"
_DIGITS = "0123456789"
_LETTERS = "".join(letter for letter in "abcdefghijklmnopqrstuvwxyz" if letter not in _SKIP_AND_UNDO)


def class_keys(classes: list[str]) -> list[str]:
    """A key for each class, empty for those that come after the last key: they have a button only.

    Classes that are called like keys keep them (the digits 0 to 9); others are counted 0 to 9, then a, b, c …
    """
    names = [name.lower() for name in classes]
    if len(set(names)) == len(names) and all(len(name) == 1 and name in _DIGITS + _LETTERS for name in names):
        return names
    keys = [*_DIGITS, *_LETTERS][: len(classes)]
    return keys + [""] * (len(classes) - len(keys))
