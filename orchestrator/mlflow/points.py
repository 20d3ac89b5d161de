"""How a trial appears in MLflow: its name, params and tags, and its rows as metric points.

Pure functions: dictionaries and rows in, texts and points out.
"""

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from analysis.sampling_bias import debiased_hard_rank
from orchestrator.mlflow.tracking import METRICS_PER_CALL, Point
from trialstore.records import ALL_TOKENS, FIRST_SEMANTICS, METRICS, SPECTRA

#: Column of the metrics table -> metric, by the kind of row.
METRIC_NAMES = {
    "train": {
        "train_loss": "train/loss",
        "learning_rate": "train/learning_rate",
        "grad_norm": "train/grad_norm",
        "tokens_per_s": "throughput/tokens_per_s",
        "mfu": "throughput/mfu",
    },
    "evaluation": {
        "val_loss": "val/loss",
        "val_loss_se": "val/loss_se",
        "val_perplexity": "val/perplexity",
        "val_bits_per_byte": "val/bits_per_byte",
    },
}
#: Metrics of every layer. js_divergence is null if only one site is recorded, and gives no point.
LAYER_METRICS = (
    "hard_rank",
    "soft_rank",
    "edim",
    "hard_utilisation",
    "soft_utilisation",
    "concentration",
    "top1_share",
    "js_divergence",
)
#: Metrics of the median layer: also those that follow from the others or rarely change.
MEDIAN_METRICS = (*LAYER_METRICS, "sui", "n_over_d")
#: Median of what no record has: it is computed from a row's hard rank, N and D.
DEBIASED = "hard_rank_debiased"

COLUMNS = {
    METRICS: ["step", "time_ms", "kind", *(c for names in METRIC_NAMES.values() for c in names)],
    SPECTRA: ["step", "time_ms", "site", "layer", "bucket", "N", "D", *MEDIAN_METRICS],
}

Row = Mapping[str, Any]


class _Value(NamedTuple):
    name: str
    value: float | None
    time_ms: int


@dataclass(frozen=True)
class StepPoints:
    """All points of one table at one step. The watermark marks them as sent together."""

    table: str
    step: int
    points: tuple[Point, ...]
    nonfinite: int  # NaN and infinities, which MLflow cannot store


def step_points(table: str, rows: Iterable[Row]) -> Iterator[StepPoints]:
    """Turn the rows of a table into points, one group for each step.

    Args:
        table: METRICS or SPECTRA.
        rows: In order of step. Null means not measured and gives no point.

    Returns:
        The points; for spectra also those of the median over layers.
    """
    values_of = _metrics if table == METRICS else _spectra
    for step, of_step in groupby(rows, key=lambda row: row["step"]):
        values = [value for value in values_of(list(of_step)) if value.value is not None]
        points = [
            Point(name, value, time_ms, step)
            for name, value, time_ms in values
            if value is not None and math.isfinite(value)
        ]
        yield StepPoints(table, step, tuple(points), len(values) - len(points))


def table_of(key: str) -> str:
    """Return the table that a metric key comes from."""
    return SPECTRA if key.startswith("spectra/") else METRICS


def _metrics(rows: Sequence[Row]) -> Iterator[_Value]:
    for row in rows:
        for column, name in METRIC_NAMES[row["kind"]].items():
            yield _Value(name, row[column], row["time_ms"])


def _spectra(rows: Sequence[Row]) -> Iterator[_Value]:
    ordered = sorted(rows, key=lambda row: (row["site"], row["bucket"], row["layer"]))
    for (site, bucket), alike in groupby(ordered, key=lambda row: (row["site"], row["bucket"])):
        layers = list(alike)
        within = "" if bucket == ALL_TOKENS else f"{bucket}/"
        for row in layers:
            place = f"spectra/{site}/L{row['layer']:02d}/{within}"
            for name in LAYER_METRICS:
                yield _Value(f"{place}{name}", row[name], row["time_ms"])
        yield from _medians(f"spectra/{site}/median/{within}", layers)


def _medians(place: str, layers: Sequence[Row]) -> Iterator[_Value]:
    time_ms = max(row["time_ms"] for row in layers)
    for name in MEDIAN_METRICS:
        known = [row[name] for row in layers if row[name] is not None and math.isfinite(row[name])]
        if known:  # otherwise every layer is counted as not finite already
            yield _Value(f"{place}{name}", statistics.median(known), time_ms)
    debiased = [rank for rank in map(_debiased, layers) if math.isfinite(rank)]
    if debiased:
        yield _Value(f"{place}{DEBIASED}", statistics.median(debiased), time_ms)


def _debiased(row: Row) -> float:
    rank, samples, width = (row.get(name) for name in ("hard_rank", "N", "D"))
    if rank is None or samples is None or width is None:
        return math.nan
    return float(debiased_hard_rank(rank, samples, width))


def batches(
    steps: Iterable[StepPoints], limit: int = METRICS_PER_CALL
) -> Iterator[tuple[list[Point], list[StepPoints]]]:
    """Divide steps into calls of at most `limit` points.

    Each call comes with the steps that it completes. A large step fills several calls.
    """
    points: list[Point] = []
    ended: list[StepPoints] = []
    for step in steps:
        if points and len(points) + len(step.points) > limit:
            yield points, ended
            points, ended = [], []
        points += step.points
        ended.append(step)
        while len(points) > limit:  # one step of many layers fills several calls
            yield points[:limit], []
            points = points[limit:]
    if ended:
        yield points, ended


