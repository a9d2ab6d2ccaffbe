"""Prepare: bring a source in and commit it as a version. Preparing the same again changes nothing and says so."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hpctool import __version__, config, files
from hpctool.data import choices, extend
from hpctool.data.choices import notes_of
from hpctool.data.commit import Commit, Draft
from hpctool.data.ingest import assemble, write_groups
from hpctool.data.layout import check_name, split_ref
from hpctool.data.manifest import Manifest
from hpctool.data.schema import PrepareConfig
from hpctool.data.sources import open_source, pin_source
from hpctool.data.sources.base import Piece, RowSource
from hpctool.data.spool import Spool
from hpctool.data.store import Store, list_datasets, short
from hpctool.data.version import Version, open_version
from hpctool.errors import ConflictError, InputError, counted
from hpctool.launch.job import Input, Resolved
from hpctool.rundir import RunDir
from hpctool.world import World


def resolve(cfg: DictConfig) -> Resolved:
    """On the login node: the names, the splits and the source are checked and the source's content is pinned."""
    name, branch = _target_branch(cfg)
    choices.check(cfg)
    if cfg.data.append:
        open_version(Path(cfg.paths.datasets), f"{name}@{branch}")
    for key in ("source.path", "data.splits_from"):
        if path := OmegaConf.select(cfg, key):
            # The job may run from another folder than this one.
            config.set_value(cfg, key, str(Path(path).expanduser().absolute()))
    kind = str(cfg.source.get("kind") or cfg.source.get("_target_"))
    notes = []
    if kind == "digits" != name:
        notes.append(
            f"'{name}' gets the handwritten digits of scikit-learn: source=digits, which is taken where none is named. "
            "For your own rows: source=imagefolder source.path=… (or csv, npz, parquet, hdf5 …)"
        )
    return Resolved([Input("source", kind, pin_source(cfg.source, allow_nan=cfg.data.allow_nan))], notes)


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
    #: whether the branch held this already, and at most labels and rows have come to it since
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
    datasets = Path(cfg.paths.datasets)
    begun = world.on_main(lambda: _begin(datasets, name, run))
    store = Store(datasets / name, begun["primitive"])
    spool = store.layout.tmp / begun["spool"]
    try:
        prepared = _prepare(store, branch, cfg, world, run, spool)
    except InputError:
        # After any other error, a full disk or a lost rank, what is finished is still there for the next attempt.
        world.barrier()
        if world.is_main:
            _clear(store, spool, is_new=begun["is_new"])
        raise
    if world.is_main:
        _say(prepared)
    return prepared


def _begin(datasets: Path, name: str, run: str) -> dict[str, Any]:
    """Make the dataset if it is missing, and a folder in it for this prepare."""
    is_new = name not in list_datasets(datasets)
    store = Store.create(datasets, name)
    spool = store.layout.tmp / f"prepare-{run or files.temporary_name('alone')}"
    # At once, before the source is looked at: whoever made the dataset and fails leaves it if somebody has a folder.
    spool.mkdir(parents=True, exist_ok=True)
    return {"is_new": is_new, "primitive": store.primitive, "spool": spool.name}


def _clear(store: Store, spool: Path, *, is_new: bool) -> None:
    """Leave nothing where nothing was before."""
    shutil.rmtree(spool, ignore_errors=True)
    if is_new and not store.branches() and not any(store.layout.tmp.iterdir()):
        shutil.rmtree(store.root)


def _prepare(store: Store, branch: str, cfg: DictConfig, world: World, run: str, folder: Path) -> Prepared:
    base = world.on_main(lambda: getattr(store.tip(branch), "id", None))
    if cfg.data.append and base is None:  # deleted since `resolve` looked
        raise store.unknown_branch(branch)
    onto = Version(store, branch, base) if cfg.data.append else None
    source, pieces, spool = _survey(folder, cfg, world)

    def finish() -> dict[str, Any]:
        if onto is None:
            manifest = assemble(store, plan, groups, moments)
            commit = _commit(store, branch, base, manifest, cfg, run)
            stays = _tag_stays(store, cfg.data.tag, commit)
            found = [*source.notes, *notes, *notes_of(plan, manifest, store), *stays]
        else:
            commit = extend.commit(store, branch, plan, groups, moments, cfg, run)
            found = [*source.notes, *notes, *extend.notes_of(plan, onto, Version(store, branch, commit.id))]
        prepared = _prepared(store, branch, base, commit, found)
        spool.remove()
        return asdict(prepared)

    plan, notes = choices.make_plan(store, base, source, pieces, spool, cfg, world, onto)
    groups, moments = write_groups(store, plan, spool, world)
    return Prepared(**world.on_main(finish))


