"""Statistics of inputs and answers, and their histograms in bins that are fixed once: what drift is measured with.

No raw data is needed to compare: a monitor counts new values in the bins of the reference.

N rows, H height, W width, C channels, K classes
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]
Statistics = dict[str, npt.NDArray[np.float64]]

BLOCKS = 4  # an image is looked at in BLOCKS × BLOCKS parts
MAX_FEATURES = 64  # rows with more values are described as a whole only


def input_statistics(x: npt.NDArray[Any]) -> Statistics:
    """Numbers that describe each input row, float64 (N,) by name; which ones depends on dtype and shape.

    Images uint8 (N, H, W, C): brightness, contrast, sharpness and the brightness of 4 × 4 blocks, 0..1.
    Anything else (N, …): mean, std, min and max of the row's values, and up to 64 values each by itself.
    """
    if x.dtype == np.uint8 and x.ndim == 4:
        return _image_statistics(x)
    flat = x.reshape(len(x), -1).astype(np.float64)
    found = {"mean": flat.mean(axis=1), "std": flat.std(axis=1), "min": flat.min(axis=1), "max": flat.max(axis=1)}
    if flat.shape[1] <= MAX_FEATURES:
        found.update({f"value_{i:02d}": flat[:, i] for i in range(flat.shape[1])})
    return found


def output_statistics(probabilities_NK: Floats) -> Statistics:
    """confidence (of the first), margin (first minus second) and entropy (nats), float64 (N,) by name."""
    p_NK = probabilities_NK.astype(np.float64)
    ranked_NK = np.sort(p_NK, axis=1)[:, ::-1]
    second_N = ranked_NK[:, 1] if p_NK.shape[1] > 1 else np.zeros(len(p_NK))
    entropy_N = -(p_NK * np.log(np.maximum(p_NK, 1e-300))).sum(axis=1)
    return {"confidence": ranked_NK[:, 0], "margin": ranked_NK[:, 0] - second_N, "entropy": entropy_N}


def quantile_edges(values_N: Floats, num_bins: int) -> list[float]:
    """The inner edges of bins that hold about equally many of these values; the outer bins are open.

    Fewer where values repeat. A largest value that many share gets a bin of its own, as a constant does, so that any
    other value is seen.
    """
    known = values_N[np.isfinite(values_N)]
    if len(known) == 0:
        return []
    high = float(known.max())
    inner = np.quantile(known, np.linspace(0, 1, num_bins + 1)[1:-1], method="inverted_cdf").astype(np.float64)
    if high in inner:
        inner = np.append(inner, np.nextafter(high, -np.inf))
    return [float(edge) for edge in np.unique(inner)]


def count(values_N: Floats, edges: list[float]) -> tuple[list[int], int]:
    """How many values lie in each bin (… edge_i], and how many are not a number."""
    missing = np.isnan(values_N)
    which = np.searchsorted(np.asarray(edges, np.float64), values_N[~missing], side="left")
    return np.bincount(which, minlength=len(edges) + 1).tolist(), int(missing.sum())


def histogram(values_N: Floats, num_bins: int) -> dict[str, Any]:
    """A reference histogram: edges (k), counts (k + 1), num_missing; JSON values."""
    edges = quantile_edges(values_N, num_bins)
    counts, num_missing = count(values_N, edges)
    return {"edges": edges, "counts": counts, "num_missing": num_missing}


def _image_statistics(x_NHWC: npt.NDArray[np.uint8]) -> Statistics:
    grey_NHW = x_NHWC.mean(axis=3) / 255.0
    across = np.abs(np.diff(grey_NHW, axis=2)).mean(axis=(1, 2)) if grey_NHW.shape[2] > 1 else 0.0
    down = np.abs(np.diff(grey_NHW, axis=1)).mean(axis=(1, 2)) if grey_NHW.shape[1] > 1 else 0.0
    found = {
        "brightness": grey_NHW.mean(axis=(1, 2)),
        "contrast": grey_NHW.std(axis=(1, 2)),
        "sharpness": np.broadcast_to((across + down) / 2, len(grey_NHW)).astype(np.float64),
    }
    for r, band in enumerate(np.array_split(grey_NHW, min(BLOCKS, grey_NHW.shape[1]), axis=1)):
        for c, block in enumerate(np.array_split(band, min(BLOCKS, grey_NHW.shape[2]), axis=2)):
            found[f"block_{r}{c}"] = block.mean(axis=(1, 2))
    return found
