"""Laws for anyone's table: choose rows, form groups, fit each, and say what was left out.

A pure function of a frame. What cannot be used is an InputError that names the column and the
value; a group that carries no law beside others that do is a refusal with its reason.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.fit.one_semantics import refuse_mixed, stated
from analysis.fit.saturating_law import SaturatingLaw, fit_saturating_law
from analysis.fit.scaling_fit import (
    FLAT_WITHIN,
    REACHED,
    RESAMPLES,
    ScalingLaw,
    fit_scaling_law,
)
from analysis.fit.scaling_laws import LossLaw, Variable
from analysis.laws.power_law import PowerLaw, Refusal, fit_power_law
from analysis.replicates import Floats, Interval
from analysis.wording import group_label, plural
from trialstore.errors import InputError

Law = Literal["power", "saturating", "kaplan", "chinchilla", "width-depth"]
Role = Literal["x", "y", "params", "tokens", "loss", "width", "depth"]
Fitted = PowerLaw | SaturatingLaw | ScalingLaw

#: The columns that a law takes: those it needs, and those it may have.
_NEEDED: Mapping[Law, tuple[Role, ...]] = {
    "power": ("x", "y"),
    "saturating": ("x", "y"),
    "kaplan": ("loss",),
    "chinchilla": ("params", "tokens", "loss"),
    "width-depth": ("width", "depth", "loss"),
}
_OPTIONAL: Mapping[Law, tuple[Role, ...]] = {
    "power": (),
    "saturating": (),
    "kaplan": ("params", "tokens"),
    "chinchilla": (),
    "width-depth": ("tokens",),
}
#: Values listed in a message.
_SHOWN = 8


@dataclass(frozen=True)
class Request:
    """What is to be fitted. Raises InputError where law and columns do not go together."""

    law: Law
    columns: Mapping[Role, str]  # role -> name of the column
    where: Sequence[tuple[str, str]] = ()  # (column, value): only such rows
    group: Sequence[str] = ()  # one fit for every combination of their values
    replicate: str | None = None  # labels paired replicates; for laws over widths
    resamples: int = RESAMPLES
    seed: int = 0

    def __post_init__(self) -> None:
        for role in _NEEDED[self.law]:
            if role not in self.columns:
                raise InputError(f"--law {self.law} needs --{role}: the name of a column")
        allowed = _NEEDED[self.law] + _OPTIONAL[self.law]
        for role in self.columns:
            if role not in allowed:
                takes = ", ".join(f"--{name}" for name in allowed)
                raise InputError(f"--{role} means nothing to --law {self.law}; it takes {takes}")
        if self.law == "kaplan" and len(self.columns) == 1:
            raise InputError("--law kaplan needs --params, --tokens or both, beside --loss")
        if self.replicate is not None and self.over_losses:
            raise InputError(
                f"--replicate is for --law power and saturating; {self.law} takes rows of equal "
                f"{', '.join(role for role in allowed if role != 'loss')} as replicates by itself"
            )
        if self.resamples and self.resamples < 100:
            raise InputError(
                f"--bootstrap {self.resamples} is too few for a 90 % interval: "
                "at least 100, or 0 for none"
            )
        if self.resamples < 0 or self.seed < 0:
            raise InputError("--bootstrap and --seed are counts: 0 or more")

    @property
    def over_losses(self) -> bool:
        return self.law in get_args(LossLaw)


@dataclass(frozen=True)
class GroupFit:
    """One group of rows and its law, or why it has none."""

    group: Mapping[str, Any]  # group column -> value
    fit: Fitted | Refusal
    rows: Mapping[Role, Floats]  # every row of the group by role, [n]; NaN where it is empty

    @property
    def label(self) -> str:
        """The group in a few words; a column that is empty in it says so."""
        return group_label(
            {
                column: f"no {column}" if value is None else value
                for column, value in self.group.items()
            }
        )

    @property
    def excluded(self) -> Mapping[str, int]:
        """Why rows of the group did not enter, and how many."""
        return self.fit.excluded

    @property
    def n(self) -> int:
        """Rows that entered."""
        return len(next(iter(self.rows.values()))) - sum(self.excluded.values())

    def to_json(self) -> dict[str, Any]:
        """One entry of `groups`."""
        shared = {
            "group": dict(self.group),
            "n": self.n,
            "excluded": sum(self.excluded.values()),
            "excluded_because": dict(self.excluded),
        }
        return {**shared, **_result_json(self.fit)}


@dataclass(frozen=True)
class TableFit:
    """All groups, in the order of their values."""

    law: Law
    groups: tuple[GroupFit, ...]

    def to_json(self) -> dict[str, Any]:
        return {"law": self.law, "groups": [group.to_json() for group in self.groups]}


def fit_table(frame: pd.DataFrame, request: Request) -> TableFit:
    """Fit the law to every group of rows. Raises InputError, also where no group has a law."""
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
    reasons = [(one, one.fit.reason) for one in fits if isinstance(one.fit, Refusal)]
    if len(reasons) == len(fits):
        first, reason = reasons[0]
        left_out = ", ".join(f"{count} {why}" for why, count in first.excluded.items())
        place = f" of group {first.label}" if request.group else ""
        raise InputError(
            f"no {request.law} law{place}: {reason}"
            + (f" (left out: {left_out})" if left_out else "")
            + (f"; nor has any other of {plural(len(fits), 'group')}" if len(fits) > 1 else "")
        )
    return TableFit(request.law, fits)


def _check_column(frame: pd.DataFrame, column: str) -> None:
    if column not in frame.columns:
        there = ", ".join(map(str, frame.columns[: 4 * _SHOWN]))
        more = ", ..." if len(frame.columns) > 4 * _SHOWN else ""
        raise InputError(f"there is no column {column!r}; there are {there}{more}")


def _check_labels(frame: pd.DataFrame, column: str) -> None:
    """That rows can be told apart by a column: lists and the like have no order and no hash."""
    values = frame[column].dropna()
    nested = [value for value in values if isinstance(value, list | dict | set | np.ndarray)]
    if nested:
        raise InputError(
            f"column {column} holds {str(nested[0])[:60]!r}, which is no single value: rows are "
            "grouped and replicates labelled by text or numbers"
        )


def _where(frame: pd.DataFrame, column: str, value: str) -> pd.DataFrame:
    """The rows where a column has a value, given as text."""
    values = frame[column]
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        try:
            chosen = values == float(value)
        except ValueError:
            raise InputError(f"column {column} holds numbers, so never {value!r}") from None
    else:
        chosen = values.astype(str) == value
    if not chosen.any():
        distinct = values.drop_duplicates()
        there = ", ".join(str(each) for each in distinct.head(_SHOWN))
        more = f", ... ({len(distinct)} values)" if len(distinct) > _SHOWN else ""
        raise InputError(f"no row has {column}={value}; there are {there or 'no rows'}{more}")
    return frame[chosen]


def _numbers(frame: pd.DataFrame, column: str, role: Role) -> Floats:
    """A column as float64; what is empty is NaN. Text that is no number is refused."""
    values = frame[column]
    if not len(values):
        raise InputError(f"the table has no rows, so column {column} (--{role}) has no numbers")
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
            f"column {column} (--{role}) holds a number beyond 1.8e308; correct it, or leave the "
            "field empty"
        ) from error
    # Text such as NaN or nan is how a diverged run is often written: empty, not wrong.
    wrong = numbers.isna() & values.notna() & (values.astype(str).str.lower() != "nan")
    if wrong.any():
        row = int(np.flatnonzero(wrong.to_numpy())[0])
        raise InputError(
            f"column {column} (--{role}) holds {str(values.iloc[row])!r} in row "
            f"{int(cast(int, frame.index[row])) + 1}, not a number; leave such rows out with "
            "--where, or leave the field empty"
        )
    found = numbers.to_numpy(dtype=np.float64, na_value=np.nan)
    if np.isnan(found).all():
        raise InputError(f"column {column} (--{role}) is empty in every row")
    return np.asarray(found)


def _groups(
    frame: pd.DataFrame, columns: Sequence[str]
) -> list[tuple[dict[str, Any], NDArray[np.intp]]]:
    """Every combination of values and the places of its rows."""
    if not columns:
        return [({}, np.arange(len(frame)))]
    found = frame.groupby(list(columns), sort=True, dropna=False).indices
    return [
        (
            {column: _plain(value) for column, value in zip(columns, key, strict=True)},
            np.asarray(rows),
        )
        for key, rows in ((key if isinstance(key, tuple) else (key,), rows)
                          for key, rows in found.items())
    ]  # fmt: skip


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


# --- as JSON ---------------------------------------------------------------------------------


def _result_json(fit: Fitted | Refusal) -> dict[str, Any]:
    if isinstance(fit, Refusal):
        return {
            "parameters": {},
            "intervals": {},
            "interval_method": None,
            "objective": None,
            "r_squared": None,
            "warnings": [f"no law: {fit.reason}"],
            "refused": fit.reason,
        }
    common = {
        "parameters": parameters_of(fit),
        "intervals": {name: list(bounds) for name, bounds in intervals_of(fit).items()},
        "interval_method": fit.interval_method,
        "objective": fit.objective,
        "r_squared": fit.r_squared,
        "warnings": warnings_of(fit),
        "refused": None,
    }
    if isinstance(fit, PowerLaw):
        return {
            **common,
            "widths": fit.widths,
            "replicates": fit.replicates,
            "lack_of_fit_p": fit.lack_of_fit_p,
            "leave_one_out": None if fit.leave_one_out is None else list(fit.leave_one_out),
        }
    starts = {"starts": fit.starts, "starts_at_best": fit.share_at_best, "starts_within": REACHED}
    if isinstance(fit, SaturatingLaw):
        return {**common, **starts, "widths": fit.widths}
    return {
        **common,
        **starts,
        "formula": fit.form.formula,
        "cells": fit.cells,
        "allocation_exponent": fit.allocation,
        "identifiability": {
            "condition_number": fit.condition_number,
            "objective_within": FLAT_WITHIN,
            "ranges": {name: list(bounds) for name, bounds in fit.flat_ranges.items()},
        },
    }


def parameters_of(fit: Fitted) -> dict[str, float]:
    """The parameters by the names of the formula."""
    if isinstance(fit, PowerLaw):
        return {"beta": fit.beta, "intercept": fit.intercept}
    if isinstance(fit, SaturatingLaw):
        return {"E": fit.E, "A": fit.A, "b": fit.b}
    return dict(fit.parameters)


def intervals_of(fit: Fitted) -> dict[str, Interval]:
    """The 90 % intervals by the same names, and that of the allocation where there is one."""
    if isinstance(fit, PowerLaw):
        return {"beta": fit.beta_interval, "intercept": fit.intercept_interval}
    return dict(fit.intervals)


def warnings_of(fit: Fitted) -> list[str]:
    """What a reader must know before quoting a number."""
    if not isinstance(fit, PowerLaw):
        return list(fit.warnings)
    found = []
    if fit.lack_of_fit_p is not None and fit.lack_of_fit_p < 0.05:
        found.append(
            f"a power law does not fit within the noise of the replicates (p = "
            f"{fit.lack_of_fit_p:.2g})"
        )
    if fit.widths < 5:
        found.append(f"only {fit.widths} distinct x: the interval rests on {fit.widths - 2} "
                     "degrees of freedom")  # fmt: skip
    return found
