"""Names are names: they cannot leave the folder, and a revision cannot be taken for another."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpctool.data.layout import Layout, check_name, split_ref
from hpctool.errors import CorruptError, InputError


@pytest.mark.parametrize(
    ("ref", "parts"),
    [("digits", ("digits", "main")), ("digits@v1", ("digits", "v1")), ("a-b.c_d@1a2b3c", ("a-b.c_d", "1a2b3c"))],
)
def test_a_reference_is_a_name_and_a_revision(ref: str, parts: tuple[str, str]) -> None:
    assert split_ref(ref) == parts


@pytest.mark.parametrize("ref", ["", "@v1", "digits@", "../etc", "a/b", ".hidden", "a b", "x" * 101])
def test_what_is_no_name_is_refused(ref: str) -> None:
    with pytest.raises(InputError):
        split_ref(ref)


@pytest.mark.parametrize("kind", ["branch", "tag"])
def test_a_branch_or_tag_cannot_look_like_a_commit(kind: str) -> None:
    with pytest.raises(InputError, match="looks like the beginning of a commit"):
        check_name(kind, "deadbeef")
    assert check_name("dataset", "deadbeef") == "deadbeef"


@pytest.mark.parametrize("object_id", ["../../etc/passwd", "ab", "A" * 64, "g" * 64])
def test_an_id_cannot_lead_out_of_the_folder(object_id: str) -> None:
    with pytest.raises(CorruptError, match="not a SHA-256"):
        Layout(Path("/data")).object(object_id)
