"""From the snapshots of a trial to one number per metric: over its last snapshots, then layers."""

from typing import Any

import numpy as np
import pandas as pd

from analysis.tables.aggregation import Aggregation, LayerStatistic
from trialstore.records import SPECTRUM_COLUMNS

#: The site whose ranks the scaling laws are about (arXiv 2510.00537).
LAW_SITE = "post"
#: At least 1 by definition, whatever the spectrum.
RANKS = ("hard_rank", "soft_rank", "edim")


def aggregate(spectra: pd.DataFrame, how: Aggregation) -> pd.DataFrame:
    """The spectral summary of every trial in `spectra` (rows of `SweepTables.spectra`), by id.

    Snapshots of step 0 are of weights that have learnt nothing and never enter. A metric that is
    missing or infinite, and a rank below 1, which no spectrum has, is left out and counted in
    `invalid_spectra`: rows (layer x snapshot) with such a number among their ranks.
    `snapshots` is how many the layer with the fewest had; `n_over_d` the least samples per
    dimension; `undersampled` whether any of them says so.
    """
    used = spectra[(spectra["site"] == LAW_SITE) & (spectra["step"] > 0)]
    age = used.groupby(["id", "layer"])["step"].rank(method="dense", ascending=False)
    used = used[age <= how.last]
    metrics = used[list(SPECTRUM_COLUMNS)].astype(float)
    valid = pd.DataFrame(np.isfinite(metrics.to_numpy()), metrics.index, metrics.columns)
    for rank in RANKS:
        valid[rank] &= metrics[rank] >= 1
    invalid = pd.Series(~valid[list(RANKS)].to_numpy().all(axis=1), used.index)
    used = used.assign(**metrics.where(valid), invalid_spectra=invalid)
    by_layer = used.groupby(["id", "layer"], sort=True)  # in order of depth
    layers = by_layer[list(SPECTRUM_COLUMNS)].median()
    by_trial = used.assign(undersampled=used["status"] == "undersampled").groupby("id")
    return pd.concat(
        [
            by_layer["step"].nunique().groupby("id").min().rename("snapshots"),
            by_trial["undersampled"].any(),
            by_trial["n_over_d"].min().astype(float),
            by_trial["invalid_spectra"].sum().astype(int),
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
    # nth, not first and last: these would pass over a layer that has no number.
    chosen = layers.reset_index("layer").groupby("id").nth(0 if statistic == "first" else -1)
    return pd.DataFrame(chosen).drop(columns="layer")


def without_spectra() -> dict[str, Any]:
    """The summary of a trial that has no snapshot to sum up."""
    return {
        "snapshots": 0,
        "undersampled": False,
        "n_over_d": np.nan,
        "invalid_spectra": 0,
        **dict.fromkeys(SPECTRUM_COLUMNS, np.nan),
    }
