"""A run is what was chosen and what it is made from, wherever and with however much it runs."""

import pytest

from hpctool.errors import ConfigError
from hpctool.launch.identity import run_identity, sweep_identity
from hpctool.launch.job import Input

CONFIG = {"name": "a", "optim": {"lr": 0.1}, "resources": {"nodes": 1}, "cluster": {"kind": "inline"}, "code": "reuse"}
DATA = Input("dataset", "digits@main", "c" * 64)


def test_where_and_how_much_do_not_change_who_a_run_is() -> None:
    moved = CONFIG | {"resources": {"nodes": 4}, "cluster": {"kind": "slurm"}, "code": "rerun"}
    assert run_identity("train", CONFIG, [DATA]) == run_identity("train", moved, [DATA])


def test_every_choice_the_job_and_the_inputs_count() -> None:
    other = CONFIG | {"optim": {"lr": 0.2}}
    newer = Input("dataset", "digits@main", "d" * 64)
    identities = {
        run_identity("train", CONFIG, [DATA]),
        run_identity("train", other, [DATA]),
        run_identity("evaluate", CONFIG, [DATA]),
        run_identity("train", CONFIG, [newer]),
        run_identity("train", CONFIG, []),
    }
    assert len(identities) == 5


def test_a_branch_that_points_at_the_same_commit_is_the_same_input() -> None:
    assert run_identity("train", CONFIG, [DATA]) == run_identity(
        "train", CONFIG, [Input("dataset", "digits@v1", DATA.id)]
    )


def test_what_a_sweep_varies_counts_even_if_it_is_resources() -> None:
    four = CONFIG | {"resources": {"nodes": 4}}
    varied = ["resources.nodes"]
    assert run_identity("train", CONFIG, [], varied) != run_identity("train", four, [], varied)


def test_the_order_of_keys_does_not_count_but_the_order_of_cells_does() -> None:
    turned = dict(reversed(CONFIG.items()))
    assert run_identity("train", CONFIG, []) == run_identity("train", turned, [])
    assert sweep_identity(["a", "b"]) != sweep_identity(["b", "a"])


def test_what_json_cannot_say_is_refused() -> None:
    with pytest.raises(ConfigError):
        run_identity("train", CONFIG | {"optim": {"lr": float("nan")}}, [])
