"""A cell that was planned the quick way is what it would have been alone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from omegaconf import DictConfig

from hpctool import config
from hpctool.errors import InputError
from hpctool.launch import grid, limits
from hpctool.launch.job import Resolved, load_job
from hpctool.launch.plan import EARLY, Request, checked_stages, make_plan
from hpctool.launch.template import NotHere, Template
from tests.launch.data import make_datasets


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    make_datasets(root)
    return root


def check_against_alone(overrides: list[str]) -> None:
    """Every cell of a sweep through its template, without the ordinary way as a way out. Raises what planning does."""
    job = load_job("train")
    cells = list(grid.expand("train", overrides).cells())
    alone = [make_plan(Request("train", cell.overrides), multirun=False).cells[0] for cell in cells]
    templates: dict[int, Template] = {}
    for cell, expected in zip(cells, alone, strict=True):
        key = id(cell.combination)
        if key not in templates:
            templates[key] = Template(cell.combination, job.Config, checked_stages(job))
        plain, answer = templates[key].plan(cell)
        # repr tells 1 from 1.0 and True, and the order of keys.
        assert repr(plain) == repr(expected.plain), cell.overrides
        assert answer == Resolved(expected.inputs, expected.notes)
        assert cell.combination.composed.choices == expected.choices


SWEEPS = [
    ["+task.label_smoothing=0.1,0.2", "++optim.lr=1,2", "~optim.weight_decay"],
    ["augment=null,'{_target_: hpctool.train.augment.RandomShift, pixels: 1}'", "seed=1,2"],
]
LONGER_SWEEPS = [
    ["seed=1,2", "seed=3,4"],
    ["optim.lr=1e-3,1e-2", "optim.weight_decay=${optim.lr}", "name=run-${seed}", "seed=3,4"],
    ["model=mlp,cnn", "optim.lr=1e-3,0.01,1", "seed=range(0,2)"],
    ["name=a,b", "resources.nodes=1,2", "loop.global_batch_size=32,64"],
    ["model.hidden_sizes=[64],[128,128],[]", "loop.grad_clip=null,1,2.5", "cluster.setup=['module load a'],[]"],
    ["+cluster.extra.begin=now,'b, c'", "resources.time=60,'2:00:00'", "resources.mem_gb=1,2.5,null"],
    ["data.name=stripes,bars,stripes@main", "data.train_split=train,val", "seed=1,2"],
    ["loop.max_steps=null,5,7", "seed=1,2"],
    ["+optim.betas=[0.9,0.99],[0.8,0.9]", "+optim.note=null,true,1,1.0,'1',abc"],
    ["experiment=digits_mlp,digits_cnn", "optim=sgd,adamw", "optim.lr=1,2"],
]


@pytest.mark.parametrize(
    "overrides",
    [*SWEEPS, *(pytest.param(overrides, marks=pytest.mark.slow) for overrides in LONGER_SWEEPS)],
    ids=" ".join,
)
def test_a_cell_of_a_sweep_is_what_it_would_have_been_alone(root: Path, overrides: list[str]) -> None:
    data = [] if overrides[0].startswith("data.name") else ["data.name=stripes"]
    check_against_alone([f"paths.root={root}", *data, *overrides])


@pytest.mark.slow
@pytest.mark.parametrize("overrides", SWEEPS, ids=" ".join)
def test_what_is_resolved_later_stays_as_it_is_written(root: Path, overrides: list[str]) -> None:
    data = [] if overrides[0].startswith("data.name") else ["data.name=stripes"]
    job = load_job("train")
    templates: dict[int, Template] = {}
    for cell in grid.expand("train", [f"paths.root={root}", *data, *overrides]).cells():
        combination = cell.combination
        if id(combination) not in templates:
            templates[id(combination)] = Template(combination, job.Config, [limits.check], resolved=EARLY)
        alone = config.typed(config.compose("train", cell.overrides).cfg, job.Config)
        plain, _ = templates[id(combination)].plan(cell)
        assert repr(plain) == repr(config.to_plain(alone, EARLY))
        assert plain["paths"]["runs"] == f"{root}/runs"
        assert plain["model"]["num_classes"] == "${data.num_classes}"


AXES = [
    *("model=mlp,cnn", "model=transformer", "optim=adamw,sgd", "debug=quick", "experiment=digits_mlp,digits_cnn"),
    *("optim.lr=1e-3,1e-2", "optim.weight_decay=${optim.lr}", "++optim.weight_decay=0,1", "~optim.weight_decay"),
    *("seed=range(0,2)", "seed=3", "name=a,b", "name=run-${seed}-${model.num_classes}", "name=run-${optim.lr}"),
    *(
        "model.dropout=0,0.5",
        "+model.name=${name},x",
        "++model.hidden_sizes=[8],[16,16]",
        "+model.sizes=[${seed},1],[2]",
    ),
    *("loop.max_steps=5,6", "loop.max_epochs=2", "loop.global_batch_size=32,64", "loop.accumulate=1,2"),
    *("loop.ema=null,0.9", "loop.grad_clip=${optim.lr}", "track.every_steps=1,2", "track=off,tensorboard"),
    *("resources.nodes=1,2", "resources.cpus_per_task=${resources.nodes}", "resources.mem_gb=1,null"),
    *("augment=null,'{_target_: hpctool.train.augment.RandomShift, pixels: 1}'", "+augment.pixels=${seed}"),
    *("data.train_split=train,val", "data.name=bars,stripes", "data.window=0,${seed}", "schedule.kind=cosine,constant"),
    *("cluster.setup=['a b'],[]", "+cluster.extra.begin=a,b", "cluster=slurm,local", "cluster.max_parallel=1,2"),
]


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(12))
def test_any_overrides_give_the_same_quickly_and_alone(root: Path, trial: int) -> None:
    chosen = random.Random(trial)
    while True:
        overrides = [f"paths.root={root}", "data.name=stripes", *chosen.sample(AXES, chosen.randint(2, 5))]
        try:
            if len(list(grid.expand("train", overrides).cells())) <= 12:
                check_against_alone(overrides)
                return
        except InputError:
            continue  # not everything goes together


@pytest.mark.slow
def test_a_stage_runs_once_for_all_values_of_keys_that_it_does_not_look_at(root: Path) -> None:
    ran = []

    def looks_at_the_name(cfg: DictConfig) -> Resolved:
        ran.append(cfg.name)
        return Resolved(notes=[cfg.name])

    told = ["data.name=stripes", "name=run-${seed}", "seed=1,2,3", "optim.lr=1,2", f"paths.root={root}"]
    cells = list(grid.expand("train", told).cells())
    template = Template(cells[0].combination, load_job("train").Config, [looks_at_the_name])
    notes = [template.plan(cell)[1].notes for cell in cells]
    assert ran == ["run-1", "run-2", "run-3"]
    assert notes == [["run-1"], ["run-1"], ["run-2"], ["run-2"], ["run-3"], ["run-3"]]


@pytest.mark.slow
def test_what_takes_the_place_of_a_group_of_keys_is_planned_in_the_ordinary_way() -> None:
    cell = next(grid.expand("train", ["data.name=x", "loop=1,2"]).cells())
    with pytest.raises((NotHere, InputError)):
        Template(cell.combination, load_job("train").Config, []).plan(cell)
