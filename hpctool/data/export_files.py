"""A version as files: WebDataset tars, or a folder of images for each class.

Rows are named by their uid, classes by their name, made safe: what a class is called cannot lead out of the folder.
"""

from __future__ import annotations

import io
import json
import tarfile
import urllib.parse
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hpctool.data.manifest import LABEL, UNLABELLED, Column
from hpctool.errors import InputError
from hpctool.world import Array

if TYPE_CHECKING:
    from hpctool.data.export import Job

_SHARD_BYTES = 512 << 20
#: the first bytes of encoded images, and what such files are called
_MAGIC = {b"\xff\xd8\xff": "jpg", b"\x89PNG": "png", b"GIF8": "gif", b"RIFF": "webp", b"BM": "bmp", b"II*\0": "tif"}


def write_tars(job: Job, path: Path) -> None:
    """`<split>-000000.tar` of half a gigabyte each, and about.json: `<uid>.png` (or .jpg …), `.cls`, `<column>.npy`."""
    path.mkdir()
    (path / "about.json").write_text(json.dumps(job.about, indent=1) + "\n")
    with ExitStack() as stack:
        shards = {split: stack.enter_context(_Shards(path, split)) for split in job.splits}
        single = [name for name, column in job.columns.items() if is_image(column)]
        for block in job.blocks():
            for row, (uid, split) in enumerate(zip(block.uids, block.splits, strict=True)):
                parts = []
                for name, values in block.columns.items():
                    column, value = job.columns[name], values[row]
                    if name == LABEL:
                        parts += [("cls", str(int(value)).encode())] if value >= 0 else []
                    elif is_image(column):
                        suffix, data = encoded(column, value)
                        parts.append((suffix if single == [name] else f"{name}.{suffix}", data))
                    else:
                        parts.append((f"{name}.npy", _npy(value)))
                shards[split].add(uid, parts)


def write_images(job: Job, path: Path) -> None:
    """`<split>/<class>/<uid>.png`, or as the images are encoded. Raises InputError unless there is one image column."""
    images = [name for name, column in job.columns.items() if is_image(column)]
    if len(images) != 1:
        found = f"{len(images)} columns of images" if images else "no column of images (uint8, H × W × 1, 3 or 4)"
        raise InputError(f"A folder of images takes one column of them; {job.version.ref} has {found}. See --column.")
    folders = [safe_name(name) for name in job.version.classes] + [UNLABELLED]
    path.mkdir()
    (path / "about.json").write_text(json.dumps(job.about, indent=1) + "\n")
    for split in job.splits:
        for folder in folders if LABEL in job.columns else ["."]:
            (path / split / folder).mkdir(parents=True, exist_ok=True)
    columns = [images[0], *([LABEL] if LABEL in job.columns else [])]
    for block in job.blocks(columns):
        labels = np.asarray(block.columns[LABEL]) if LABEL in block.columns else None
        for row, (uid, split) in enumerate(zip(block.uids, block.splits, strict=True)):
            suffix, data = encoded(job.columns[images[0]], block.columns[images[0]][row])
            folder = folders[int(labels[row])] if labels is not None else "."
            (path / split / folder / f"{uid}.{suffix}").write_bytes(data)
    for empty in path.glob(f"*/{UNLABELLED}"):
        if not any(empty.iterdir()):
            empty.rmdir()


def is_image(column: Column) -> bool:
    """Whether a column holds images, as pixels or encoded."""
    pixels = column.dtype == np.uint8 and len(column.shape) == 3 and column.shape[2] in (1, 3, 4) and not column.ragged
    return pixels or column.encoding == "image"


def encoded(column: Column, value: Array) -> tuple[str, bytes]:
    """An image's suffix and bytes: PNG from pixels (H, W, C), and as they are where they are encoded."""
    if column.encoding:
        data = value.tobytes()
        return next((suffix for magic, suffix in _MAGIC.items() if data.startswith(magic)), "bin"), data
    from PIL import Image

    memory = io.BytesIO()
    Image.fromarray(value[..., 0] if value.shape[2] == 1 else value).save(memory, "PNG")
    return "png", memory.getvalue()


def safe_name(name: str) -> str:
    """A class's name as the name of a folder: letters, digits, spaces and a few signs as they are, others as %xx."""
    quoted = urllib.parse.quote(name, safe=" ,;=()[]+@&")
    return quoted.replace(".", "%2E", 1) if quoted.startswith(".") else quoted or "%"


class _Shards:
    """Tars of one split, each begun when the one before is large enough."""

    def __init__(self, folder: Path, split: str) -> None:
        self.folder, self.split = folder, split
        self.number, self.size_bytes = 0, 0
        self.tar: tarfile.TarFile | None = None

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, *_: object) -> None:
        if self.tar is not None:
            self.tar.close()

    def add(self, uid: str, parts: list[tuple[str, bytes]]) -> None:
        """One sample: its files stand together, as readers expect."""
        if self.tar is None or self.size_bytes > _SHARD_BYTES:
            if self.tar is not None:
                self.tar.close()
            self.tar = tarfile.TarFile(self.folder / f"{self.split}-{self.number:06d}.tar", "x")
            self.number, self.size_bytes = self.number + 1, 0
        for suffix, data in parts:
            info = tarfile.TarInfo(f"{uid}.{suffix}")
            info.size = len(data)  # no time, no owner: the same version gives the same bytes
            self.tar.addfile(info, io.BytesIO(data))
            self.size_bytes += len(data)


def _npy(value: Any) -> bytes:
    memory = io.BytesIO()
    np.lib.format.write_array(memory, np.asarray(value), allow_pickle=False)
    return memory.getvalue()
