"""Compare the values of one axis of a finished sweep, paired by replicate.

    python docs/experiments/compare.py SWEEP_DIR --by norm --baseline pre

Prints one line a cell (means over replicates), then for every other value of the axis the paired
differences to the baseline with a 90 % t-interval over replicates. Ratios are of geometric means.
"""

import argparse

import numpy as np
import pandas as pd
from scipy import stats

from analysis.tables.sweep_tables import load_sweep
from trialstore.storage import open_storage

SHOWN = ["val_loss", "hard_rank", "hard_utilisation", "soft_rank", "concentration"]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("sweep")
    parser.add_argument("--by", required=True, help="an axis of the grid")
    parser.add_argument("--baseline", required=True, help="the value that others are held against")
    options = parser.parse_args()
    tables = load_sweep(open_storage(options.sweep))
    trials = tables.trials
    keys = [*tables.group_axes, "typed_multiplier"]
    keys = [key for key in keys if trials[key].nunique(dropna=False) > 1 or key == options.by]
    trials["ended"] = (trials["state"] == "completed").astype(int)
    means = trials.groupby(keys, dropna=False)[SHOWN].mean()
    spread = trials.groupby(keys, dropna=False)["val_loss"].agg(lambda x: x.max() - x.min())
    ended = trials.groupby(keys, dropna=False)["ended"].agg("sum")
    print(means.assign(loss_range=spread, completed=ended).to_string(float_format="%.4g"))
    print()
    # An axis that has one value for each of these (nGPT its own norm) tells no cells apart.
    varies = trials.groupby(options.by)[keys].nunique(dropna=False).max()
    others = [key for key in keys if key != options.by and varies[key] > 1]
    for value in sorted(set(trials[options.by]) - {options.baseline}):
        for metric, relative in (
            ("val_loss", False),
            ("hard_rank", True),
            ("concentration", False),
        ):
            for cell, pair in paired(trials, options.by, options.baseline, value, others, metric):
                print(
                    f"{value} - {options.baseline}  {cell}  {metric}: {difference(pair, relative)}"
                )


def paired(trials, by, baseline, value, others, metric):
    """(cell, [replicates, 2]) of baseline and value for every cell of the other axes."""
    kept = trials[trials[by].isin([baseline, value])]
    groups = kept.groupby(others, dropna=False) if others else [((), kept)]
    for cell, rows in groups:
        pairs = rows.pivot_table(index="replicate", columns=by, values=metric).dropna()
        if {baseline, value} <= set(pairs.columns):
            yield dict(zip(others, cell, strict=True)), pairs[[baseline, value]].to_numpy()


def difference(pair: np.ndarray, relative: bool) -> str:
    """Mean paired difference, or ratio of geometric means, with its 90 % t-interval."""
    steps = np.diff(np.log(pair) if relative else pair, axis=1)[:, 0]
    mean, n = steps.mean(), len(steps)
    if n < 2:
        return f"{np.exp(mean) if relative else mean:+.3g} (one replicate)"
    half = stats.t.ppf(0.95, n - 1) * steps.std(ddof=1) / np.sqrt(n)
    low, mid, high = (mean - half, mean, mean + half)
    if relative:
        low, mid, high = np.exp([low, mid, high])
        return f"x {mid:.3g} [{low:.3g}, {high:.3g}], n = {n}"
    return f"{mid:+.4f} [{low:+.4f}, {high:+.4f}], n = {n}"


if __name__ == "__main__":
    pd.set_option("display.width", 160)
    main()
