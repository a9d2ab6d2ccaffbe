"""How fast a dataset is read, beside other loaders, in one run: a table of ratios.

python scripts/bench/data.py [--peers FOLDER] [--work FOLDER] [--seconds 3] [--rounds 3] [--only small images …]

Each peer has a virtual environment FOLDER/<peer>, made if it is not there (pip must reach an index). All data is
synthetic and made by this script. Rounds go through all loaders in turn, so that load by others hits all alike; a
figure is the median of its rounds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data_peers import IMAGE_BATCH, SMALL_BATCH, measure
from PIL import Image

import hpctool.data.images
from hpctool.data.commit import Draft
from hpctool.data.images import ImageForm
from hpctool.data.manifest import LABEL, Column, Manifest, RowGroup
from hpctool.data.order import Order
from hpctool.data.ragged import Ragged
from hpctool.data.reader import Reader
from hpctool.data.store import Store
from hpctool.data.version import Version, open_version

PEERS = {
    "streaming": ["mosaicml-streaming==0.13.0", "pillow", "torch"],
    "webdataset": ["webdataset==1.0.2", "numpy", "pillow", "torch"],
    "h5py": ["h5py==3.16.0", "numpy", "pillow", "torch"],
    "files": [],
}
NUM_SMALL, NUM_IMAGES, NUM_MANY = 50_000, 1_500, 10_000_000
IMAGE_SIZE = (375, 500)
NUM_GROUPS = 10_000
GROUP_ROWS = 8192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path(tempfile.gettempdir()) / "hpctool-peers")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "hpctool-bench-data")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--only", nargs="+", default=["small", "images", "many", "groups"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(globals()[args.child](args)))
        return
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        globals()[name](args)


# ---------------------------------------------------------------------------------------------- 256 × 3 KB


def small(args: argparse.Namespace) -> None:
    """Random batches of small samples from several files."""
    make_small(args.work)
    for peer in ("h5py", "streaming", "webdataset"):
        ready(args, peer, "small")
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        for way in ("memmap", "pread", "blocks"):
            found.setdefault(f"hpctool, {way}", []).append(child(args, f"small_{way}"))
        found.setdefault("bare memmap gather", []).append(child(args, "small_bare"))
        for peer in ("h5py", "streaming", "webdataset"):
            found.setdefault(peer, []).append(run_peer(args, peer, "small"))
    targets = {"bare memmap gather": 0.7, "h5py": 30, "streaming": 50, "webdataset": 50}
    table(f"random batches of {SMALL_BATCH} × 3 KB, one process", found, "hpctool, memmap", targets)


def make_small(work: Path) -> None:
    rng = np.random.default_rng(0)
    if not (work / "y.npy").exists():
        np.save(work / "x.npy", rng.integers(0, 256, (NUM_SMALL, 32, 32, 3), np.uint8))
        np.save(work / "y.npy", rng.integers(0, 10, NUM_SMALL))
    if not (work / "small").exists():
        x, y = np.load(work / "x.npy"), np.load(work / "y.npy")
        cuts = range(0, NUM_SMALL, GROUP_ROWS)
        columns = [Column("image", x.dtype, x.shape[1:])]
        build(work, "small", columns, ((x[at : at + GROUP_ROWS], y[at : at + GROUP_ROWS]) for at in cuts))


def small_bare(args: argparse.Namespace) -> float:
    x, y = np.load(args.work / "x.npy", mmap_mode="r"), np.load(args.work / "y.npy", mmap_mode="r")
    rng = np.random.default_rng(0)

    def batches() -> Iterator[Any]:
        while True:
            rows = rng.integers(0, NUM_SMALL, SMALL_BATCH)
            yield x[rows], y[rows]

    return measure(batches, args.seconds)


def small_memmap(args: argparse.Namespace) -> float:
    return measure(lambda: ours(args.work, "small", "memmap", 0), args.seconds)


def small_pread(args: argparse.Namespace) -> float:
    return measure(lambda: ours(args.work, "small", "pread", 0), args.seconds)


def small_blocks(args: argparse.Namespace) -> float:
    return measure(lambda: ours(args.work, "small", "pread", 16_384), args.seconds)


def ours(work: Path, name: str, access: Any, window: int, form: ImageForm | None = None) -> Iterator[Any]:
    """Batches in the order of epochs, as training asks for them."""
    version = open_version(work, name)
    images = {"image": form} if form else None
    reader = Reader(version, ["image", LABEL], access, window=window, images=images)
    index, size = version.split_rows("train"), IMAGE_BATCH if form else SMALL_BATCH
    order, epoch = Order(len(index), 0, window), 0
    while True:
        for start in range(0, len(index) - len(index) % 16_384 or len(index), 16_384):
            ahead = index[order.rows(epoch, start, min(start + 16_384, len(index)))]
            reader.prefetch(ahead)
            for at in range(0, len(ahead) - size + 1, size):
                found = reader.gather(ahead[at : at + size])
                yield found["image"], found[LABEL]
        epoch += 1


# ---------------------------------------------------------------------------------------------- encoded images


def images(args: argparse.Namespace) -> None:
    """100 KB JPEGs, decoded by as many workers everywhere: processes of a DataLoader there, threads here."""
    make_images(args.work)
    for peer in PEERS:
        ready(args, peer, "images")
    found: dict[str, list[float]] = {}
    for _ in range(args.rounds):
        found.setdefault("hpctool", []).append(child(args, "images_ours", cores=args.workers))
        found.setdefault("hpctool, Pillow", []).append(child(args, "images_pillow", cores=args.workers))
        for peer in PEERS:
            found.setdefault(peer, []).append(run_peer(args, peer, "images"))
    title = f"batches of {IMAGE_BATCH} encoded images of {mean_kb(args.work):.0f} KB, {args.workers} workers"
    table(title, found, "hpctool", dict.fromkeys(PEERS, 1.2))


def make_images(work: Path) -> None:
    folder = work / "jpg"
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(0)
        for number in range(NUM_IMAGES):
            # Smooth shapes and a grain on them: about 100 KB at this size and quality, as photographs have.
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(IMAGE_SIZE[::-1])
            pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-24, 25, (*IMAGE_SIZE, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05d}.jpg", quality=90)
    if not (work / "images").exists():
        paths = sorted(folder.iterdir())
        parts = [paths[at : at + 256] for at in range(0, len(paths), 256)]
        columns = [Column("image", np.dtype(np.uint8), (), ragged=True, encoding="image")]
        groups = ((Ragged.of([p.read_bytes() for p in part]), np.arange(len(part)) % 10) for part in parts)
        build(work, "images", columns, groups)


def mean_kb(work: Path) -> float:
    return statistics.mean(path.stat().st_size for path in (work / "jpg").iterdir()) / 1000


def images_ours(args: argparse.Namespace) -> float:
    form = ImageForm(*IMAGE_SIZE, 3)
    return measure(lambda: ours(args.work, "images", "memmap", 0, form), args.seconds)


def images_pillow(args: argparse.Namespace) -> float:
    """With the decoder that the peers have, so that the loaders alone are compared."""
    hpctool.data.images._decode_jpeg = lambda *_: False
    return images_ours(args)


# ---------------------------------------------------------------------------------------------- big ones


def many(args: argparse.Namespace) -> None:
    """Ten million rows: how soon the first batch is there, and what order and index take."""
    if not (args.work / "many").exists():
        rng, size = np.random.default_rng(0), 65_536
        cuts = [min(size, NUM_MANY - at) for at in range(0, NUM_MANY, size)]
        columns = [Column("image", np.dtype(np.uint8), (16,))]
        build(
            args.work, "many", columns, ((rng.integers(0, 256, (n, 16), np.uint8), rng.integers(0, 9, n)) for n in cuts)
        )
    found = [child(args, "many_ours") for _ in range(args.rounds)]
    said_time(found, "first_s", f"{NUM_MANY:,} rows: first batch after")
    memory_mb = max(one["memory_mb"] for one in found)
    say(f"{NUM_MANY:,} rows: memory of order and index", f"{memory_mb:.0f} MB", memory_mb < 100, "< 100 MB")


def many_ours(args: argparse.Namespace) -> dict[str, Any]:
    before_mb, clock = resident_mb(), Clock()
    version = open_version(args.work, "many")
    index, order = version.split_rows("train"), Order(NUM_MANY, 0)
    with Reader(version, ["image", LABEL], "memmap") as reader:
        reader.gather(index[order.rows(0, 0, SMALL_BATCH)])
        first_s = clock.read()
    for epoch in range(2):
        for start in range(0, NUM_MANY, NUM_MANY // 50):
            index[order.rows(epoch, start, start + 16_384)]
    return {"first_s": first_s, "memory_mb": resident_mb() - before_mb}


def groups(args: argparse.Namespace) -> None:
    """Ten thousand row groups; the objects repeat every 50 groups, the table of contents does not know that."""
    if not (args.work / "groups").exists():
        rng = np.random.default_rng(0)
        parts = [(rng.integers(0, 256, (64, 8), np.uint8), rng.integers(0, 9, 64)) for _ in range(50)]
        columns = [Column("image", np.dtype(np.uint8), (8,))]
        build(args.work, "groups", columns, (parts[number % 50] for number in range(NUM_GROUPS)))
    found = [child(args, "groups_ours") for _ in range(args.rounds)]
    for name, what in (("open_s", "opened in"), ("first_s", "first batch after")):
        said_time(found, name, f"{NUM_GROUPS:,} row groups: {what}")


def groups_ours(args: argparse.Namespace) -> dict[str, Any]:
    clock = Clock()
    version = open_version(args.work, "groups")
    open_s = clock.read()
    index = version.split_rows("train")
    Reader(version, ["image", LABEL]).gather(index[Order(len(index), 0).rows(0, 0, SMALL_BATCH)])
    return {"open_s": open_s, "first_s": clock.read()}


class Clock:
    """Seconds since it was made: of the clock on the wall, of this process alone, and of it waiting for a core.

    A core that others have is no fault of the reader's: what counts is the wall's time without that.
    """

    def __init__(self) -> None:
        self.began = self._now()

    def read(self) -> dict[str, float]:
        wall_s, cpu_s, queued_s = (now - began for now, began in zip(self._now(), self.began, strict=True))
        return {"wall_s": wall_s, "cpu_s": cpu_s, "queued_s": queued_s}

    @staticmethod
    def _now() -> tuple[float, float, float]:
        # proc(5): time on a core, time on the run queue (ns), time slices; of the main thread, which does all of it.
        queued_ns = int(Path("/proc/self/schedstat").read_text().split()[1])
        return time.perf_counter(), time.process_time(), queued_ns / 1e9


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 1e6


# ---------------------------------------------------------------------------------------------- how it is done


def build(work: Path, name: str, columns: list[Column], parts: Iterator[Any]) -> Version:
    """A dataset of features and labels, written group by group; all rows are in the split `train`."""
    store = Store.create(work, name)
    label = Column(LABEL, np.dtype(np.int64), (), classes=[str(k) for k in range(10)], role="label")
    made = [RowGroup(len(y), [store.put({columns[0].name: x}), store.put({LABEL: y})]) for x, y in parts]
    rows = np.arange(sum(group.num_rows for group in made))
    rule = {"by": "uid", "fractions": [["train", 1.0]]}
    schema = {column.name: column for column in (*columns, label)}
    manifest = Manifest(schema, made, store.put({"train": rows}), rule, {})
    store.commit("main", lambda _: Draft(store.put_manifest(manifest), "bench", {"kind": "prepare"}))
    return open_version(work, name)


def ready(args: argparse.Namespace, peer: str, what: str) -> None:
    """The peer's environment and its form of the data."""
    home = args.peers / peer
    if PEERS[peer] and not (home / "bin" / "python").exists():
        print(f"making {home} …", flush=True)
        venv.create(home, with_pip=True)
        constraints = ["-c", str(Path(__file__).parents[2] / "constraints.txt")] if peer != "streaming" else []
        subprocess.run([home / "bin" / "pip", "install", "-q", *PEERS[peer], *constraints], check=True)
    call_peer(args, peer, what, "make")


