"""A rank of every layer of every trial: the table that laws of single layers are fitted to."""

import numpy as np
import pandas as pd

from analysis.tables.aggregate import LAW_SITE


def ranks_by_layer(
    spectra: pd.DataFrame, rank: str, ids: pd.Index, last: int, name: str
) -> tuple[pd.DataFrame, dict[str, int]]:
    """Return a rank with a row per trial and a column per layer, and counts of what is left out.

    A layer's rank is its median over the last snapshots after step 0, at the site of the rank laws.

    Args:
        spectra: rows of `SweepTables.spectra` of these trials.
        rank: the column.
        ids: the trials.
        last: snapshots per layer.
        name: of the rank, in the counts: `trials without an eDim of every layer`.

    Returns:
        The ranks of the trials that have one in every layer, and reason -> trials or snapshots.
    """
    measured = spectra[(spectra["site"] == LAW_SITE) & (spectra["step"] > 0)]
    age = measured.groupby(["id", "layer"])["step"].rank(method="dense", ascending=False)
    newest = measured[age <= last]
    values = newest[rank].astype(float)
    valid = np.isfinite(values) & (values >= 1)
    ranks = newest[valid].groupby(["id", "layer"])[rank].median().unstack("layer")
    ranks = ranks.reindex(pd.Index(newest["id"].unique()))
    whole = ranks.notna().all(axis=1)
    article = "an" if name[0] in "aeiou" else "a"
    counts = {
        "trials without spectra": len(ids.difference(ranks.index)),
        f"trials without {article} {name} of every layer": int((~whole).sum()),
        f"snapshots whose {name} is no number from 1 on": int((~valid).sum()),
    }
    return ranks[whole], {reason: count for reason, count in counts.items() if count}
