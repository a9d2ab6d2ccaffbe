"""The other loaders that data.py measures; runs with each one's own Python and knows nothing of hpctool.

python data_peers.py make|run PEER small|images FOLDER [--seconds 3] [--workers 2]

FOLDER/x.npy and y.npy hold 50,000 images of 3 KB and their labels, FOLDER/jpg/*.jpg encoded images; `make` writes them
in the peer's own form, `run` prints how many batches it delivers in a second, each a uint8 array and labels. Random
order, as each peer does it best.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
import time
import types
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np

SMALL_BATCH, IMAGE_BATCH = 256, 64
SHAPE = (32, 32, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("task", choices=["make", "run"])
    parser.add_argument("peer", choices=["streaming", "webdataset", "h5py", "files"])
    parser.add_argument("what", choices=["small", "images"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    own = args.folder / f"{args.peer}-{args.what}"
    if args.task == "make":
        if not own.exists() and args.peer != "files":
            globals()[f"make_{args.peer}"](args.what, args.folder, own)
        return
    if args.what == "small":
        found = max(measure(batches, args.seconds) for batches in globals()[f"small_{args.peer}"](own))
    else:
        dataset = globals()[f"images_{args.peer}"](args.folder if args.peer == "files" else own)
        found = measure(lambda: loaded(dataset, args.workers), args.seconds)
    print(json.dumps(found))


def measure(batches: Callable[[], Iterator[Any]], seconds: float) -> float:
    """Batches in a second, after the first two."""
    source = batches()
    for _ in range(2):
        next(source)
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        next(source)
        count += 1
    return count / (time.perf_counter() - began)


def loaded(dataset: Any, workers: int) -> Iterator[Any]:
    """Batches of decoded images by torch's DataLoader, epoch after epoch."""
    from torch.utils.data import DataLoader, IterableDataset

    shuffle = None if isinstance(dataset, IterableDataset) else True
    loader = DataLoader(
        dataset, IMAGE_BATCH, shuffle=shuffle, num_workers=workers, drop_last=True, persistent_workers=workers > 0
    )
    while True:
        yield from loader