def run_peer(args: argparse.Namespace, peer: str, what: str) -> float:
    return float(call_peer(args, peer, what, "run").splitlines()[-1])


def call_peer(args: argparse.Namespace, peer: str, what: str, task: str) -> str:
    # Plain files need nothing of their own but torch and Pillow.
    python = args.peers / ("webdataset" if peer == "files" else peer) / "bin" / "python"
    options = ["--seconds", str(args.seconds), "--workers", str(args.workers)]
    script = Path(__file__).with_name("data_peers.py")
    command = [python, script, task, peer, what, args.work, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{peer} failed:\n{done.stderr[-3000:]}")
    return done.stdout


def child(args: argparse.Namespace, name: str, cores: int | None = None) -> Any:
    """One of the functions here in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
    if cores:
        command = ["taskset", "-c", ",".join(map(str, sorted(os.sched_getaffinity(0))[:cores])), *command]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr[-3000:])
    return json.loads(done.stdout)


def table(title: str, found: dict[str, list[float]], mine: str, targets: dict[str, float]) -> None:
    print(f"\n{title}")
    rates = {name: statistics.median(each) for name, each in found.items()}
    print(f"  {'':22}{'batches/s':>12}{'of it':>22}{'hpctool is':>14}  target")
    for name, rate in rates.items():
        spread = f"{min(found[name]):.1f} to {max(found[name]):.1f}"
        ratio = rates[mine] / rate
        target = targets.get(name)
        verdict = f"≥ {target:g} {'reached' if ratio >= target else 'MISSED'}" if target else ""
        print(f"  {name:22}{rate:12.1f}{spread:>22}{ratio:13.2f}×  {verdict}", flush=True)


def said_time(found: list[dict[str, Any]], name: str, what: str) -> None:
    own_s = [one[name]["wall_s"] - one[name]["queued_s"] for one in found]
    best = found[own_s.index(min(own_s))][name]
    say(what, f"{max(own_s):.2f} s", max(own_s) < 1, "< 1 s")
    told = f"{best['wall_s']:.2f} s on the wall, {best['queued_s']:.2f} s of them waiting for a core"
    load = os.getloadavg()[0]
    print(f"    the best of {len(found)}: {told}, {best['cpu_s']:.2f} s on one (load {load:.0f})", flush=True)


def say(what: str, found: str, reached: bool, target: str) -> None:
    print(f"  {what:46}{found:>10}  {target} {'reached' if reached else 'MISSED'}", flush=True)


if __name__ == "__main__":
    main()
