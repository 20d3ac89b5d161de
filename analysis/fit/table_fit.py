"""The result of a fit to a table, group by group, and its JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.fit.request import Law, Role
from analysis.fit.saturating_law import SaturatingLaw
from analysis.fit.scaling_fit import FLAT_WITHIN, REACHED, ScalingLaw
from analysis.laws.power_law import PowerLaw
from analysis.refusal import Refusal
from analysis.replicates import Floats, Interval
from analysis.wording import group_label, plural

Fitted = PowerLaw | SaturatingLaw | ScalingLaw
#: A smaller p of the lack-of-fit test gives a warning.
MISFIT = 0.05


@dataclass(frozen=True)
class GroupFit:
    """One group of rows, and the law fitted to it."""

    group: Mapping[str, Any]  # group column -> value; None where the column is empty
    fit: Fitted | Refusal
    rows: Mapping[Role, Floats]  # role -> [n] values, used or not; NaN in an empty field

    @property
    def label(self) -> str:
        """The group in a few words, for example `pre, no depth`."""
        return group_label(
            {
                column: f"no {column}" if value is None else value
                for column, value in self.group.items()
            }
        )

    @property
    def excluded(self) -> Mapping[str, int]:
        """Reason -> rows that the fit left out."""
        return self.fit.excluded

    @property
    def n(self) -> int:
        """Rows that the fit used."""
        return len(next(iter(self.rows.values()))) - sum(self.excluded.values())

    def to_json(self) -> dict[str, Any]:
        """Return one entry of `groups` in the output of `--json`."""
        shared = {
            "group": dict(self.group),
            "n": self.n,
            "excluded": sum(self.excluded.values()),
            "excluded_because": dict(self.excluded),
        }
        return {**shared, **_result_json(self.fit)}


@dataclass(frozen=True)
class TableFit:
    """The fits of all groups, in the order of the groups' values."""

    law: Law
    groups: tuple[GroupFit, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the output of `--json`; docs/fit.md lists its keys."""
        return {"law": self.law, "groups": [group.to_json() for group in self.groups]}


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
    """Return the parameters by their names in the formula."""
    if isinstance(fit, PowerLaw):
        return {"beta": fit.beta, "intercept": fit.intercept}
    if isinstance(fit, SaturatingLaw):
        return {"E": fit.E, "A": fit.A, "b": fit.b}
    return dict(fit.parameters)


def intervals_of(fit: Fitted) -> dict[str, Interval]:
    """Return the 90 % intervals by the same names, and `allocation_exponent` if the law has one."""
    if isinstance(fit, PowerLaw):
        return {"beta": fit.beta_interval, "intercept": fit.intercept_interval}
    return dict(fit.intervals)


def warnings_of(fit: Fitted) -> list[str]:
    """Return the cautions that a reader needs before quoting a parameter, as clauses."""
    if not isinstance(fit, PowerLaw):
        return list(fit.warnings)
    found = []
    if fit.lack_of_fit_p is not None and fit.lack_of_fit_p < MISFIT:
        found.append(
            "the points scatter about a power law by more than the replicates' noise "
            f"(p = {fit.lack_of_fit_p:.2g})"
        )
    if fit.widths < 5:
        found.append(
            f"only {fit.widths} distinct x: the interval rests on "
            f"{plural(fit.widths - 2, 'degree')} of freedom"
        )
    return found
