"""The types of the export job's configuration; the values stand in conf/export.yaml."""

from __future__ import annotations

from dataclasses import dataclass

from omegaconf import MISSING

from hpctool.launch.schema import JobConfig

#: The formats a bundle can hold, and the file of each.
FORMATS = {"torchscript": "model.ts"}


@dataclass
class BundleConfig:
    """What is written, and where."""

    #: the model's name: the bundle becomes models/<name>/<NNNN>; null takes the name of the run's dataset
    name: str | None = MISSING
    #: torchscript
    formats: list[str] = MISSING
    #: rows of the split whose answers the bundle carries to test itself with; the hardest are among them
    num_golden: int = MISSING


@dataclass
class Parity:
    """The gate: the exported file answers like the model it was made from."""

    #: a shape that tracing has baked in shows at one of these
    batch_sizes: list[int] = MISSING
    #: calls with each batch: TorchScript changes its kernels after the first
    repeats: int = MISSING
    #: allowed difference by the model's dtype, relative to the larger of 1 and the row's largest value
    tolerance: dict[str, float] = MISSING


@dataclass
class Calibration:
    """Temperature scaling."""

    #: fit a temperature; false leaves the probabilities as they are
    fit: bool = MISSING
    #: confidence bins of the calibration error
    num_bins: int = MISSING


@dataclass
class ReferenceConfig:
    """What the inputs looked like at export, kept as counts in fixed bins."""

    #: quantile bins of each statistic
    num_bins: int = MISSING


@dataclass
class DataConfig:
    """Held-out rows of the dataset version that the run learnt from."""

    #: temperature, golden rows and reference come from it, and every row of it is a parity test
    split: str = MISSING
    #: filled in by `resolve`
    name: str | None = MISSING


@dataclass
class ExportConfig(JobConfig):
    """`hpctool export`."""

    #: a run's id, or a sweep's: then its best run; any unique beginning of it. Pinned to the run's id.
    run: str = MISSING
    #: what `best` means in a sweep
    metric: str = MISSING
    #: max or min
    mode: str = MISSING
    data: DataConfig = MISSING
    bundle: BundleConfig = MISSING
    parity: Parity = MISSING
    calibration: Calibration = MISSING
    reference: ReferenceConfig = MISSING
