"""The types of what `hpctool prepare` is told; the values stand in conf/prepare.yaml and conf/source/."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig


@dataclass
class Source:
    """Where rows come from (conf/source/). A reader of your own has `_target_` and its own arguments instead."""

    #: digits, imagefolder, npz or csv
    kind: str = MISSING
    #: the file or folder
    path: str | None = None
    #: npz: the array with the labels; csv: the column with the labels; null where there are none
    label: str | None = None
    #: npz, csv: what names a row for ever; without it the file's name and the number of the row do
    key: str | None = None
    #: npz, csv: the arrays or columns to take; null takes all others
    columns: list[str] | None = None
    #: the classes in the order of their index; null takes those that occur, sorted
    classes: list[str] | None = None
    #: imagefolder: [height, width] to which images are resized; null insists that all are alike
    size: list[int] | None = None
    #: imagefolder: 1 for grey, 3 for colour; null takes what the first image has
    channels: int | None = None


@dataclass
class PrepareData:
    """What is made of the source."""

    #: the dataset, with a branch if it is not main: `digits` or `digits@mine`
    name: str = MISSING
    #: a name for the version that never moves
    tag: str | None = MISSING
    #: why; null says what was prepared
    message: str | None = MISSING
    #: the most rows that lie in one row group, the unit that ranks share out
    row_group_rows: int = MISSING
    #: and the most megabytes (2**20 bytes) of features
    row_group_mb: int = MISSING
    #: split → fraction of the rows; together 1
    splits: dict[str, float] = MISSING


@dataclass
class PrepareConfig(JobConfig):
    """Everything of `hpctool prepare`."""

    data: PrepareData = MISSING
    #: a choice of conf/source/, typed by `Source`, or a `_target_` of your own
    source: dict[str, Any] = MISSING
