"""Aliases: every move is on record, the way back is known, and what fails its test is not promoted."""

from __future__ import annotations

import itertools
import json
import warnings
from pathlib import Path

import pytest

from hpctool.errors import ConflictError, CorruptError, InputError, ParityError, UnknownName
from hpctool.export import aliases
from hpctool.export.bundle import Bundle
from tests.conftest import Spawn
from tests.export.conftest import Make


def passes(path: Path) -> None:
    """The golden test of these small bundles."""


@pytest.fixture
def models(make_bundle: Make, tmp_path: Path) -> Path:
    """Versions 0001, 0002 and 0003 of digits."""
    for text in ("one", "two", "three"):
        make_bundle(text)
    return tmp_path / "models"


def promote(models: Path, number: str, alias: str = "production") -> aliases.Move:
    return aliases.promote(models, aliases.resolve(models, f"digits@{number}"), alias, passes, f"to {number}")


def at(models: Path, alias: str = "production") -> str:
    return aliases.resolve(models, f"digits@{alias}").version


def test_a_name_alone_is_the_newest_version(models: Path) -> None:
    assert aliases.resolve(models, "digits").version == "0003"
    assert aliases.resolve(models, "digits@2").version == "0002"


def test_every_move_is_on_record(models: Path) -> None:
    promote(models, "0001")
    promote(models, "0003")
    aliases.rollback(models, "digits", "production", passes, "too slow")
    found = [(m.number, m.operation, m.version, m.message) for m in aliases.history(models, "digits", "production")]
    assert found == [
        (1, "promote", "0001", "to 0001"),
        (2, "promote", "0003", "to 0003"),
        (3, "rollback", "0001", "too slow"),
    ]
    assert at(models) == "0001"
    assert aliases.of_version(models, "digits") == {"0001": ["production"]}


def test_rolling_back_twice_goes_two_promotions_back(models: Path) -> None:
    for number in ("0001", "0002", "0003"):
        promote(models, number)
    for expected in ("0002", "0001"):
        aliases.rollback(models, "digits", "production", passes)
        assert at(models) == expected
    with pytest.raises(InputError, match="pointed at nothing else before"):
        aliases.rollback(models, "digits", "production", passes)


def test_after_a_rollback_a_promotion_can_be_rolled_back_again(models: Path) -> None:
    for number in ("0001", "0002"):
        promote(models, number)
    aliases.rollback(models, "digits", "production", passes)
    promote(models, "0003")
    aliases.rollback(models, "digits", "production", passes)
    assert at(models) == "0001"


def test_promoting_what_is_there_already_adds_nothing(models: Path) -> None:
    first = promote(models, "0001")
    assert promote(models, "0001") == first
    assert len(aliases.history(models, "digits", "production")) == 1


def test_what_fails_its_test_is_not_promoted_and_the_alias_stays(models: Path) -> None:
    def fails(path: Path) -> None:
        raise ParityError("golden test")

    promote(models, "0001")
    with pytest.raises(ParityError):
        aliases.promote(models, aliases.resolve(models, "digits@0002"), "production", fails)
    promote(models, "0003")
    with pytest.raises(ParityError):
        aliases.rollback(models, "digits", "production", fails)
    assert at(models) == "0003"
    assert len(aliases.history(models, "digits", "production")) == 2


def test_a_rollback_that_somebody_overtook_says_so(models: Path) -> None:
    def overtaken(path: Path) -> None:
        promote(models, "0003")

    for number in ("0001", "0002"):
        promote(models, number)
    with pytest.raises(ConflictError, match="ours is back to 0001, theirs is to 0003"):
        aliases.rollback(models, "digits", "production", overtaken)
    assert at(models) == "0003"


@pytest.mark.slow
def test_promoters_at_once_are_all_on_record(models: Path, spawn: Spawn) -> None:
    code = """
import sys
from pathlib import Path
from hpctool.export import aliases
models = Path(sys.argv[1])
for turn in range(10):
    for number in ("0001", "0002"):
        bundle = aliases.resolve(models, f"digits@{number}")
        aliases.promote(models, bundle, "production", lambda path: None, f"{sys.argv[2]}-{turn}-{number}")
"""
    started = [spawn(code, models, name) for name in ("ada", "bob")]
    for process in started:
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    moves = aliases.history(models, "digits", "production")
    assert [m.number for m in moves] == list(range(1, len(moves) + 1))
    assert {m.message.partition("-")[0] for m in moves} == {"ada", "bob"}
    assert all(one.version != two.version for one, two in itertools.pairwise(moves))


def test_an_alias_of_a_version_that_was_replaced_is_refused(models: Path, make_bundle: Make) -> None:
    promote(models, "0001")
    path = models / "digits" / "0001"
    other = make_bundle("four").bundle.path
    path.rename(models / "gone")
    other.rename(path)
    with pytest.raises(CorruptError, match="not what was promoted by"):
        at(models)


def test_names_that_are_not_there_are_answered_with_those_that_are(models: Path) -> None:
    promote(models, "0001")
    with pytest.raises(
        UnknownName, match=r"called 'prodution'; there is: production, 0001, 0002, 0003. Did you mean prod"
    ):
        aliases.resolve(models, "digits@prodution")
    with pytest.raises(UnknownName, match="no alias of model 'digits' called 'staging'; there is: production"):
        aliases.rollback(models, "digits", "staging", passes)
    with pytest.raises(UnknownName, match="no model 'faces'"):
        aliases.rollback(models, "faces", "production", passes)
    with pytest.raises(UnknownName, match="no model 'faces'"):
        aliases.resolve(models, "faces@production")


@pytest.mark.parametrize("alias", ["", "0001", "a/b", "../x", ".x"])
def test_a_name_that_cannot_be_an_alias_is_refused(models: Path, alias: str) -> None:
    with pytest.raises(InputError, match="cannot be an alias"):
        promote(models, "0001", alias)


def test_a_digit_that_is_no_number_is_a_name_that_is_not_there(models: Path) -> None:
    with pytest.raises(UnknownName, match="version or alias of model 'digits' called"):
        aliases.resolve(models, "digits@²")


def test_a_broken_entry_does_not_hide_the_others(models: Path) -> None:
    promote(models, "0001")
    promote(models, "0002")
    (models / "digits/aliases/production/0000000002").write_text("garbage")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert at(models) == "0001"
        assert promote(models, "0003").number == 3
        assert at(models) == "0003"


def test_an_entry_is_plain_json(models: Path) -> None:
    promote(models, "0002")
    body = json.loads((models / "digits/aliases/production/0000000001").read_text().splitlines()[0])
    content = Bundle(models / "digits/0002").manifest()["content"]
    assert (body["operation"], body["version"], body["content"]) == ("promote", "0002", content)
