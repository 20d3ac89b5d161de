"""The groups of a sweep, with their losses and ranks, before any of them is judged.

With three or more learning rates on the grid a combination of the other axes is one group, with
every width at its own rate. Losses and ranks are those of trials that differ in nothing but their
width (`comparable`), and the noise of a run has one trend over the width in all groups.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.spectral import SpectralEvidence, judge_spectra
from analysis.settings import TUNED
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.comparable import compare_trials, only_comparable
from analysis.verdict.differences import LEARNING_RATE
from analysis.verdict.equal_budget import BudgetEvidence, LossRule, judge_losses, runs_of
from analysis.verdict.fixed_rates import FixedRate, at_each_rate
from analysis.verdict.run_noise import NO_TREND, NoiseTrend, noise_trend, unsuspected
from analysis.verdict.tuned_rate import AXIS as RATE_AXIS
from analysis.verdict.tuned_rate import TunedTrials, is_tunable, tune

Group = dict[str, Any]  # axis -> value; None where the axis does not apply


@dataclass(frozen=True)
class Case:
    """A group to judge."""

    group: Group
    on_grid: Mapping[str, Any]  # the group with all its learning rates, for cells to run next
    trials: pd.DataFrame  # rows of `SweepTables.trials`
    sizes: pd.DataFrame  # the same at every d_model of the grid
    losses: tuple[BudgetEvidence, ...]  # by budget held equal, the deciding one first
    spectral: SpectralEvidence
    tuned: TunedTrials | None = None  # set where every width has its own learning rate
    at_rates: tuple[FixedRate, ...] = ()  # what each rate alone shows, where they are tuned

    @property
    def judged(self) -> pd.DataFrame:
        """The trials whose losses are judged."""
        return self.trials if self.tuned is None else self.tuned.trials

    @property
    def free(self) -> tuple[str, ...]:
        """Settings that may differ between the trials."""
        return () if self.tuned is None else (LEARNING_RATE,)


@dataclass(frozen=True)
class Judge:
    """Judges losses by the rule of one sweep."""

    tables: SweepTables
    rule: LossRule

    def losses(
        self,
        rows: pd.DataFrame,
        family: pd.DataFrame | None = None,
        trend: NoiseTrend | None = None,
    ) -> tuple[BudgetEvidence, ...]:
        """Judge rows of one learning rate."""
        judged = judge_losses(rows, self.rule, family=family, trend=trend)
        return only_comparable(judged, self.tables)

    def tuned_losses(
        self, rows: pd.DataFrame, trend: NoiseTrend | None = None
    ) -> tuple[BudgetEvidence, ...]:
        """Judge rows of several learning rates, with every width at its own."""
        judged = judge_losses(tune(rows).trials, self.rule, trend=trend)
        return only_comparable(judged, self.tables, among=rows, free=(LEARNING_RATE,))

    def again(self, case: Case, rows: pd.DataFrame) -> tuple[BudgetEvidence, ...]:
        """Judge rows like those of a case, for example with other losses."""
        return self.losses(rows) if case.tuned is None else self.tuned_losses(rows)

    def with_trend(self, case: Case, trend: NoiseTrend) -> Case:
        """Judge a case with a trend of the noise that is known from more groups."""
        if case.tuned is None:
            return replace(case, losses=self.losses(case.trials, case.sizes, trend))
        return replace(case, losses=self.tuned_losses(case.trials, trend))

    def spectral(self, rows: pd.DataFrame) -> SpectralEvidence:
        """Fit the rank laws of rows of one learning rate."""
        return judge_spectra(rows, lambda used: compare_trials(used, self.tables, ranks=True))


def cases_of(judge: Judge) -> list[Case]:
    """Return every group of a sweep, in the order of the groups' axes."""
    axes, trials = judge.tables.group_axes, judge.tables.trials
    cases = []
    for group, rows in groups_of(trials, tuple(axis for axis in axes if axis != RATE_AXIS)):
        sizes = like(trials, group, but=("base_d_model",))
        if is_tunable(rows):
            cases.append(_tuned_case(group, rows, sizes, judge))
            continue
        for own, members in groups_of(rows, axes):
            family = like(sizes, own, but=("base_d_model",))
            losses = judge.losses(members, family)
            cases.append(Case(own, own, members, family, losses, judge.spectral(members)))
    trend = _common_trend(cases)
    if not trend.established:  # then each group's own was looked for
        return cases
    return [judge.with_trend(case, trend) for case in cases]


def _tuned_case(group: Group, rows: pd.DataFrame, sizes: pd.DataFrame, judge: Judge) -> Case:
    """A group with every width at its own learning rate, and rank laws at one rate."""
    tuned = tune(rows)
    at_rates = at_each_rate(rows, lambda own: (judge.losses(own), judge.spectral(own)))
    (spectral,) = (at.spectral for at in at_rates if at.learning_rate == tuned.common_rate)
    return Case(
        group={**group, RATE_AXIS: TUNED},
        on_grid={**group, RATE_AXIS: tuple(at.learning_rate for at in at_rates)},
        trials=rows,
        sizes=tune(sizes, equal_budgets=False).trials,
        losses=judge.tuned_losses(rows),
        spectral=spectral,
        tuned=tuned,
        at_rates=at_rates,
    )


def _common_trend(cases: Sequence[Case]) -> NoiseTrend:
    """The trend of the noise over the width in all groups together; none for one group."""
    if len(cases) < 2:
        return NO_TREND
    each = [runs_of(case.judged, case.losses[0].matching) for case in cases if case.losses]
    return noise_trend([runs.only(unsuspected(runs)) for runs in each])


def like(trials: pd.DataFrame, group: Mapping[str, Any], but: Iterable[str]) -> pd.DataFrame:
    """Return the trials that have a group's values on all axes except `but`."""
    alike = np.ones(len(trials), bool)
    for axis, value in group.items():
        if axis not in but:
            column = trials[axis]
            alike &= (column.isna() if value is None else column == value).to_numpy(bool)
    return trials[alike]


def groups_of(trials: pd.DataFrame, axes: tuple[str, ...]) -> list[tuple[Group, pd.DataFrame]]:
    """Return the groups of trials by their values on some axes, each with its trials."""
    if not axes:
        return [({}, trials)]
    found = trials.groupby(list(axes), sort=True, dropna=False)
    return [
        # The key from groupby is no use: beside a missing value pandas turns integers into floats.
        ({axis: _plain(members[axis].iloc[0]) for axis in axes}, members)
        for _, members in found
    ]


def _plain(value: Any) -> Any:
    """A NumPy scalar as a Python one; NaN as None."""
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and np.isnan(value) else value
