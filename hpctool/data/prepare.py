"""Prepare: bring a source in and commit it as a version. Preparing the same again changes nothing and says so."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hpctool import config, files
from hpctool.data.commit import Commit, Draft
from hpctool.data.ingest import assemble, make_plan, write_groups
from hpctool.data.layout import check_name, split_ref
from hpctool.data.manifest import Manifest
from hpctool.data.schema import PrepareConfig
from hpctool.data.sources import load_source, pin_source
from hpctool.data.sources.table import Table
from hpctool.data.splits import make_rule
from hpctool.data.store import Store, list_datasets, short
from hpctool.errors import ConfigError, ConflictError, InputError, SourceError, Stopped
from hpctool.launch.job import Input, Resolved
from hpctool.rundir import RunDir
from hpctool.world import World


def resolve(cfg: DictConfig) -> Resolved:
    """On the login node: the names, the splits and the source are checked and the source's content is pinned."""
    _target_branch(cfg)
    make_rule(config.to_plain(cfg.data.splits))
    for key in ("row_group_rows", "row_group_mb"):
        if cfg.data[key] < 1:
            raise ConfigError(f"data.{key}", f"{cfg.data[key]} is less than 1.")
    if cfg.source.get("path"):
        # The job may run from another folder than this one.
        config.set_value(cfg, "source.path", str(Path(cfg.source.path).expanduser().absolute()))
    kind = str(cfg.source.get("kind") or cfg.source.get("_target_"))
    return Resolved(inputs=[Input("source", kind, pin_source(cfg.source))])


def run(rundir: RunDir, world: World) -> dict[str, Any]:
    """The job: prepare what the run's config.yaml says. Collective: all ranks must call it."""
    cfg = config.typed(config.load(rundir.config_yaml), PrepareConfig)
    return prepare(cfg, world, run=rundir.id).to_result()


@dataclass(frozen=True)
class Prepared:
    """What came of it."""

    dataset: str
    commit: str
    #: the commit's file
    path: str
    #: whether the branch held exactly this already
    unchanged: bool
    num_rows: int
    splits: dict[str, int]
    notes: list[str]

    def to_result(self) -> dict[str, Any]:
        """As result.json holds it."""
        return {"step": 0, "metrics": {"rows": self.num_rows}, "data_commit": self.commit, "outputs": asdict(self)}


def prepare(cfg: DictConfig, world: World, run: str = "") -> Prepared:
    """Import the source of a PrepareConfig and commit it. Collective: all ranks must call it.

    Raises InputError (SourceError with the file or row that cannot be taken), ConflictError where the branch moved
    meanwhile, Stopped; the branch then is as it was.
    """
    name, branch = _target_branch(cfg)
    table = _load(cfg, world)
    rule = make_rule(config.to_plain(cfg.data.splits))
    plan = make_plan(table, cfg.seed, cfg.data.row_group_rows, cfg.data.row_group_mb, rule)

    datasets = Path(cfg.paths.datasets)
    is_new = world.on_main(lambda: name not in list_datasets(datasets))
    primitive = world.on_main(lambda: Store.create(datasets, name).primitive)
    store = Store(datasets / name, primitive)
    base = world.on_main(lambda: getattr(store.tip(branch), "id", None))
    try:
        groups, features = write_groups(store, plan, world)
    except Stopped:
        raise
    except Exception:
        if is_new and world.is_main and not store.branches():
            shutil.rmtree(store.root)  # nothing was there before, nothing is there after
        raise

    def finish() -> dict[str, Any]:
        manifest = assemble(store, plan, groups, features)
        return asdict(_commit(store, branch, base, manifest, cfg, table.notes, run))

    prepared = Prepared(**world.on_main(finish))
    if world.is_main:
        _say(prepared)
    return prepared


def _load(cfg: DictConfig, world: World) -> Table:
    """The source's rows, which ranks on all machines must see alike. Collective: all ranks must call it."""
    loaded: list[Table] = []

    def load() -> str:
        table = load_source(cfg.source)
        loaded.append(table)
        labels = table.labels.tolist() if table.labels is not None else None
        columns = {name: column.to_json() for name, column in table.columns.items()}
        return files.sha256_bytes(files.canonical_json([table.keys, labels, table.classes, columns]))

    digests = world.together(load)
    for rank, digest in enumerate(digests):
        if digest != digests[0]:
            raise SourceError("source", f"rank {rank} sees other rows than rank 0; is it the same on all nodes?")
    return loaded[0]