# --- names, params, tags -------------------------------------------------------------------

#: Axes that `run_name` words itself.
NAMED_AXES = frozenset(
    {
        "architecture",
        "norm",
        "width_multiplier",
        "ffn_width",
        "d_model",
        "D",
        "depth",
        "seed",
        "hold",
    }
)


def run_name(spec: Mapping[str, Any]) -> str:
    """Return the name of a trial's run, such as ``gpt2 pre 4x d64 L2 s0``, then any further axes.

    Short, because MLflow's table cuts a name off after about twenty characters.
    """
    model = spec["model"]
    widths = [width / model["d_model"] for width in model["ffn_widths"]]
    multiplier = f"{min(widths):.3g}x" if len(set(widths)) == 1 else _range(widths)
    words = [model["architecture"], model["norm"], multiplier, f"d{model['d_model']}"]
    words += [f"L{len(widths)}", f"s{spec['replicate']}"]
    further = sorted((spec.get("axes") or {}).items())
    words += [f"{name} {_text(value)}" for name, value in further if name not in NAMED_AXES]
    return " ".join(words)


def _range(widths: Sequence[float]) -> str:
    return f"{min(widths):.3g}-{max(widths):.3g}x"


def axis_texts(spec: Mapping[str, Any], holds: Sequence[str]) -> dict[str, str]:
    """Return the tags and params of a grid cell: the axes of the sweep file, with achieved values.

    ``width_multiplier`` is the achieved D / d_model, which every law uses.
    """
    model = spec["model"]
    widths = list(dict.fromkeys(model["ffn_widths"]))
    texts = {
        "architecture": model["architecture"],
        "norm": model["norm"],
        "depth": _text(len(model["ffn_widths"])),
        "d_model": _text(model["d_model"]),
        "D": _text(widths[0] if len(widths) == 1 else widths),
        "seed": _text(spec["replicate"]),
    }
    if len(widths) == 1:
        texts["width_multiplier"] = f"{widths[0] / model['d_model']:.4g}"
    if holds:
        texts["hold"] = ", ".join(holds)
    return {**{key: _text(value) for key, value in (spec.get("axes") or {}).items()}, **texts}


def planned_name(axes: Mapping[str, Any]) -> str:
    """Return `run_name` for a trial that failed before it had a spec: from its axes in the plan."""
    words = [axes.get("architecture"), axes.get("norm"), f"D{_text(axes.get('D'))}"]
    words += [f"d{axes.get('d_model')}", f"L{axes.get('depth')}", f"s{axes.get('seed')}"]
    return " ".join(map(str, words))


def planned_texts(axes: Mapping[str, Any], holds: Sequence[str]) -> dict[str, str]:
    """Return `axis_texts` for a trial without a spec, without axes that may change in its spec."""
    unsure = ("width_multiplier", "D") if isinstance(axes.get("D"), list) else ("width_multiplier",)
    texts = {key: _text(value) for key, value in axes.items() if key not in unsure}
    if holds:
        texts["hold"] = ", ".join(holds)
    return texts


def spec_params(spec: Mapping[str, Any]) -> dict[str, str]:
    """Return the params of a spec with dotted keys, such as ``training.learning_rate``.

    Without the axes and without the paths of the corpus, which spec.json has.
    """
    sections = ("model", "training", "data", "evaluation", "spectra", "layout")
    chosen = {section: spec[section] for section in sections if section in spec}
    source = spec.get("source") or {}
    chosen["source"] = {name: (part or {}).get("kind") for name, part in source.items()}
    chosen |= {key: spec.get(key) for key in ("kind", "parent")}
    chosen["semantics_version"] = spec.get("semantics_version", FIRST_SEMANTICS)
    return flat(chosen)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted keys, without null values."""
    texts: dict[str, str] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            texts |= flat(item, f"{prefix}{key}.")
        elif item is not None:
            texts[f"{prefix}{key}"] = _text(item)
    return texts


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value))
    return json.dumps(value)


# --- the sweep's note ----------------------------------------------------------------------


def progress(counts: Mapping[str, int]) -> str:
    """Return the number of trials in each state, such as ``3 completed, 1 running``."""
    return ", ".join(f"{count} {state}" for state, count in sorted(counts.items()) if count)


def note(counts: Mapping[str, int], recommendation: Mapping[str, Any] | None) -> str:
    """Return the parent run's description in Markdown: every verdict, then the progress.

    Args:
        counts: Trials by state.
        recommendation: The content of recommendation.json; None before the first analysis, and
            then the description is the progress alone.
    """
    lines = [_verdict(group) for group in (recommendation or {}).get("groups", [])]
    return "\n\n".join([*lines, f"{sum(counts.values())} trials: {progress(counts)}."])


def _verdict(group: Mapping[str, Any]) -> str:
    return f"**{group.get('label', 'all trials')}**: {group.get('sentence', 'see the report')}."
