"""Keep the share of false recommendations at a stated rate, over looks and over groups.

A sweep that is judged, extended as advised and judged again gets several chances of a false
recommendation, and so does a sweep of many groups. Each group has one e-value: a number whose mean
is at most 1 if the loss has no optimum inside the grid, at whatever look it is taken.

Half of it comes from the first complete look, where the rule of `loss_optimum` alone counts: its
share of false recommendations is at most half the rate, so a success there is worth 2/rate. The
other half is the evidence of `optimum_evidence`, which any number of looks may see. One group at
its first look is therefore judged by the rule of `loss_optimum` alone; later looks need evidence
of 2/rate to 1.

Groups are taken together by the e-BH procedure (Wang and Ramdas 2022): of G groups the k with the
largest e-values may be recommended if each is at least G / (rate k). The expected share of false
ones among the recommended is then at most the rate, whatever the groups have in common.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import exp, log
from typing import Any

import numpy as np

from analysis.verdict.equal_budget import BudgetEvidence
from analysis.verdict.loss_over_width import LossCurve
from analysis.wording import percent, plural

#: ln of the largest e-value that is told apart.
LARGEST = 690.0
#: Share of a group's e-value that the first complete look has.
FIRST_SHARE = 0.5


@dataclass(frozen=True)
class Look:
    """One judgement of a group's losses."""

    ids: frozenset[str]  # of the runs that entered
    complete: bool  # whether no planned cell of the group was still to come
    established: bool  # whether the rule of `loss_optimum` found an optimum

    def to_dict(self) -> dict[str, Any]:
        """Return an entry of `looks` in recommendation.json."""
        return {
            "ids": sorted(self.ids),
            "complete": self.complete,
            "established": self.established,
        }


@dataclass(frozen=True)
class Evidence:
    """The evidence of one group for an optimum inside the grid, and what it must reach."""

    e_value: float
    required: float
    looks: tuple[Look, ...]  # so far, with the present one
    groups: int  # judged together

    def to_dict(self) -> dict[str, Any]:
        """Return `false_recommendations` of a group in recommendation.json."""
        return {
            "e_value": self.e_value,
            "required": self.required,
            "looks": len(self.looks),
            "groups": self.groups,
        }

    @property
    def sufficient(self) -> bool:
        """Whether a width may be recommended."""
        return self.e_value >= self.required * (1 - 1e-6)


def with_look(earlier: Iterable[Look], look: Look) -> tuple[Look, ...]:
    """Return the earlier looks at a group and the present one.

    An earlier look counts if it shares a run with the present one, whatever its group was called.
    A second look at the same runs is no new look.
    """
    shared = [one for one in earlier if one.ids & look.ids]
    if any(one.ids == look.ids for one in shared):
        return tuple(look if one.ids == look.ids else one for one in shared)
    return (*shared, look)


def log_e_value(curve: LossCurve, looks: Sequence[Look], rate: float) -> float:
    """Return ln of a group's e-value.

    Args:
        curve: the losses as they are now.
        looks: the judgements so far, with the present one.
        rate: share of false recommendations.
    """
    first = next((look for look in looks if look.complete), None)
    passed = first is not None and first.established
    later = log(1 - FIRST_SHARE) + curve.log_evidence
    return float(np.logaddexp(-log(rate) if passed else -np.inf, later))


def required_e_values(log_e: Mapping[int, float], rate: float) -> dict[int, float]:
    """Return the e-value that each group must reach, by the e-BH procedure.

    Args:
        log_e: group -> ln of its e-value; groups without a loss curve are left out.
        rate: share of false recommendations.
    """
    groups = len(log_e)
    ordered = sorted(log_e.values(), reverse=True)
    rounding = 1e-9
    count = max(
        (k for k, e in enumerate(ordered, 1) if e >= log(groups / (rate * k)) - rounding), default=0
    )

    def required(e: float) -> float:
        if count and e >= log(groups / (rate * count)) - rounding:
            return groups / (rate * count)
        return groups / (rate * (count + 1))  # it would have to be the next one

    return {name: required(e) for name, e in log_e.items()}


def evidence_of_looks(
    curves: Mapping[int, LossCurve], looks: Mapping[int, Sequence[Look]], rate: float
) -> dict[int, Evidence]:
    """Return the evidence of every group that has a loss curve."""
    log_e = {name: log_e_value(curve, looks[name], rate) for name, curve in curves.items()}
    required = required_e_values(log_e, rate)
    return {
        name: Evidence(exp(min(e, LARGEST)), required[name], tuple(looks[name]), len(log_e))
        for name, e in log_e.items()
    }


def withheld(evidence: BudgetEvidence, found: Evidence, rate: float) -> BudgetEvidence:
    """Return a group's losses without their recommendation, whose evidence is not sufficient."""
    curve = evidence.optimum
    if not isinstance(curve, LossCurve) or not curve.recommended:
        return evidence
    because = []
    if not any(look.complete for look in found.looks):
        because.append("planned cells of the group have no result yet")
    elif len(found.looks) > 1:
        because.append(f"this is look {len(found.looks)} at the group")
    if found.groups > 1:
        because.append(f"{plural(found.groups, 'group')} are judged together")
    reason = (
        f"{curve.reason}, but {' and '.join(because)}, and the evidence is "
        f"{found.e_value:.2g} to 1 where {found.required:.2g} to 1 keeps false recommendations "
        f"at {percent(rate)}"
    )
    return replace(evidence, optimum=replace(curve, obstacle="many looks", reason=reason))


def looks_in(recommendation: Any) -> tuple[Look, ...]:
    """Return all looks that an earlier recommendation.json records; others are left out."""
    found = []
    groups = recommendation.get("groups") if isinstance(recommendation, dict) else None
    for group in groups if isinstance(groups, list) else ():
        looks = group.get("looks") if isinstance(group, dict) else None
        for look in looks if isinstance(looks, list) else ():
            if not isinstance(look, dict) or not isinstance(look.get("ids"), list):
                continue
            ids = frozenset(str(one) for one in look["ids"])
            found.append(Look(ids, bool(look.get("complete")), bool(look.get("established"))))
    return tuple(found)