def _target_branch(cfg: DictConfig) -> tuple[str, str]:
    """The dataset and branch that are to be written, and the tag checked. Raises InputError."""
    name, branch = split_ref(cfg.data.name)
    check_name("branch", branch)
    if cfg.data.tag is not None:
        check_name("tag", cfg.data.tag)
    datasets = Path(cfg.paths.datasets)
    if name in list_datasets(datasets) and branch in Store.open(datasets, name).tag_names():
        raise InputError(f"'{branch}' is a tag of dataset '{name}' and never moves; name a branch: {name}@…")
    return name, branch


def _commit(
    store: Store, branch: str, base: str | None, manifest: Manifest, cfg: DictConfig, notes: list[str], run: str
) -> Prepared:
    kind = str(cfg.source.get("kind") or cfg.source.get("_target_"))
    manifest_id = store.put_manifest(manifest)
    draft = Draft(
        manifest=manifest_id,
        message=cfg.data.message or f"prepare {kind}",
        operation={"kind": "prepare", "source": config.to_plain(cfg.source), "seed": cfg.seed},
        run=run,
    )
    _check_tag(store, cfg.data.tag, manifest_id)
    commit = store.commit(branch, lambda tip: _follow(store, branch, base, draft, tip))
    if cfg.data.tag is not None:
        store.create_tag(cfg.data.tag, commit.id)
    unchanged = base is not None and any(commit.id == c.id for c in store.history(base))
    return Prepared(
        dataset=f"{store.name}@{branch}",
        commit=commit.id,
        path=str(store.layout.commit(commit.id).absolute()),
        unchanged=unchanged,
        num_rows=manifest.num_rows,
        splits={name: manifest.stats["splits"][name]["rows"] for name in manifest.split_names},
        notes=[*notes, *_duplicate_notes(manifest)],
    )


def _follow(store: Store, branch: str, base: str | None, draft: Draft, tip: Commit | None) -> Draft | Commit:
    """What comes after the tip: the draft, or the commit of the branch's history that already holds its content."""
    if tip is None:
        return draft
    history = list(store.history(tip.id))
    for commit in history:
        if commit.manifest == draft.manifest:
            return commit
    if tip.id != base:
        raise ConflictError(f"Branch '{branch}' of dataset '{store.name}'", draft.message, f"commit {short(tip.id)}")
    if any(commit.changes for commit in history):
        raise InputError(
            f"{store.name}@{branch} was relabelled since it was prepared, and the source is not what it was then: "
            f"preparing it anew would lose the new labels. Prepare another branch: data.name={store.name}@<branch>."
        )
    return draft


def _check_tag(store: Store, tag: str | None, manifest_id: str) -> None:
    if tag is None or tag not in store.tag_names():
        return
    there = store.read_tag(tag)
    if store.commit_of(there).manifest != manifest_id:
        raise InputError(
            f"Tag '{tag}' of dataset '{store.name}' names {short(there)}, which holds other data, and never moves; "
            "choose another name for data.tag."
        )


def _duplicate_notes(manifest: Manifest) -> list[str]:
    found = manifest.stats["duplicates"]
    notes = []
    if found["repeated"]:
        notes.append(f"{found['repeated']} rows have exactly the features of another row.")
    if found["leaked"]:
        notes.append(f"{found['leaked']} of these stand in more than one split, so a test on them flatters the model.")
    return notes


def _say(prepared: Prepared) -> None:
    splits = ", ".join(f"{name} {num_rows:,}" for name, num_rows in prepared.splits.items())
    verb = "unchanged, it holds" if prepared.unchanged else "has now"
    print(f"{prepared.dataset}: {verb} {prepared.num_rows:,} rows ({splits}); commit {short(prepared.commit)}")
    for note in prepared.notes:
        print(f"note: {note}")
