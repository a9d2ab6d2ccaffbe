"""GPUs are counted the same whichever way they are asked for."""

from typing import Any

import pytest

from hpctool.errors import ConfigError
from hpctool.launch import gres
from hpctool.launch.gres import Gres

NOTHING = {"nodes": 2, "tasks_per_node": 4, "gres": None, "gpus_per_node": 0, "gpus_per_task": None, "gpus": None}


@pytest.mark.parametrize(
    ("asked", "of_a_node", "in_all"),
    [
        ({}, "", 0),
        ({"gpus_per_node": 4}, "gpu:4", 8),
        ({"gpus_per_node": "a100:4"}, "gpu:a100:4", 8),
        ({"gpus_per_node": "a100:2,h100:1"}, "gpu:a100:2 gpu:h100:1", 6),
        ({"gpus_per_node": "3090:4"}, "gpu:3090:4", 8),
        ({"gres": "gpu:4090:1,gpu:2"}, "gpu:4090:1 gpu:2", 6),
        ({"gpus_per_task": "1"}, "gpu:4", 8),
        ({"gpus": 8}, "gpu:4", 8),
        ({"gpus": 3}, "gpu:1", 3),
        ({"gres": "gpu:a100:2,nvme:1"}, "gpu:a100:2 nvme:1", 4),
        ({"gres": "gpu"}, "gpu:1", 2),
        ({"gres": "craynetwork:0,lustre:2k"}, "craynetwork:0 lustre:2048", 0),
    ],
)
def test_every_style_says_what_a_node_must_have_and_how_many_gpus_that_makes(
    asked: dict[str, Any], of_a_node: str, in_all: int
) -> None:
    resources = NOTHING | asked
    assert " ".join(map(str, gres.of_a_node(resources))) == of_a_node
    assert gres.num_gpus(resources) == in_all


def test_what_nodes_list_is_read() -> None:
    text = "gpu:a100:4(S:0-1),gpu:2(S:0,1),shard:a100:8(S:0),gpfs:no_consume:1,gpu:1g.10gb:7,gpu:3090:8(S:0-1)"
    assert [str(one) for one in gres.listed_gres(text)] == [
        "gpu:a100:4",
        "gpu:2",
        "shard:a100:8",
        "gpfs:1",
        "gpu:1g.10gb:7",
        "gpu:3090:8",
    ]
    assert gres.listed_gres("(null)") == []


def test_what_cannot_be_read_of_a_node_keeps_nobody_from_its_others() -> None:
    assert gres.listed_gres("gpu:a100:4,some:thing:new:2,7") == [Gres("gpu", "a100", 4)]


@pytest.mark.parametrize("text", ["two", "a100:", "-1", "a100:2:3", "2;rm", "1.5"])
def test_what_is_no_number_of_gpus_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"resources\.gpus'.*a100:2"):
        gres.parse_gpus(text, "resources.gpus")


@pytest.mark.parametrize("text", ["gpu:a100:two", "2", "gpu 2", "gpu:a:b:1"])
def test_what_is_no_generic_resource_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="name:count or name:type:count"):
        gres.parse_gres(text)


def test_any_type_will_do_where_none_was_asked_for() -> None:
    assert Gres("gpu", "A100", 1).is_a(Gres("gpu", "", 4))
    assert Gres("gpu", "A100", 1).is_a(Gres("gpu", "a100", 1))
    assert not Gres("gpu", "A100", 1).is_a(Gres("gpu", "h100", 1))
    assert not Gres("nvme", "", 1).is_a(Gres("gpu", "", 1))
