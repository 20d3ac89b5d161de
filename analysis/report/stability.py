"""The report's section on training: which losses spiked, and how far the trials had come."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from analysis.report.page import Table, render, without_empty
from analysis.stability import FIRST_JUDGED, UNSTABLE_SHARE, UNSTABLE_SPIKES
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.trained_enough import NEAR_UNIGRAM
from analysis.wording import group_label, multiple, percent, plural

RULE = (
    "A spike is a rise of the training loss, over at least two updates, that neither the noise of "
    "the batches nor the schedule explains. Above: share of the updates above the level before a "
    "spike. Rise: the largest, in nats per token. A trial is unstable if a spike is not over at "
    f"its end, if it is above for {percent(UNSTABLE_SHARE)} of its updates or more, or if it has "
    f"{UNSTABLE_SPIKES} spikes or more."
)
NAMES = (
    *("width", "seed", "spikes", "above", "rise", "stability", "gradient-norm spikes"),
    *("outcome", "loss"),
)


def stability_section(tables: SweepTables) -> Markup:
    """Return the section: trials whose loss spiked, and what is known of the others."""
    trials = tables.trials.drop_duplicates("id")
    spiked = trials[trials["spikes"] > 0]
    return render(
        "stability.html",
        told=list(_told(trials)),
        spiked=_table(tables, spiked) if len(spiked) else None,
        rule=RULE,
    )


def _told(trials: pd.DataFrame) -> Iterator[str]:
    watched = trials[trials["spikes"].notna()]
    unstable = sum(flag is not None and bool(flag) for flag in watched["unstable"])
    spiked = int((watched["spikes"] > 0).sum())
    if len(watched):
        yield (
            f"Of {plural(len(watched), 'trial')} with a recorded training loss, {unstable} are "
            f"unstable, {spiked - unstable} spiked briefly and recovered, and "
            f"{len(watched) - spiked} had no spike."
        )
    if len(watched) < len(trials):
        yield (
            f"Trials with at most {FIRST_JUDGED} recorded training losses, too few to see a spike: "
            f"{len(trials) - len(watched)}."
        )
    fall = trials["fall_last_tenth"].dropna()
    if len(fall):
        yield (
            f"Over the last tenth of its training a trial's held-out loss fell by "
            f"{fall.median():.2g} nats (median; {fall.min():.2g} to {fall.max():.2g})."
        )
    completed = trials[trials["state"] == "completed"]
    unigram = completed["unigram_loss"]
    if unigram.notna().any():
        share = (completed["val_loss"] / unigram).max()
        near = "" if share < NEAR_UNIGRAM else ": it has learnt little more than token frequencies"
        yield (
            f"A model that knows only the token frequencies has a loss of {unigram.median():.3g} "
            f"nats; the worst completed trial ends at {percent(share)} of it{near}."
        )
    elif len(completed):
        yield (
            "The loss of a model that knows only the token frequencies was not recorded: the "
            "trials are older than that."
        )


def _table(tables: SweepTables, spiked: pd.DataFrame) -> Table:
    groups: dict[str, list[list[str]]] = {}
    for _, trial in spiked.sort_values("spike_share", ascending=False).iterrows():
        label = group_label({axis: trial[axis] for axis in tables.group_axes})
        groups.setdefault(label, []).append(_row(trial))
    names, _ = without_empty([*NAMES, "id"], [row for rows in groups.values() for row in rows])
    kept = [place for place, name in enumerate([*NAMES, "id"]) if name in names]
    return Table(
        names, {label: [[row[at] for at in kept] for row in rows] for label, rows in groups.items()}
    )


def _row(trial: "pd.Series[Any]") -> list[str]:
    def number(name: str, digits: int) -> str:
        value = float(str(trial[name]))
        return f"{value:.{digits}f}" if np.isfinite(value) else ""

    width = float(str(trial["width_multiplier"]))
    how = "unstable" if trial["unstable"] else "brief"
    return [
        multiple(width) if np.isfinite(width) else "",
        number("replicate", 0),
        number("spikes", 0),
        percent(float(str(trial["spike_share"]))),
        number("spike_rise", 2),
        how if trial["spikes_recovered"] else f"{how}, not recovered",
        number("grad_norm_spikes", 0),
        str(trial["state"]),
        number("val_loss", 4),
        str(trial["id"]),
    ]
