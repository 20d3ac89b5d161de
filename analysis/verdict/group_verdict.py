"""The verdicts of a sweep, group by group, and their JSON."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from analysis.laws.spectral import SpectralEvidence
from analysis.refusal import Refusal
from analysis.replicates import Interval
from analysis.verdict.budgets import AtBudget
from analysis.verdict.choices import Choice
from analysis.verdict.comparisons import Comparisons
from analysis.verdict.decision import Decision, decide
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.evidence import evidence_of, losses_of, widths_of
from analysis.verdict.false_recommendations import Evidence
from analysis.verdict.fixed_rates import FixedRate
from analysis.verdict.layer_verdict import LayerVerdict, representative
from analysis.verdict.next_cells import NextCells
from analysis.verdict.supply import SELECTION, Supply
from analysis.verdict.transfer import Transfer
from analysis.verdict.tuned_rate import TunedTrials
from analysis.wording import multiple


@dataclass(frozen=True)
class GroupVerdict:
    """The verdict on one group, with all its evidence."""

    group: Mapping[str, Any]  # axis -> value; None where the axis does not apply
    label: str  # the group in a few words
    slug: str  # the label in a form for file names, unique among the groups
    width_multiplier: float | None  # D / d_model; None where no width is recommended
    plateau: Interval | None  # ends of the widths that are all within tolerance, in place of one
    interval: Interval | None  # of the optimum's D / d_model, 90 %
    sentence: str  # the verdict, without a final full stop
    rule: str  # why this width was chosen, or why none was
    trials: pd.DataFrame  # rows of `SweepTables.trials`
    spectral: SpectralEvidence
    losses: tuple[BudgetEvidence, ...]  # by budget held equal, the deciding one first
    controlled: Evidence | None  # over looks and groups; None without a loss curve
    agrees: bool | None  # whether the spectral stop agrees; None where either is unknown
    choices: tuple[Choice, ...]  # for quality and for efficiency; empty without a recommendation
    at_budgets: tuple[AtBudget, ...]  # the optimum at every kind of equal budget
    tuned: TunedTrials | None  # set where each width enters at its own learning rate
    at_rates: tuple[FixedRate, ...]  # evidence at each rate; empty where the rate is not tuned
    supply: Supply  # passes over the data, and the judgement of the best losses
    layers: LayerVerdict  # which layers to widen and to narrow
    caveats: tuple[str, ...]
    run_next: tuple[NextCells, ...]

    @property
    def representative(self) -> "pd.Series[Any] | None":
        """The trial whose layers represent the group; None without cells for rank laws."""
        return representative(self.spectral.used, self.width_multiplier)

    @property
    def verdict(self) -> Literal["recommended", "plateau", "refused"]:
        """Whether a width is recommended, or any width of a range, or none."""
        if self.width_multiplier is not None:
            return "recommended"
        return "refused" if self.plateau is None else "plateau"

    @property
    def headline(self) -> str:
        """The verdict in a word: a width, a range of widths, or that there is none."""
        if self.width_multiplier is not None:
            return multiple(self.width_multiplier)
        if self.plateau is not None:
            return " to ".join(map(multiple, self.plateau))
        return "no recommendation"

    @property
    def deciding(self) -> BudgetEvidence | None:
        """The evidence at the budget that decides; None where no budget is held equal."""
        return self.losses[0] if self.losses else None

    @property
    def on_best(self) -> Decision | None:
        """The verdict on the best losses of the runs; None where no run overfits."""
        return decide(self.supply.on_best) if self.supply.on_best else None

    @property
    def spectral_sentence(self) -> str:
        """The spectral stop and its agreement with the recommended width, in words."""
        stop = self.spectral.stop
        if isinstance(stop, Refusal):
            return f"no spectral stop: {stop.sentence}"
        if self.agrees is None:
            return stop.sentence
        agree = "agree" if self.agrees else "disagree"
        return f"the ranks {agree} with this width: {stop.sentence}"

    @property
    def alternatives(self) -> list[dict[str, Any]]:
        """One row per width of the deciding budget, in ascending order, with its loss excess."""
        return [] if self.deciding is None else widths_of(self.deciding)

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `groups` in recommendation.json."""
        return {
            "group": dict(self.group),
            "label": self.label,
            "verdict": self.verdict,
            "sentence": self.sentence,
            "width_multiplier": self.width_multiplier,
            "plateau": self.plateau,
            "interval": self.interval,
            "rule": self.rule,
            "false_recommendations": self.controlled.to_dict() if self.controlled else None,
            "looks": [look.to_dict() for look in self.controlled.looks] if self.controlled else [],
            "alternatives": self.alternatives,
            "choices": {choice.goal: choice.to_dict() for choice in self.choices},
            "at_equal": {found.currency: found.to_dict() for found in self.at_budgets},
            "learning_rates": [w.to_dict() for w in self.tuned.widths] if self.tuned else None,
            "at_learning_rates": [at.to_dict() for at in self.at_rates] if self.tuned else None,
            "evidence": {
                **evidence_of(self.trials, self.spectral, self.losses, self.agrees),
                "supply": self.supply.to_dict(),
                "best_loss": None if self.on_best is None else self._best_loss(self.on_best),
            },
            "layers": self.layers.to_dict(),
            "caveats": list(self.caveats),
            "run_next": [cells.to_dict() for cells in self.run_next],
        }

    def _best_loss(self, found: Decision) -> dict[str, Any]:
        return {
            "verdict": "refused" if found.width_multiplier is None else "recommended",
            "width_multiplier": found.width_multiplier,
            "interval": None if found.curve is None else found.curve.interval,
            "sentence": found.sentence,
            "rule": found.rule,
            "selection": SELECTION,
            "alternatives": widths_of(self.supply.on_best[0]),
            "loss": losses_of(self.supply.on_best),
        }


@dataclass(frozen=True)
class Recommendation:
    """The verdicts of a sweep, and the transfer of its optima to a target size."""

    sweep: str
    aggregation: str  # in words: how a trial's snapshots became one rank
    groups: tuple[GroupVerdict, ...]
    transfers: tuple[Transfer, ...] = ()  # empty where the sweep file names no target
    left_out: tuple[
        str, ...
    ] = ()  # finished trials of the directory that no verdict uses, in words
    # Of groups that differ in one axis.
    comparisons: Comparisons = field(default_factory=Comparisons)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of recommendation.json."""
        return {
            "sweep": self.sweep,
            "aggregation": self.aggregation,
            "groups": [group.to_dict() for group in self.groups],
            "transfer": [found.to_dict() for found in self.transfers],
            "left_out": list(self.left_out),
            "comparisons": self.comparisons.to_dict(),
        }
