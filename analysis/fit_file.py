"""`widthlab fit`: the body of the command. Reads a table, fits, and says what it found."""

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.fit.fit_table import (
    GroupFit,
    Request,
    TableFit,
    fit_table,
    intervals_of,
    parameters_of,
    warnings_of,
)
from analysis.fit.saturating_law import SaturatingLaw
from analysis.fit.scaling_fit import FLAT_WITHIN, ScalingLaw
from analysis.laws.power_law import PowerLaw, Refusal
from analysis.wording import percent, plural
from trialstore.errors import InputError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_SEPARATOR_NAMES = {";": "semicolons", ",": "commas", "\t": "tabs"}
_FIGURES = (".svg", ".png")


def fit(table: Path | pd.DataFrame, request: Request, figure: Path | None) -> TableFit:
    """Fit a law to a table and draw it.

    Args:
        table: A .csv, .tsv or .parquet file, or a frame.
        request: The law, its columns, rows and groups.
        figure: A .svg or .png file to draw to, if any.

    Raises:
        InputError: Table, request or figure cannot be used, or no group carries the law.
    """
    if figure is not None:
        _check_figure(figure)
    fitted = fit_table(_frame(table), request)
    if figure is not None:
        from analysis.figures.fit_figure import fit_figure
        from analysis.figures.style import render

        drawn = render(fit_figure(fitted, request.columns))
        try:
            figure.write_bytes(drawn[figure.suffix.lower().removeprefix(".")])
        except OSError as error:
            raise InputError(f"--figure {figure}: {error.strerror}") from error
    return fitted


def assignments(pairs: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """`column=value` as (column, value). Raises InputError."""
    found = []
    for pair in pairs:
        column, sign, value = pair.partition("=")
        if not sign or not column:
            raise InputError(f"--where {pair!r} is not column=value")
        found.append((column.strip(), value.strip()))
    return tuple(found)


# --- reading ---------------------------------------------------------------------------------


def _frame(table: Path | pd.DataFrame) -> pd.DataFrame:
    """A table by row numbers, as one that was read has them."""
    if isinstance(table, Path):
        return read_table(table)
    _check_headers("the table", list(map(str, table.columns)))
    return table.reset_index(drop=True)


def read_table(path: Path) -> pd.DataFrame:
    """A table from a .csv, .tsv or .parquet file. Raises InputError where it is none."""
    if path.is_dir():
        raise InputError(f"{path} is a directory; a table is one .csv, .tsv or .parquet file")
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    kind = path.suffix.lower()
    try:
        if kind in _SEPARATORS:
            return _read_text(path, _SEPARATORS[kind])
        if kind in (".parquet", ".pq"):
            _check_headers(path, pq.read_schema(path).names)
            # Without pandas' own notes, by which it would take a column away as the index.
            frame: pd.DataFrame = pq.read_table(path).to_pandas(ignore_metadata=True)
            return frame
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pa.ArrowInvalid, pd.errors.ParserError, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split()).removeprefix("Error tokenizing data. C error: ")
        raise InputError(f"{path} is not a table: {reason}") from error
    raise InputError(f"{path} is no .csv, .tsv or .parquet file")


def _read_text(path: Path, separator: str) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = next((row for row in csv.reader(file, delimiter=separator) if row), [])
    if not any(name.strip() for name in header):
        raise InputError(f"{path} is empty: a table begins with a row of column names")
    for other, kind in _SEPARATOR_NAMES.items():
        if len(header) == 1 and other != separator and other in header[0]:
            raise InputError(
                f"{path} has {kind} between its columns; a {path.suffix} file has "
                f"{_SEPARATOR_NAMES[separator]}"
            )
    _check_headers(path, header)
    with warnings.catch_warnings():
        # A row with more fields than the header would lose them.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(
                path, sep=separator, encoding="utf-8-sig", index_col=False, low_memory=False
            )
        except pd.errors.ParserWarning as error:
            raise InputError(f"{path}: a row has more fields than the header") from error


def _check_headers(table: Path | str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InputError(f"{table} has the column {twice[0]!r} more than once: rename one of them")


def _check_figure(path: Path) -> None:
    if path.suffix.lower() not in _FIGURES:
        raise InputError(f"--figure {path}: the name must end in {' or '.join(_FIGURES)}")
    if not path.parent.is_dir():
        raise InputError(f"--figure {path}: there is no directory {path.parent}")


# --- saying ----------------------------------------------------------------------------------


def as_text(fitted: TableFit) -> str:
    """What was found, for a terminal."""
    return "\n\n".join(_group_text(group) for group in fitted.groups)


def _group_text(group: GroupFit) -> str:
    heading = f"{group.label}: {_formula(group)}" if group.group else _formula(group)
    left_out = sum(group.excluded.values())
    why = ", ".join(f"{count} {reason}" for reason, count in group.excluded.items())
    lines = [heading, plural(group.n, "row") + (f", {left_out} left out ({why})" if why else "")]
    law = group.fit
    if isinstance(law, Refusal):
        return "\n".join([*lines, f"  no law: {law.reason}"])
    parameters, intervals = parameters_of(law), intervals_of(law)
    if isinstance(law, ScalingLaw) and law.allocation is not None:
        parameters["allocation_exponent"] = law.allocation
    for name, value in parameters.items():
        bounds = intervals.get(name)
        where = "" if bounds is None else f"   90 %: {bounds[0]:.4g} to {bounds[1]:.4g}"
        what = "   (N_opt ~ C^allocation)" if name == "allocation_exponent" else ""
        shown = name.removesuffix("_exponent")
        lines.append(f"  {shown:<11}{value:>12.5g}{where}{what}")
    lines.append(f"  objective {law.objective:.6g}, R2 {law.r_squared:.4f}")
    if law.interval_method:
        lines.append(f"  intervals: {law.interval_method}")
    if isinstance(law, PowerLaw):
        if law.lack_of_fit_p is not None:
            lines.append(f"  lack of fit: p = {law.lack_of_fit_p:.2g}")
    else:
        lines.append(
            f"  starts: {percent(law.share_at_best)} of {law.starts} reached the objective"
        )
    if isinstance(law, ScalingLaw):
        lines.append(f"  condition number {law.condition_number:.3g}")
        if law.flat_ranges:
            ranges = (
                f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in law.flat_ranges.items()
            )
            lines.append(f"  within {percent(FLAT_WITHIN)} of the objective: {', '.join(ranges)}")
    return "\n".join([*lines, *(f"  warning: {text}" for text in warnings_of(law))])


def _formula(group: GroupFit) -> str:
    law = group.fit
    if isinstance(law, ScalingLaw):
        return f"loss = {law.form.formula}"
    if isinstance(law, SaturatingLaw):
        return "y = E + A x^-b"
    return "y = exp(intercept) x^beta" if isinstance(law, PowerLaw) else "refused"
