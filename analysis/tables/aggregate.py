"""Summarise a trial's spectra as one number per metric: over its last snapshots, then layers."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.sampling_bias import debiased_hard_rank
from analysis.tables.aggregation import Aggregation, LayerStatistic
from trialstore.records import SPECTRUM_COLUMNS

#: The site whose ranks the scaling laws describe (arXiv 2510.00537).
LAW_SITE = "post"
#: Metrics that are at least 1 for every spectrum.
RANKS = ("hard_rank", "soft_rank", "edim")
#: The hard rank without its bias in the number of samples: computed here, not recorded.
DEBIASED = "hard_rank_debiased"
METRICS = (*SPECTRUM_COLUMNS, DEBIASED)


def with_debiased(spectra: pd.DataFrame) -> pd.DataFrame:
    """Add `hard_rank_debiased` to rows of `SweepTables.spectra`; NaN where N is too small."""
    found = debiased_hard_rank(*(spectra[name].astype(float) for name in ("hard_rank", "N", "D")))
    return spectra.assign(**{DEBIASED: found})


def aggregate(spectra: pd.DataFrame, how: Aggregation) -> pd.DataFrame:
    """Return the spectral summary of every trial in `spectra`.

    Left out are snapshots of step 0, whose weights are untrained; metrics that are missing or
    infinite; and ranks below 1, which no spectrum has.

    Args:
        spectra: Rows of `SweepTables.spectra`.
        how: The number of last snapshots, and the statistic over layers.

    Returns:
        A row per trial that has a snapshot after step 0, indexed by id, with every metric of a
        spectrum, `hard_rank_debiased` and the columns

        - snapshots: of the layer that has the fewest
        - undersampled: whether any spectrum is
        - n_over_d: the least samples per dimension
        - invalid_spectra: spectra (layer x snapshot) with a rank that was left out
        - not_debiased: spectra with a hard rank that has no debiased value, because N is too small
    """
    used = spectra[(spectra["site"] == LAW_SITE) & (spectra["step"] > 0)]
    age = used.groupby(["id", "layer"])["step"].rank(method="dense", ascending=False)
    used = used[age <= how.last]
    metrics = used[list(METRICS)].astype(float)
    valid = pd.DataFrame(np.isfinite(metrics.to_numpy()), metrics.index, metrics.columns)
    for rank in RANKS:
        valid[rank] &= metrics[rank] >= 1
    invalid = pd.Series(~valid[list(RANKS)].to_numpy().all(axis=1), used.index)
    lost = valid["hard_rank"] & ~valid[DEBIASED]
    used = used.assign(**metrics.where(valid), invalid_spectra=invalid, not_debiased=lost)
    by_layer = used.groupby(["id", "layer"], sort=True)  # in order of depth
    layers = by_layer[list(METRICS)].median()
    by_trial = used.assign(undersampled=used["status"] == "undersampled").groupby("id")
    return pd.concat(
        [
            by_layer["step"].nunique().groupby("id").min().rename("snapshots"),
            by_trial["undersampled"].any(),
            by_trial["n_over_d"].min().astype(float),
            by_trial["invalid_spectra"].sum().astype(int),
            by_trial["not_debiased"].sum().astype(int),
            _over_layers(layers, how.layers),
        ],
        axis="columns",
    )


def _over_layers(layers: pd.DataFrame, statistic: LayerStatistic) -> pd.DataFrame:
    of_trial = layers.groupby("id")
    if statistic == "median":
        return of_trial.median()
    if statistic == "mean":
        return of_trial.mean()
    # nth, because first and last would skip a layer without a number.
    chosen = layers.reset_index("layer").groupby("id").nth(0 if statistic == "first" else -1)
    return pd.DataFrame(chosen).drop(columns="layer")


def without_spectra() -> dict[str, Any]:
    """Return the summary of a trial without a snapshot after step 0."""
    return {
        "snapshots": 0,
        "undersampled": False,
        "n_over_d": np.nan,
        "invalid_spectra": 0,
        "not_debiased": 0,
        **dict.fromkeys(METRICS, np.nan),
    }
