"""The tables next to a report: CSV for spreadsheets, Parquet for programs."""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pandas as pd
from pandas.api.types import is_object_dtype

from analysis.laws.power_law import PowerLaw
from analysis.laws.saturation import Saturation
from analysis.laws.spectral import SpectralEvidence
from analysis.refusal import Refusal
from analysis.report.comparisons import comparisons_table, differences_table
from analysis.report.data import sources_table
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.evidence import widths_of
from analysis.verdict.fixed_rates import FixedRate
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.layer_verdict import LayerVerdict, layer_laws, layer_rows
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS

#: A larger table is written as Parquet only: spreadsheets end at 1,048,576 rows.
MOST_CSV_ROWS = 200_000
#: Parameters of a fitted law that get columns for their bounds.
_BOUNDS = ("beta", "intercept")


def report_tables(
    tables: SweepTables, recommendation: Recommendation, layers: Mapping[str, LayerVerdict]
) -> dict[str, pd.DataFrame]:
    """Return the tables of a sweep by name; tables without columns are left out.

    Names: trials, laws, widths, layers, layer_laws, spectra, curves, comparisons, differences,
    sources. The axes of the grid are columns of each but the last three.
    """
    frames = {
        "trials": tables.trials.assign(holds=tables.trials["holds"].map("+".join)),
        "laws": _rows(recommendation, _law_rows, _laws_at_rate),
        "widths": _rows(recommendation, lambda verdict: verdict.alternatives, _widths_at_rate),
        "layers": _rows(recommendation, lambda verdict: _layer_rows(layers[verdict.slug])),
        "layer_laws": _rows(recommendation, lambda verdict: layer_laws(verdict.layers.spread)),
        "spectra": tables.with_axes(tables.spectra),
        "curves": tables.with_axes(tables.curves),
        "comparisons": comparisons_table(recommendation.comparisons),
        "differences": differences_table(recommendation.comparisons),
        "sources": sources_table(tables),
    }
    return {name: one_type(frame) for name, frame in frames.items() if len(frame.columns)}


def one_type(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with every column of mixed types turned into text.

    Parquet has one type per column, and an axis can hold numbers in some groups and a word in
    others.
    """
    mixed = [
        name
        for name in frame
        if is_object_dtype(frame[name]) and frame[name].dropna().map(type).nunique() > 1
    ]
    return frame.assign(**{str(name): frame[name].map(str, na_action="ignore") for name in mixed})


def written(frames: Mapping[str, pd.DataFrame]) -> Iterator[tuple[str, bytes]]:
    """Yield the key and the bytes of every file, below `tables/`."""
    for name, frame in frames.items():
        if has_csv(frame):
            yield f"tables/{name}.csv", frame.to_csv(index=False).encode()
        sink = io.BytesIO()
        frame.to_parquet(sink, index=False)
        yield f"tables/{name}.parquet", sink.getvalue()


def has_csv(frame: pd.DataFrame) -> bool:
    """Whether a table is also written as CSV."""
    return len(frame) <= MOST_CSV_ROWS


def all_laws(spectral: SpectralEvidence) -> dict[str, PowerLaw | Refusal]:
    """Return every law by quantity: ranks, asymmetry, utilisation, val_loss."""
    return {**spectral.laws, **spectral.utilisation, "val_loss": spectral.width_law}


def _rows(
    recommendation: Recommendation,
    of: Callable[[GroupVerdict], Iterable[dict[str, Any]]],
    at_rate: Callable[[FixedRate], Iterable[dict[str, Any]]] = lambda at: (),
) -> pd.DataFrame:
    """The rows of all groups, with the axes of the group as columns.

    Below a group that is tuned per width come the rows at each of its learning rates.
    """
    rows: list[dict[str, Any]] = []
    for verdict in recommendation.groups:
        rows += [{**verdict.group, **row} for row in of(verdict)]
        for at in verdict.at_rates:
            named = {**verdict.group, RATE_AXIS: at.learning_rate}
            rows += [{**named, **row} for row in at_rate(at)]
    return pd.DataFrame(rows)


def _law_rows(verdict: GroupVerdict) -> Iterator[dict[str, Any]]:
    return _laws(verdict.spectral)


def _laws_at_rate(at: FixedRate) -> Iterator[dict[str, Any]]:
    return _laws(at.spectral)


def _widths_at_rate(at: FixedRate) -> list[dict[str, Any]]:
    return widths_of(at.losses[0]) if at.losses else []


def _laws(spectral: SpectralEvidence) -> Iterator[dict[str, Any]]:
    for name, law in all_laws(spectral).items():
        row: dict[str, Any] = {"quantity": name, "excluded": sum(law.excluded.values())}
        if isinstance(law, Refusal):
            yield row | {"refused": law.reason}
            continue
        for parameter in _BOUNDS:
            low, high = getattr(law, f"{parameter}_interval")
            row |= {
                parameter: getattr(law, parameter),
                f"{parameter}_low": low,
                f"{parameter}_high": high,
            }
        row |= {
            "interval_method": law.interval_method,
            "r_squared": law.r_squared,
            "lack_of_fit_p": law.lack_of_fit_p,
            "widths": law.widths,
            "points": law.points,
        }
        if law.leave_one_out is not None:
            row |= dict(
                zip(("without_one_low", "without_one_high"), law.leave_one_out, strict=True)
            )
        yield row | _plateau(spectral.saturation.get(name))


def _plateau(found: Saturation | Refusal | None) -> dict[str, Any]:
    if not isinstance(found, Saturation):
        return {}
    return {
        "plateau_p": found.p,
        "plateau_from": found.onset,
        "plateau_from_low": found.onset_interval[0],
        "plateau_from_high": found.onset_interval[1],
    }


def _layer_rows(layers: LayerVerdict) -> list[dict[str, Any]]:
    return [] if isinstance(layers.advice, Refusal) else layer_rows(layers.advice)
