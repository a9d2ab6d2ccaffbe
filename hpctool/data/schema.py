"""The types of what `hpctool prepare` is told; the values stand in conf/prepare.yaml and conf/source/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig


@dataclass
class Source:
    """Where rows come from (conf/source/). A reader of your own has `_target_` and its own arguments instead."""

    #: digits, imagefolder, npz, csv, parquet, hdf5, webdataset or huggingface
    kind: str = MISSING
    #: the file or folder; files also by a pattern, "shards/*.csv"
    path: str | None = None
    #: the array or column with the labels; null where there are none
    label: str | None = None
    #: the array or column that names a row for ever; without it the file's name and the number of the row do
    key: str | None = None
    #: the arrays or columns to take; null takes all others
    columns: list[str] | None = None
    #: the array or column that says whose a row is (writer, patient); images: a regular expression with one pair of
    #: parentheses, which is searched in the path
    group: str | None = None
    #: the array or column that says which split a row belongs to; "folder": the first folder of the path does
    split: str | None = None
    #: the classes in the order of their index; null takes those that occur, sorted
    classes: list[str] | None = None
    #: parquet, hdf5: the column that holds encoded images
    image: str | None = None
    #: images: [height, width] of all; null insists that all are alike
    size: list[int] | None = None
    #: images of another size: resize, crop, pad; encoded keeps all as they are, to be decoded when they are read
    fit: str | None = None
    #: images: 1 for grey, 3 for colour; null takes what the first image has
    channels: int | None = None


@dataclass
class PrepareData:
    """What is made of the source."""

    #: the dataset, with a branch if it is not main: `digits` or `digits@mine`
    name: str = MISSING
    #: whether the rows come onto what the branch has, by its schema and its splits, instead of in its place
    append: bool = MISSING
    #: a name for the version that never moves
    tag: str | None = MISSING
    #: why; null says what was prepared
    message: str | None = MISSING
    #: the most rows that lie in one row group, the unit that ranks share out
    row_group_rows: int = MISSING
    #: and the most megabytes (2**20 bytes) of features
    row_group_mb: int = MISSING
    #: split → fraction of the rows; together 1. Where splits are given they only have their order from here
    splits: dict[str, float] = MISSING
    #: uid: each row by a hash of its key; group: all rows of a source.group together; stratified: each class in the
    #: same parts; given: as source.split or splits_from says. New rows never move old ones
    split_by: str = MISSING
    #: a csv with the columns key and split, for rows that are given theirs
    splits_from: str | None = MISSING
    #: rows with exactly the features of another: say, drop (the first stays) or refuse
    duplicates: str = MISSING
    #: whether rows come in random order, so that reading in sequence is reading at random
    shuffle: bool = MISSING
    #: none, or auto: columns of which packing saves more than 15 %
    compression: str = MISSING
    #: whether numbers may be NaN or infinite
    allow_nan: bool = MISSING


@dataclass
class PrepareConfig(JobConfig):
    """Everything of `hpctool prepare`."""

    data: PrepareData = MISSING
    #: a choice of conf/source/, typed by `Source`, or a `_target_` of your own
    source: dict[str, Any] = MISSING
