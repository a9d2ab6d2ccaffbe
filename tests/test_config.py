"""Configuration composes, has types, and every wrong input is one sentence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import MISSING, OmegaConf

from hpctool import config
from hpctool.errors import ConfigError, InputError, TargetError, UnknownName
from hpctool.launch.schema import JobConfig


@dataclass
class Mine(JobConfig):
    """The schema of a job that only this test knows."""

    lr: float = MISSING
    deep: bool = MISSING
    label: str | None = MISSING


@pytest.fixture
def conf(tmp_path: Path) -> Path:
    """A user's folder with a primary config of its own, over hpctool's groups."""
    folder = tmp_path / "conf"
    write(
        folder / "mine.yaml",
        "defaults: [cluster: inline, resources: cpu, paths: here, _self_]\n"
        "name: mine\nseed: 0\ncode: reuse\nnum_threads: 1\nlr: 0.1\ndeep: false\nlabel: null\n",
    )
    write(folder / "tt_net" / "small.yaml", "_target_: tt.Small\nwidth: 8\n")
    write(folder / "tt_net" / "large.yaml", "_target_: tt.Large\nheight: 9\n")
    return folder


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def compose(conf: Path, *overrides: str) -> config.Composed:
    return config.compose("mine", overrides, [conf])


def test_a_config_is_composed_from_ours_and_the_users_files(conf: Path) -> None:
    composed = compose(conf, "cluster=local", "+tt_net=large", "lr=1")
    assert composed.choices == {"cluster": "local", "resources": "cpu", "paths": "here", "tt_net": "large"}
    assert composed.overrides == ["cluster=local", "+tt_net=large", "lr=1"]
    assert composed.cfg.cluster.kind == "local"
    assert composed.cfg.tt_net.height == 9
    assert "hydra" not in composed.cfg


@pytest.mark.slow
def test_types_convert_what_loses_nothing_and_values_survive_a_file(conf: Path, tmp_path: Path) -> None:
    cfg = config.resolved(config.typed(compose(conf, "lr=1", "deep=yes", "label=7").cfg, Mine))
    assert (cfg.lr, cfg.deep, cfg.label) == (1.0, True, "7")
    assert isinstance(cfg.lr, float)
    read = config.load(write(tmp_path / "config.yaml", config.to_yaml(cfg)))
    assert config.to_plain(read) == config.to_plain(cfg)
    assert config.to_plain(read)["paths"]["runs"] == "./runs"
    assert "$" not in config.to_yaml(cfg)


@pytest.mark.slow
def test_the_root_of_all_paths_can_be_moved(conf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HPCTOOL_ROOT", "/scratch/ada")
    assert config.resolved(config.typed(compose(conf).cfg, Mine)).paths.datasets == "/scratch/ada/datasets"


def said(ask: Callable[[], object]) -> str:
    with pytest.raises(InputError) as caught:
        ask()
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("lrr=1", "Config 'lrr': there is no such key. Did you mean lr?"),
        ("cluster.partiton=gpu", "Config 'cluster.partiton': there is no such key. Did you mean cluster.partition?"),
        ("+cluster.partiton=x", "Config 'cluster.partiton': there is no such key. Did you mean cluster.partition?"),
        ("partition=gpu", "Config 'partition': there is no such key. Did you mean cluster.partition?"),
        ("zzzzzz=1", "Config 'zzzzzz': there is no such key."),
        ("~resources.tim", "Config 'resources.tim': there is no such key. Did you mean resources.time or resources?"),
        ("clustre=local", "Config 'clustre': there is no such key. Did you mean cluster?"),
        ("model=mlp", "Config 'model': mine does not use this config group."),
        (
            "hydra/launcher=slurm",
            "There is no choice of the config group 'hydra/launcher' called 'slurm'; there is: basic.",
        ),
        (
            "cluster=slrum",
            "There is no choice of the config group 'cluster' called 'slrum'; there is: inline, local, slurm. "
            "Did you mean slurm?",
        ),
        (
            "+tt_net=smal",
            "There is no choice of the config group 'tt_net' called 'smal'; there is: large, small. "
            "Did you mean small?",
        ),
        ("cluster=3", "Config 'cluster': it takes one of inline, local, slurm, and got '3'."),
        ("seed=many", "Config 'seed': it takes a whole number, and got 'many'."),
        ("seed=1.5", "Config 'seed': it takes a whole number, and got 1.5."),
        ("seed=", "Config 'seed': it takes a whole number, and got ''."),
        ("seed=null", "Config 'seed': it takes a whole number, and got null."),
        ("lr=[1]", "Config 'lr': it takes a number, and got [1]."),
        ("deep=perhaps", "Config 'deep': it takes true or false, and got 'perhaps'."),
        ("name=null", "Config 'name': it takes a text, and got null."),
        ("label={a: 1}", "Config 'label': it takes a text or null, and got {'a': 1}."),
        ("resources.mem_gb=lots", "Config 'resources.mem_gb': it takes a number or null, and got 'lots'."),
        ("cluster.setup=module", "Config 'cluster.setup': it takes a list, and got 'module'."),
        ("cluster.extra=[a]", "Config 'cluster.extra': '[a]' does not fit (Cannot merge DictConfig with ListConfig)."),
        ("name=???", "Config 'name': it has no value. Give it one: name=…"),
        ("~lr", "Config 'lr': it has no value. Give it one: lr=…"),
        ("name=${nosuch}", "Config 'name': it refers to ${nosuch}, and there is no such key."),
        (
            "paths=scratch",
            "Config 'paths.datasets': it needs the environment variable SCRATCH, which is not set. export SCRATCH=…",
        ),
        ("+seed=3", "Config 'seed': it has a value already, so '+' cannot add it. Leave out the '+'."),
        ("+cluster=local", "Config 'cluster': it has a value already, so '+' cannot add it. Leave out the '+'."),
        (
            "cluster.extra={deadline: now}",
            "Config 'cluster.extra': it takes keys of your own, which are added with a plus: "
            "'+cluster.extra={name: value}'.",
        ),
        ("seed=1,2", "Config 'seed': it has several values. Add -m for a sweep over them, or quote them."),
        ("seed", "Config 'seed': it has no '='. What a job takes is written key=value."),
        ("--verbose", "Config '--verbose': there is no such option. What a job takes is written key=value."),
        (
            "seed=[1",
            "Config 'seed=[1': it cannot be read (no viable alternative at input '[1'). Lists are [a,b]; a text with "
            "commas, spaces or brackets needs quotes inside those of the shell: 'key=\"a, b\"'.",
        ),
    ],
)
def test_every_wrong_override_is_one_sentence(
    conf: Path, override: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SCRATCH", raising=False)
    assert said(lambda: config.resolved(config.typed(compose(conf, override).cfg, Mine))) == sentence


@pytest.mark.slow
def test_a_typo_is_compared_with_the_keys_of_what_else_was_chosen(conf: Path) -> None:
    sentence = said(lambda: compose(conf, "+tt_net=large", "tt_net.heihgt=3"))
    assert sentence == "Config 'tt_net.heihgt': there is no such key. Did you mean tt_net.height?"


@pytest.mark.slow
def test_two_wrong_overrides_are_answered_one_at_a_time(conf: Path) -> None:
    assert "Config 'lrr'" in said(lambda: compose(conf, "lrr=1", "sed=1"))


def test_an_unknown_primary_is_answered_with_those_that_exist(conf: Path) -> None:
    sentence = said(lambda: config.compose("train", [], [conf], primary="mien"))
    assert sentence.startswith("There is no primary config 'mien'; there is: ")
    assert sentence.endswith("Your own need --config-dir.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a: [1\n", "bad.yaml, line 2: this is not YAML (expected ',' or ']', but got '<stream end>')."),
        ("a: 1\nb: 2\na: 3\n", "bad.yaml, line 3: this is not YAML (found duplicate key a)."),
        ("a:\n\t- 1\n", "bad.yaml, line 2: this is not YAML (found character '\\t' that cannot start any token)."),
    ],
)
def test_a_users_file_that_is_not_yaml_is_named_with_its_line(conf: Path, text: str, sentence: str) -> None:
    write(conf / "tt_net" / "bad.yaml", text)
    assert said(lambda: compose(conf, "+tt_net=bad")) == f"{conf}/tt_net/{sentence}"


@pytest.mark.slow
def test_a_users_file_that_asks_for_what_is_not_there_says_what(conf: Path) -> None:
    write(conf / "tt_net" / "bad.yaml", "defaults: [/tt_net: smal]\n")
    assert "called 'smal'; there is: " in said(lambda: compose(conf, "+tt_net=bad"))


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert said(lambda: config.compose("train", [], [tmp_path / "cnof"])) == (
        f"--config-dir {tmp_path}/cnof: there is no such folder. It should hold model/mine.yaml and so on."
    )


@pytest.mark.parametrize("name", ["train.yaml", "cluster/slurm.yaml", "cluster/_base.yaml"])
def test_a_users_file_that_would_never_be_read_is_refused(conf: Path, name: str) -> None:
    path = write(conf / name, "a: 1\n")
    sentence = said(lambda: compose(conf))
    assert sentence.startswith(f"{path} has the name of one of hpctool's own files and would not be read. Rename it")


@pytest.mark.slow
def test_a_primary_of_ones_own_stands_on_ours(conf: Path) -> None:
    write(
        conf / "mytrain.yaml",
        "defaults: [train, override model: tiny, _self_]\n"
        "hydra: {searchpath: ['pkg://hpctool.conf']}\nname: mytrain\noptim: {lr: 0.5}\n",
    )
    write(conf / "model" / "tiny.yaml", "_target_: tt.Tiny\nwidth: 3\n")
    composed = config.compose("train", ["seed=4"], [conf], primary="mytrain")
    assert (composed.cfg.name, composed.cfg.optim.lr, composed.cfg.seed) == ("mytrain", 0.5, 4)
    assert composed.cfg.model == {"_target_": "tt.Tiny", "width": 3}
    assert composed.choices["model"] == "tiny"


# -- installed packages that bring configuration


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Install a package with the entry point `hpctool.conf` and an __init__ of this text; gives its conf folder."""
    site = tmp_path / "site"
    monkeypatch.syspath_prepend(site)

    def go(name: str, source: str) -> Path:
        write(site / name / "__init__.py", "")
        write(site / name / "conf" / "__init__.py", source)
        write(site / f"{name}-1.0.dist-info" / "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        write(site / f"{name}-1.0.dist-info" / "entry_points.txt", f"[hpctool.conf]\n{name} = {name}.conf\n")
        return site / name / "conf"

    return go


@pytest.mark.slow
def test_an_installed_package_brings_its_choices(install: Callable[[str, str], Path]) -> None:
    write(install("tt_ext", "") / "model" / "theirs.yaml", "_target_: tt_ext.Net\n")
    assert config.compose("train", ["model=theirs"]).cfg.model["_target_"] == "tt_ext.Net"


@pytest.mark.parametrize("source", ["raise RuntimeError('half installed')", "import nothing_like_this", "def ("])
def test_a_broken_package_is_an_error_at_once(install: Callable[[str, str], Path], source: str) -> None:
    install("tt_broken_ext", source)
    sentence = said(lambda: config.compose("train"))
    assert sentence.startswith(
        "The installed package 'tt_broken_ext' offers configuration in 'tt_broken_ext.conf', which cannot be imported ("
    )
    assert sentence.endswith("Repair or uninstall it.")
    sys.modules.pop("tt_broken_ext.conf", None)


def test_a_package_that_shadows_ours_is_an_error_at_once(install: Callable[[str, str], Path]) -> None:
    path = write(install("tt_shadow_ext", "") / "train.yaml", "a: 1\n")
    assert said(lambda: config.compose("train")).startswith(f"{path} has the name of one of hpctool's own files")


# -- the small tools


@pytest.mark.slow
def test_a_value_can_be_pinned_in_a_closed_config(conf: Path) -> None:
    cfg = config.typed(compose(conf).cfg, Mine)
    config.set_value(cfg, "label", "cats")
    config.set_value(cfg, "resources.nodes", 4)
    assert (cfg.label, cfg.resources.nodes) == ("cats", 4)


def test_flat_keys() -> None:
    flat = config.flatten({"a": {"b": 1, "c": {"d": [1, {"e": 2}]}}, "f": {}, "g": None})
    assert flat == {"a.b": 1, "a.c.d": [1, {"e": 2}], "f": {}, "g": None}
    assert {"seed", "lr", "cluster", "cluster.partition", "resources.nodes"} <= set(config.schema_keys(Mine))


def test_a_target_is_checked_where_it_stands() -> None:
    config.check_target("model", OmegaConf.create({"_target_": "hpctool.nets.MLP"}))
    config.check_target("augment", None, required=False)
    with pytest.raises(
        TargetError, match=r"Config 'model._target_' asks for 'hpctool.nets.MPL', but .* \(it has MLP\)"
    ):
        config.check_target("model", OmegaConf.create({"_target_": "hpctool.nets.MPL"}))
    for nothing in (None, OmegaConf.create({}), OmegaConf.create({"_target_": "???"})):
        with pytest.raises(ConfigError, match=r"it has no value\. Give the importable name of your own class"):
            config.check_target("model", nothing)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n"])
def test_a_runs_config_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    path = write(tmp_path / "config.yaml", text)
    assert str(path) in said(lambda: config.load(path))


@pytest.mark.slow
def test_the_choices_of_a_group() -> None:
    assert config.group_choices("cluster") == ["inline", "local", "slurm"]
    assert config.group_choices("nosuch") == []
    with pytest.raises(UnknownName):
        config.compose("train", ["cluster=_bases"])
