"""Tables on a narrow terminal: text wraps, and what somebody copies stays in one piece."""

from __future__ import annotations

import pytest

from hpctool.cli.output import print_table
from hpctool.cli.tables import Column, print_columns

UID = "0d9da0155f2b34f8833c1482703cc6b4"
WHY = "the scanner had a stripe of dust on its glass, and the seven was taken for a one by two of three people"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "dumb", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)


def test_text_wraps_between_words_and_ids_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(["uid", "run", "label now", "why", "rows"], [[UID, "prepare-35091bea", "seven", WHY, 1797]])
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    words = " ".join(lines).split()
    assert {UID, "prepare-35091bea", "1797", *WHY.split()} <= set(words)


def test_where_even_words_do_not_fit_lines_get_longer_and_nothing_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")  # rich takes a dumb terminal for 80 wide, whatever it is told
    print_table(["a", "b", "c"], [[UID, UID[::-1], "production-of-the-second-scanner"]])
    text = capsys.readouterr().out
    assert all(word in text for word in (UID, UID[::-1], "production-of-the-second-scanner"))


def test_a_path_that_is_longer_than_a_uid_does_not_hold_the_table_open(capsys: pytest.CaptureFixture[str]) -> None:
    print_columns([Column("uid", [UID]), Column("what", ["bit 3 of checkpoints/" + 40 * "x"], wraps=True)])
    assert all(len(line) <= 80 for line in capsys.readouterr().out.splitlines())
