"""Parquet files, by pyarrow. Ranks share their row groups."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hpctool.data.ragged import Ragged
from hpctool.data.sources.arrays import choose_arrays, special_names
from hpctool.data.sources.arrow import ArrowSource, arrow_block, is_table, pyarrow
from hpctool.data.sources.base import (
    BLOCK_ROWS,
    Block,
    Piece,
    file_piece,
    piece_file,
    pin_of_files,
    source_files,
)
from hpctool.errors import SourceError, UnknownName


class ParquetFiles(ArrowSource):
    """A column for each of the file's; plain numbers alone become one column `x`. source.image holds images."""

    def pin(self) -> str:
        """The checksum of the file, after a look at its columns."""
        paths = self._files()
        for path in paths:
            self._names(path, self._opened(path))
        return pin_of_files(paths)

    def pieces(self) -> list[Piece]:
        paths = self._files()
        first = self._opened(paths[0])
        names = self._names(paths[0], first)
        table = is_table(self.source, first.schema_arrow, names)
        stack = [name for name in names if name not in special_names(self.source)] if table else []
        self.shared = {"names": names, "stack": stack, "images": {}}
        found: list[Piece] = []
        for path in paths:
            start = 0
            metadata = self._opened(path).metadata
            for number in range(metadata.num_row_groups):
                found.append(file_piece(path, row_group=number, start=start))
                start += metadata.row_group(number).num_rows
        if self.source.image and found:
            self.shared["images"] = self._survey(found)
        return found

    def blocks(self, piece: Piece) -> Iterator[Block]:
        path, start = piece_file(piece), piece["start"]
        file = self._opened(path)
        names = self._names(path, file)
        # A row group of images may be big: the reader is asked for few rows at a time.
        size = file.metadata.row_group(piece["row_group"]).total_byte_size
        rows = max(1, file.metadata.row_group(piece["row_group"]).num_rows)
        batch_rows = max(1, min(BLOCK_ROWS, (32 << 20) // max(1, size // rows)))
        try:
            batches = file.iter_batches(batch_rows, row_groups=[piece["row_group"]], columns=names)
            for batch in batches:
                table = pyarrow().Table.from_batches([batch])
                yield arrow_block(self.source, path, start, table, self.shared["stack"])
                start += len(table)
        except (OSError, pyarrow().ArrowException) as error:
            raise SourceError(path, f"it cannot be read as parquet ({error}).") from error

    def _survey(self, pieces: list[Piece]) -> dict[str, Any]:
        """How the images of `source.image` are brought to one form, from the first of them."""
        name = self.source.image
        assert name is not None, "asked only where there are images"
        block = next(self.blocks(pieces[0]))
        if name not in block.columns:
            raise UnknownName(f"column of features in {pieces[0]['name']} called", name, block.columns)
        encoded = block.columns[name]
        if not isinstance(encoded, Ragged):
            raise SourceError(pieces[0]["name"], f"column '{name}' (source.image) holds no bytes.")
        return self.images.survey([name], lambda _: encoded[0].tobytes(), f"row '{block.keys[0]}'")

    def _files(self) -> list[Path]:
        return source_files(self.source.path, "a table", [".parquet"])

    def _names(self, path: Path, file: Any) -> list[str]:
        return choose_arrays(self.source, path, file.schema_arrow.names, "column")

    def _opened(self, path: Path) -> Any:
        pyarrow()
        from pyarrow import parquet

        try:
            return parquet.ParquetFile(path)
        except (OSError, pyarrow().ArrowException) as error:
            raise SourceError(path, f"it cannot be read as parquet ({error}).") from error
