"""Judge a group only where its trials differ in nothing that matters but their width.

The trials' own records are compared: spec.json for the settings, the result for the tokens that
were seen and for the device. `analysis.verdict.differences` has the rules.
"""

import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from analysis.laws.spectral import SpectralEvidence
from analysis.tables.sweep_tables import SweepTables, matched
from analysis.verdict.differences import (
    DEVICE,
    HELD_OUT,
    LAYOUT,
    LEARNING_RATE,
    MEASURED,
    SEMANTICS,
    TOKENS,
    VERSIONS,
    NotComparable,
    Setup,
    compare,
    elsewhere,
    named,
)
from analysis.verdict.equal_budget import BudgetEvidence
from analysis.wording import plural

#: Columns of `SweepTables.trials` that are compared, and their names in a sentence. The steps have
#: the name of a setting, which is used where a trial has no spec.json.
COLUMNS = {
    "tokens": TOKENS,
    "heldout_tokens": HELD_OUT,
    "measured_tokens": MEASURED,
    "steps": "training.steps",
    "semantics_version": SEMANTICS,
}
#: Parts of a layout that only say which checkpoints are kept, or how the micro-batch came about.
WITHOUT_EFFECT = frozenset(
    {"checkpoint_every", "keep_checkpoints", "branch_points", "retried_smaller"}
)


def setups_of(trials: pd.DataFrame, tables: SweepTables) -> list[Setup]:
    """Return what each trial was trained with, each trial once.

    Args:
        trials: rows of `SweepTables.trials`.
        tables: the sweep.
    """
    found = []
    for _, trial in trials.drop_duplicates("id").iterrows():
        typed = trial["typed_multiplier"]
        multiplier = typed if np.isfinite(typed) else round(trial["width_multiplier"], 4)
        found.append(Setup(str(trial["id"]), float(multiplier), _settings(trial, tables)))
    return found


def compare_trials(
    trials: pd.DataFrame,
    tables: SweepTables,
    *,
    ranks: bool = False,
    free: Collection[str] = (),
) -> NotComparable | None:
    """Refuse to judge trials that differ in a setting that matters; None if they do not.

    Args:
        trials: rows of `SweepTables.trials` that enter the judgement.
        tables: the sweep.
        ranks: whether their spectra are judged.
        free: settings that may differ in this judgement.
    """
    return compare(setups_of(trials, tables), ranks=ranks, free=free)


def only_comparable(
    losses: Sequence[BudgetEvidence],
    tables: SweepTables,
    *,
    among: pd.DataFrame | None = None,
    free: Collection[str] = (),
) -> tuple[BudgetEvidence, ...]:
    """Return the evidence at each budget, refused where its trials differ beside their width.

    Args:
        losses: the evidence at each equal budget.
        tables: the sweep.
        among: rows of `SweepTables.trials` that the losses were computed from, where these are more
            than the rows of the evidence.
        free: settings that may differ in this judgement.
    """
    judged = []
    for evidence in losses:
        entering = evidence.used
        if among is not None:
            of_budget = matched(among, evidence.matching)
            ended = (of_budget["state"] == "completed") & np.isfinite(of_budget["val_loss"])
            entering = of_budget[ended & of_budget["uniform_width"]]
        refused = compare_trials(entering, tables, free=free)
        judged.append(evidence if refused is None else replace(evidence, optimum=refused))
    return tuple(judged)


def caveats_of_setups(
    trials: pd.DataFrame,
    tables: SweepTables,
    losses: Sequence[BudgetEvidence],
    spectral: SpectralEvidence,
    tuned: bool,
) -> Iterator[str]:
    """Yield what differs between the completed trials of a group and is no reason to refuse.

    Args:
        trials: rows of `SweepTables.trials` of the group.
        tables: the sweep.
        losses: the loss optima by budget, or their refusals.
        spectral: the rank laws, or their refusal.
        tuned: whether the learning rate differs by design.
    """
    completed = trials[trials["state"] == "completed"]
    setups = setups_of(completed, tables)
    found = named(setups)
    if found:
        yield (
            "The trials differ in settings that are no part of the recipe: "
            f"{'; '.join(one.sentence for one in found)}. Such settings change a loss by rounding "
            "only, or not at all."
        )
    refusals = (*(evidence.optimum for evidence in losses), spectral.refused)
    told = {
        difference.name
        for refused in refusals
        if isinstance(refused, NotComparable)
        for difference in refused.differences
    }
    others = elsewhere(setups, {*told, LEARNING_RATE} if tuned else told)
    if others:
        yield (
            "Trials of this group that are not judged together differ: "
            f"{'; '.join(one.sentence for one in others)}."
        )
    unknown = sum(setup.id not in tables.settings for setup in setups)
    if 0 < unknown < len(setups):
        yield (
            f"The settings of {unknown} of {plural(len(setups), 'completed trial')} cannot be read "
            "from a spec.json, so that nobody knows whether they equal those of the others."
        )


def _settings(trial: "pd.Series[Any]", tables: SweepTables) -> dict[str, Any]:
    """What is known of a trial, by name: what its result has first, then its spec.json."""
    found: dict[str, Any] = {
        name: int(trial[column]) for column, name in COLUMNS.items() if np.isfinite(trial[column])
    }
    layout = json.loads(trial["layout"]) if isinstance(trial["layout"], str) else {}
    if DEVICE in layout:
        found[DEVICE] = layout[DEVICE]
    found |= tables.settings.get(str(trial["id"]), {})
    shown = {name: value for name, value in layout.items() if name not in WITHOUT_EFFECT}
    shown.pop(DEVICE, None)
    found |= {f"{LAYOUT}{name}": value for name, value in shown.items()}
    versions = tables.versions.get(trial["versions"], {})
    return found | {f"{VERSIONS}{name}": value for name, value in versions.items()}
