"""Turn a trial's metric points back into table rows: the inverse of `orchestrator.mlflow.points`.

MLflow lacks eigenvalues, nodes and weights, method and error estimate, the share of the ten
largest, the total variance, and all numbers that were not finite. These are null.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from analysis.spectrum import sampling_status, utilisation_index
from orchestrator.mlflow.points import LAYER_METRICS, METRIC_NAMES, Row
from orchestrator.mlflow.tracking import Point
from trialstore.records import ALL_TOKENS, BUCKETS, BrokenRecordError

_COLUMN_OF = {
    name: (kind, column) for kind, names in METRIC_NAMES.items() for column, name in names.items()
}
_BUCKET = f"(?:({'|'.join(BUCKETS)})/)?"
_LAYER = re.compile(rf"spectra/(pre|post)/L(\d+)/{_BUCKET}({'|'.join(LAYER_METRICS)})")
_SAMPLING = re.compile(rf"spectra/(pre|post)/median/{_BUCKET}n_over_d")


def needed(keys: Iterable[str]) -> list[str]:
    """Return the metrics that rows are made from. Medians over layers follow from the others."""
    return sorted(
        key
        for key in keys
        if key in _COLUMN_OF or _LAYER.fullmatch(key) or _SAMPLING.fullmatch(key)
    )


def metrics_rows(points: Iterable[Point], batch_tokens: int) -> list[Row]:
    """Build the rows of the metrics table, in order of step.

    Args:
        points: The points of a trial's run.
        batch_tokens: Tokens in one optimiser update.
    """
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for key, value, time_ms, step in points:
        if key in _COLUMN_OF:
            kind, column = _COLUMN_OF[key]
            row = rows.setdefault(
                (step, kind),
                {"step": step, "tokens": step * batch_tokens, "kind": kind, "time_ms": 0},
            )
            row["time_ms"] = max(row["time_ms"], time_ms)
            row[column] = value
    return [rows[place] for place in sorted(rows)]


def spectra_rows(
    points: Iterable[Point], batch_tokens: int, ffn_widths: Sequence[int]
) -> list[Row]:
    """Build the rows of the spectra table, in order of step.

    Args:
        points: The points of a trial's run.
        batch_tokens: Tokens in one optimiser update.
        ffn_widths: D of every layer.

    Raises:
        BrokenRecordError: A point belongs to a layer beyond `ffn_widths`, or the number of samples
            is missing.
    """
    rows: dict[tuple[int, str, int, str], dict[str, Any]] = {}
    samples: dict[tuple[int, str, str], int] = {}
    # Every layer has the same N samples, so the median of N/D is N times the median of 1/D.
    inverse_width = median(1 / width for width in ffn_widths)
    for key, value, time_ms, step in points:
        if match := _LAYER.fullmatch(key):
            site, layer, bucket, column = match.groups()
            place = (step, site, int(layer), bucket or ALL_TOKENS)
            row = rows.setdefault(place, {"time_ms": 0})
            row["time_ms"] = max(row["time_ms"], time_ms)
            row[column] = value
        elif match := _SAMPLING.fullmatch(key):
            site, bucket = match.groups()
            samples[step, site, bucket or ALL_TOKENS] = round(value / inverse_width)
    return [
        _spectrum(place, rows[place], samples, batch_tokens, ffn_widths) for place in sorted(rows)
    ]


def _spectrum(
    place: tuple[int, str, int, str],
    found: Mapping[str, Any],
    samples: Mapping[tuple[int, str, str], int],
    batch_tokens: int,
    ffn_widths: Sequence[int],
) -> dict[str, Any]:
    step, site, layer, bucket = place
    if layer >= len(ffn_widths):
        raise BrokenRecordError(
            f"MLflow has spectra of layer {layer}, but spec.json has {len(ffn_widths)} layers"
        )
    count = samples.get((step, site, bucket))
    if not count:
        raise BrokenRecordError(
            f"MLflow lacks the number of samples of the {site} spectra at step {step}"
        )
    width = ffn_widths[layer]
    hard, soft = found.get("hard_rank", math.nan), found.get("soft_rank", math.nan)
    sui = float(utilisation_index(hard, soft, width))
    return {
        "step": step,
        "tokens": step * batch_tokens,
        "site": site,
        "layer": layer,
        "bucket": bucket,
        "D": width,
        "N": count,
        "n_over_d": count / width,
        "status": sampling_status(count, width),
        "sui": sui if math.isfinite(sui) else None,
        **found,
    }
