"""A folder that Hugging Face's `save_to_disk` wrote, a dataset or a dict of them. Its Arrow files are read by pyarrow.

The package `datasets` is not needed. Class labels and images are known from the folder's own description; each
dataset of a dict is a split, which counts with data.split_by=given. Images must be in the files: what a path in there
names is never opened. A selection that was saved as indices beside the data is refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpctool import files
from hpctool.data.manifest import NO_LABEL
from hpctool.data.ragged import Ragged
from hpctool.data.schema import Source
from hpctool.data.sources.arrays import choose_arrays, special_names
from hpctool.data.sources.arrow import ArrowSource, arrow_block, is_table, pyarrow
from hpctool.data.sources.base import Block, Piece, file_piece, piece_file, pin_of_files
from hpctool.errors import CorruptError, SourceError


class HuggingFaceFolder(ArrowSource):
    """A column for each feature of the dataset."""

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self.root = Path(source.path or "")

    def pin(self) -> str:
        """Names, sizes and times of the Arrow files, after a look at the description."""
        paths = [path for _, path in self._files()]
        with _opened(paths[0]) as batches:
            choose_arrays(self.source, paths[0], batches.schema.names, "column")
        return pin_of_files(paths)

    def pieces(self) -> list[Piece]:
        found = self._files()
        with _opened(found[0][1]) as batches:
            names = choose_arrays(self.source, found[0][1], batches.schema.names, "column")
            table = is_table(self.source, batches.schema, names)
        described = self._description(found[0][1].parent)
        label = described.get(self.source.label or "", {})
        if self.classes is None and label.get("_type") == "ClassLabel":
            self.classes = [str(name) for name in label["names"]]
        features = [name for name in names if name not in special_names(self.source)]
        images = [name for name in features if described.get(name, {}).get("_type") == "Image"]
        arrays = {name: described.get(name, {}).get("shape") for name in features}
        shapes = {name: shape for name, shape in arrays.items() if shape and None not in shape}
        self.shared = {"names": names, "stack": features if table else [], "images": {}, "shapes": shapes}
        pieces: list[Piece] = []
        rows: dict[str, int] = {}
        for split, path in found:
            pieces.append(file_piece(path, split=split, start=rows.setdefault(split, 0)))
            with _opened(path) as batches:
                rows[split] += sum(len(batch) for batch in batches)
        if images:
            block = next(self.blocks(pieces[0]))

            def first(name: str) -> bytes:
                values = block.columns[name]
                assert isinstance(values, Ragged), "images are bytes"
                return values[0].tobytes()

            self.shared["images"] = self.images.survey(images, first, f"row '{block.keys[0]}'")
        return pieces

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path, start = piece_file(piece), piece["start"]
        try:
            with _opened(path) as batches:
                for batch in batches:
                    table = pyarrow().Table.from_batches([batch]).select(self.shared["names"])
                    if len(table):
                        yield self._block(path, piece["split"], start, table)
                    start += len(table)
        except (OSError, pyarrow().ArrowException) as error:
            raise SourceError(path, f"it cannot be read as Arrow ({error}).") from error

    def _block(self, path: Path, split: str, start: int, table: Any) -> Block:
        block = arrow_block(self.source, path, start, table, self.shared["stack"])
        if self.source.key is None:
            # Not by file: how many there are depends on how it was saved.
            block.keys = [f"{split or self.root.name}#{start + row}" for row in range(len(table))]
        if (
            block.labels is not None
            and self.classes is not None
            and table.schema.field(self.source.label).type in _ints()
        ):
            values = table.column(self.source.label).to_pylist()
            block.labels = [
                self.classes[v] if 0 <= v < len(self.classes) else ("" if v == NO_LABEL else str(v)) for v in values
            ]
        for name, shape in self.shared["shapes"].items():
            values = block.columns[name]
            if isinstance(values, Ragged):  # lists in the file, arrays of one shape by its description
                if values.values.size != len(table) * math.prod(shape):
                    raise SourceError(path, f"column '{name}' does not hold arrays of {tuple(shape)}.")
                block.columns[name] = values.values.reshape(len(table), *shape)
        for name in self.shared["images"]:
            values = block.columns[name]
            if isinstance(values, Ragged) and not values.lengths.all():
                row = values.lengths.tolist().index(0)
                raise block.error(row, f"image '{name}' is not in the file, and a path is not followed.")
        if split and self.source.split == "folder":
            block.splits = [split] * len(table)
        return block

    def _files(self) -> list[tuple[str, Path]]:
        """The split and path of each Arrow file, in order. SourceError."""
        root = self.root
        if not self.source.path or not root.is_dir():
            raise SourceError(self.source.path or "source.path", "there is no such folder that save_to_disk wrote.")
        if (root / "dataset_dict.json").is_file():
            splits = _json(root / "dataset_dict.json").get("splits", [])
            folders = [(str(split), root / str(split)) for split in splits]
        else:
            folders = [("", root)]
        found = []
        for split, folder in folders:
            state = _json(folder / "state.json")
            if state.get("_indices_files") or state.get("_indices_data_files"):
                raise SourceError(folder, "it is a selection of rows by indices; save it again with flatten_indices().")
            names = [str(file["filename"]) for file in state.get("_data_files", [])]
            if wrong := [name for name in names if Path(name).name != name]:
                raise SourceError(folder, f"its state.json names a file outside of it, '{wrong[0]}'.")
            found += [(split, folder / name) for name in names]
        if not found:
            raise SourceError(root, "it names no data files.")
        return found

    def _description(self, folder: Path) -> dict[str, Any]:
        features = _json(folder / "dataset_info.json").get("features")
        return {n: f for n, f in features.items() if isinstance(f, dict)} if isinstance(features, dict) else {}


def _ints() -> set[Any]:
    pa = pyarrow()
    return {pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(files.read_json(path))
    except (OSError, CorruptError, TypeError, ValueError) as error:
        raise SourceError(path, "it cannot be read; the folder is none that save_to_disk wrote.") from error


def _opened(path: Path) -> Any:
    """The record batches of an Arrow file, in sequence: a context manager. SourceError."""
    pa = pyarrow()
    try:
        file = pa.memory_map(str(path), "r")
        return pa.ipc.open_stream(file)
    except (OSError, pa.ArrowException) as error:
        raise SourceError(path, f"it cannot be read as Arrow ({error}).") from error