def _survey(folder: Path, cfg: DictConfig, world: World) -> tuple[RowSource, list[Piece], Spool]:
    """The source, its pieces as rank 0 sees them, and its rows' spool. Collective: all ranks must call it."""
    source = open_source(cfg.source, allow_nan=cfg.data.allow_nan)

    def survey() -> dict[str, Any]:
        pieces = source.pieces()
        decides = [pieces, source.shared, config.to_plain(cfg.source), config.to_plain(cfg.data), cfg.seed, __version__]
        plan = files.sha256_bytes(files.canonical_json(decides))
        Spool(folder, plan).begin()
        return {"pieces": pieces, "shared": source.shared, "classes": source.classes, "plan": plan}

    found = world.on_main(survey)
    source.shared, source.classes = found["shared"], found["classes"]
    return source, found["pieces"], Spool(folder, found["plan"])


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


def _commit(store: Store, branch: str, base: str | None, manifest: Manifest, cfg: DictConfig, run: str) -> Commit:
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
    if cfg.data.tag is not None and cfg.data.tag not in store.tag_names():
        store.create_tag(cfg.data.tag, commit.id)
    return commit


def _prepared(store: Store, branch: str, base: str | None, commit: Commit, notes: list[str]) -> Prepared:
    version = Version(store, branch, commit.id)
    return Prepared(
        dataset=f"{store.name}@{branch}",
        commit=commit.id,
        path=str(store.layout.commit(commit.id).absolute()),
        unchanged=base is not None and any(commit.id == c.id for c in _standing(store, base)),
        num_rows=version.num_rows,
        splits=version.splits,
        notes=notes + _gone_on(store, branch, commit),
    )


def _gone_on(store: Store, branch: str, commit: Commit) -> list[str]:
    tip = store.tip(branch)
    if tip is None or tip.id == commit.id:
        return []
    return [f"{store.name}@{branch} has gone on from there; it is at commit {short(tip.id)} ('{tip.message}')."]


def _standing(store: Store, tip: str) -> Iterator[Commit]:
    """The tip, and back to the prepare that it labels or adds to; what was before that is no longer what it holds."""
    for commit in store.history(tip):
        yield commit
        if commit.kind == "prepare":
            return


def _follow(store: Store, branch: str, base: str | None, draft: Draft, tip: Commit | None) -> Draft | Commit:
    """What comes after the tip: the draft, or the commit that holds its content already and was at most added to."""
    if tip is None:
        return draft
    for commit in _standing(store, tip.id):
        if commit.manifest == draft.manifest:
            return commit
        if commit.kind == "prepare" and _same(store, commit, draft.manifest):
            return commit
    history = list(store.history(tip.id))
    for commit in history:
        # A run that was killed behind its commit comes back to it, even where another has prepared since.
        if draft.run and (commit.run, commit.manifest) == (draft.run, draft.manifest):
            return commit
    if tip.id != base:
        raise ConflictError(f"Branch '{branch}' of dataset '{store.name}'", draft.message, f"commit {short(tip.id)}")
    if any(commit.changes or commit.kind != "prepare" for commit in history):
        raise InputError(
            f"{store.name}@{branch} was relabelled or added to since it was prepared, and the source is not what it "
            "was then: preparing it anew would lose the new labels and rows. Add only what is new (data.append=true), "
            f"or prepare another branch: data.name={store.name}@<branch>."
        )
    return draft


def _tag_stays(store: Store, tag: str | None, commit: Commit) -> list[str]:
    """What is said where the tag was given before, to another commit with the same contents."""
    if tag is None or (there := store.read_tag(tag)) == commit.id:
        return []
    return [f"Tag '{tag}' stays at commit {short(there)}, which holds the same."]


def _same(store: Store, commit: Commit, manifest_id: str) -> bool:
    if commit.manifest == manifest_id:
        return True
    return store.manifest(commit.manifest).same_contents(store.manifest(manifest_id))


def _check_tag(store: Store, tag: str | None, manifest_id: str) -> None:
    if tag is None or tag not in store.tag_names():
        return
    there = store.read_tag(tag)
    if not _same(store, store.commit_of(there), manifest_id):
        raise InputError(
            f"Tag '{tag}' of dataset '{store.name}' names {short(there)}, which holds other data, and never moves; "
            "choose another name for data.tag."
        )


def _say(prepared: Prepared) -> None:
    splits = ", ".join(f"{name} {num_rows:,}" for name, num_rows in prepared.splits.items())
    verb = "unchanged, it holds" if prepared.unchanged else "has now"
    print(f"{prepared.dataset}: {verb} {counted(prepared.num_rows, 'row')} ({splits}); commit {short(prepared.commit)}")
    for note in prepared.notes:
        print(f"note: {note}")
