"""Fit a law to any table: choose rows, form groups, fit each, and count the rows left out.

Pure: no I/O. Unusable input raises InputError with the column and the value; a group that cannot
carry the law gets a refusal beside the groups that can.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fit.one_semantics import refuse_mixed, stated
from analysis.fit.request import Request, Role
from analysis.fit.saturating_law import fit_saturating_law
from analysis.fit.scaling_fit import fit_scaling_law
from analysis.fit.scaling_laws import LossLaw, Variable
from analysis.fit.table_fit import Fitted, GroupFit, TableFit
from analysis.laws.power_law import fit_power_law
from analysis.refusal import Refusal
from analysis.replicates import Floats
from trialstore.errors import InputError

#: Values listed in a message.
_SHOWN = 8


def fit_table(frame: pd.DataFrame, request: Request) -> TableFit:
    """Fit a law to every group of rows.

    Args:
        frame: the table, one observation per row.
        request: the law, its columns, the rows and the groups.

    Returns:
        One fit per group. A group that cannot carry the law has a refusal instead.

    Raises:
        InputError: a column is missing, is empty or holds text; no row matches `where`; rows of
            one group come from several semantics versions; or no group can carry the law.

    Example:
        >>> frame = pd.DataFrame({"D": [64, 128, 256], "rank": [8.0, 12.0, 18.0]})
        >>> fit_table(frame, Request("power", {"x": "D", "y": "rank"})).groups[0].fit.beta
    """
    frame = stated(frame)
    labels_of = [*request.group, *([] if request.replicate is None else [request.replicate])]
    for column in [
        *request.columns.values(),
        *(column for column, _ in request.where),
        *labels_of,
    ]:
        _check_column(frame, column)
    for column in labels_of:
        _check_labels(frame, column)
    for column, value in request.where:
        frame = _where(frame, column, value)
    numbers = {role: _numbers(frame, column, role) for role, column in request.columns.items()}
    labels = None if request.replicate is None else frame[request.replicate]
    groups = _groups(frame, request.group)
    refuse_mixed(frame, groups, np.logical_and.reduce(list(map(np.isfinite, numbers.values()))))
    fits = tuple(
        _fit_group(
            group,
            {role: values[rows] for role, values in numbers.items()},
            None if labels is None else np.asarray(labels.iloc[rows], object),
            request,
        )
        for group, rows in groups
    )
    refused = [(one, one.fit) for one in fits if isinstance(one.fit, Refusal)]
    if len(refused) == len(fits):
        first, refusal = refused[0]
        left_out = ", ".join(f"{count} {why}" for why, count in first.excluded.items())
        place = f" of group {first.label}" if request.group else ""
        raise InputError(
            f"no {request.law} law{place}: {refusal.sentence}"
            + (f" (left out: {left_out})" if left_out else "")
            + (f"; none of the {len(fits)} groups has one" if len(fits) > 1 else "")
        )
    return TableFit(request.law, fits)


def _check_column(frame: pd.DataFrame, column: str) -> None:
    if column not in frame.columns:
        there = ", ".join(map(str, frame.columns[: 4 * _SHOWN]))
        more = ", ..." if len(frame.columns) > 4 * _SHOWN else ""
        raise InputError(f"the table has no column {column!r}; it has {there}{more}")


def _check_labels(frame: pd.DataFrame, column: str) -> None:
    """Refuse columns of lists and the like, which have no order and no hash."""
    values = frame[column].dropna()
    nested = [value for value in values if isinstance(value, list | dict | set | np.ndarray)]
    if nested:
        raise InputError(
            f"column {column} holds {str(nested[0])[:60]!r}; groups and replicate labels must be "
            "text or numbers"
        )


def _where(frame: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """Rows where a column has a value that is given as text."""
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        try:
            chosen = values == float(value)
        except ValueError:
            raise InputError(f"--where: column {column} holds numbers, not {value!r}") from None
    else:
        chosen = values.astype(str) == value
    if not chosen.any():
        distinct = values.drop_duplicates()
        there = ", ".join(str(each) for each in distinct.head(_SHOWN))
        more = f", ... ({len(distinct)} values)" if len(distinct) > _SHOWN else ""
        raise InputError(f"no row has {column}={value}; the values are {there or 'none'}{more}")
    return frame[chosen]


def _numbers(frame: pd.DataFrame, column: str, role: Role) -> Floats:
    """A column as float64, NaN in empty fields. Raises InputError for text that is no number."""
    values = frame[column]
    if not len(values):
        raise InputError(f"column {column} (--{role}) has no numbers: the table has no rows")
    is_type = pd.api.types
    if (
        is_type.is_bool_dtype(values)
        or is_type.is_datetime64_any_dtype(values)
        or is_type.is_timedelta64_dtype(values)
    ):
        raise InputError(f"column {column} (--{role}) holds {values.dtype}, not numbers")
    try:
        numbers = pd.to_numeric(values, errors="coerce")
    except OverflowError as error:
        raise InputError(
            f"column {column} (--{role}) holds a number above 1.8e308; correct it, or empty the "
            "field"
        ) from error
    # Diverged runs are often written as the text NaN or nan: read it as an empty field.
    wrong = numbers.isna() & values.notna() & (values.astype(str).str.lower() != "nan")
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise InputError(
            f"column {column} (--{role}) holds {str(values.iloc[row])!r} in row "
            f"{int(cast(int, frame.index[row])) + 1}, which is not a number; exclude such rows "
            "with --where, or empty the field"
        )
    found = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(found).all():
        raise InputError(f"column {column} (--{role}) is empty in every row")
    return np.asarray(found)


def _groups(
    frame: pd.DataFrame, columns: Sequence[str]
) -> list[tuple[dict[str, Any], NDArray[np.intp]]]:
    """Every combination of the columns' values, with the positions of its rows."""
    if not columns:
        return [({}, np.arange(len(frame)))]
    found = frame.groupby(list(columns), sort=True, dropna=False).indices
    groups = []
    for key, rows in found.items():
        values = key if isinstance(key, tuple) else (key,)
        named = {column: _plain(value) for column, value in zip(columns, values, strict=True)}
        groups.append((named, np.asarray(rows)))
    return groups


def _plain(value: Any) -> Any:
    """A value of a table as JSON has it."""
    if pd.isna(value):
        return None
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, int | float | str | bool) else str(value)


def _fit_group(
    group: Mapping[str, Any],
    rows: Mapping[Role, Floats],
    replicate: NDArray[Any] | None,
    request: Request,
) -> GroupFit:
    fit: Fitted | Refusal
    if request.over_losses:
        variables = cast(
            Mapping[Variable, Floats], {role: rows[role] for role in rows if role != "loss"}
        )
        fit = fit_scaling_law(
            cast(LossLaw, request.law),
            variables,
            rows["loss"],
            resamples=request.resamples,
            seed=request.seed,
        )
    else:
        over_widths = fit_power_law if request.law == "power" else fit_saturating_law
        fit = over_widths(rows["x"], rows["y"], replicate)
    return GroupFit(group, fit, rows)