def decode(data: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def samples(what: str, folder: Path) -> Iterator[tuple[Any, int]]:
    if what == "small":
        yield from zip(np.load(folder / "x.npy"), np.load(folder / "y.npy").tolist(), strict=True)
    else:
        for number, path in enumerate(sorted((folder / "jpg").iterdir())):
            yield path.read_bytes(), number % 10


# ---------------------------------------------------------------------------------------------- mosaicml-streaming


def import_streaming() -> None:
    """Its ready-made datasets want a torchvision that fits torch's build to the byte; nothing here uses it."""
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        for name in ("", ".datasets", ".transforms", ".transforms.functional"):
            module: Any = types.ModuleType(f"torchvision{name}")
            module.__path__, module.__getattr__ = [], _placeholder
            module.__spec__ = ModuleSpec(module.__name__, None)
            sys.modules[module.__name__] = module


def _placeholder(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def make_streaming(what: str, folder: Path, own: Path) -> None:
    import_streaming()
    from streaming import MDSWriter

    columns = {"x": "ndarray:uint8:32,32,3" if what == "small" else "bytes", "y": "int"}
    with MDSWriter(out=str(own), columns=columns) as writer:
        for x, y in samples(what, folder):
            writer.write({"x": x, "y": y})


def small_streaming(own: Path) -> list[Callable[[], Iterator[Any]]]:
    import_streaming()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()
    dataset = StreamingDataset(local=str(own), shuffle=True, batch_size=SMALL_BATCH)

    def by_index() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            found = [dataset[int(i)] for i in rng.integers(0, len(dataset), SMALL_BATCH)]
            yield np.stack([s["x"] for s in found]), np.array([s["y"] for s in found])

    def in_order() -> Iterator[Any]:
        while True:
            source = iter(dataset)
            while len(found := list(itertools.islice(source, SMALL_BATCH))) == SMALL_BATCH:
                yield np.stack([s["x"] for s in found]), np.array([s["y"] for s in found])

    return [by_index, in_order]


def images_streaming(own: Path) -> Any:
    import_streaming()
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Decoded(StreamingDataset):
        def __getitem__(self, at: int) -> Any:
            sample = super().__getitem__(at)
            return decode(sample["x"]), sample["y"]

    return Decoded(local=str(own), shuffle=True, batch_size=IMAGE_BATCH)


# ---------------------------------------------------------------------------------------------- webdataset


def make_webdataset(what: str, folder: Path, own: Path) -> None:
    import webdataset as wds

    own.mkdir()
    with wds.ShardWriter(str(own / "%06d.tar"), maxcount=5000 if what == "small" else 250) as writer:
        for number, (x, y) in enumerate(samples(what, folder)):
            data = x.tobytes() if what == "small" else x
            writer.write({"__key__": f"{number:08d}", "x": data, "y": str(y).encode()})


def _shards(own: Path) -> list[str]:
    return sorted(str(path) for path in own.glob("*.tar"))


def small_webdataset(own: Path) -> list[Callable[[], Iterator[Any]]]:
    import webdataset as wds

    def batches() -> Iterator[Any]:
        while True:
            source = iter(wds.WebDataset(_shards(own), shardshuffle=100).shuffle(5000))
            while len(found := list(itertools.islice(source, SMALL_BATCH))) == SMALL_BATCH:
                x = np.stack([np.frombuffer(s["x"], np.uint8).reshape(SHAPE) for s in found])
                yield x, np.array([int(s["y"]) for s in found])

    return [batches]


def images_webdataset(own: Path) -> Any:
    import webdataset as wds

    return (
        wds.WebDataset(_shards(own), shardshuffle=100, nodesplitter=wds.split_by_node)
        .shuffle(500)
        .map(lambda sample: (decode(sample["x"]), int(sample["y"])))
    )


# ---------------------------------------------------------------------------------------------- h5py


def make_h5py(what: str, folder: Path, own: Path) -> None:
    import h5py

    own.mkdir()
    with h5py.File(own / "data.h5", "w") as file:
        if what == "small":
            file["x"], file["y"] = np.load(folder / "x.npy"), np.load(folder / "y.npy")
            return
        found = list(samples(what, folder))
        x = file.create_dataset("x", len(found), h5py.vlen_dtype(np.uint8))
        for number, (data, _) in enumerate(found):
            x[number] = np.frombuffer(data, np.uint8)
        file["y"] = np.array([y for _, y in found])


def small_h5py(own: Path) -> list[Callable[[], Iterator[Any]]]:
    import h5py

    file = h5py.File(own / "data.h5")
    x, y = file["x"], file["y"][:]

    def fancy() -> Iterator[Any]:
        rng = np.random.default_rng(0)
        while True:
            rows = rng.choice(len(x), SMALL_BATCH, replace=False)
            order = np.argsort(rows)
            batch = np.empty((SMALL_BATCH, *SHAPE), np.uint8)
            batch[order] = x[rows[order]]
            yield batch, y[rows]

    return [fancy]


class OfHdf5:
    """Opened in each worker: a handle does not survive a fork."""

    def __init__(self, path: Path) -> None:
        import h5py

        self.path, self.file = path, None
        with h5py.File(path) as file:
            self.y = file["y"][:].tolist()

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, at: int) -> Any:
        import h5py

        if self.file is None:
            self.file = h5py.File(self.path)
        return decode(self.file["x"][at].tobytes()), self.y[at]


def images_h5py(own: Path) -> Any:
    return OfHdf5(own / "data.h5")


# ---------------------------------------------------------------------------------------------- plain files


class OfFiles:
    """What most people begin with: one file per image."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(str(path) for path in (folder / "jpg").iterdir())

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, at: int) -> Any:
        return decode(Path(self.paths[at]).read_bytes()), at % 10


def images_files(folder: Path) -> Any:
    return OfFiles(folder)


if __name__ == "__main__":
    main()
