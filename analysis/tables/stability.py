"""The stability of a trial's training as columns of the table of trials."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from analysis.stability import judge_stability

#: Columns that `stability_row` fills.
STABILITY = (
    *("spikes", "spike_share", "spike_rise", "spikes_recovered", "unstable", "grad_norm_spikes"),
    *("fall_last_tenth", "fall_per_doubling", "peak_learning_rate"),
)


def stability_row(curve: pa.Table) -> dict[str, Any]:
    """Judge a trial by its metrics table, whether it is over or not.

    Args:
        curve: rows of the metrics table, in order of step.

    Returns:
        spikes [of the training loss]; spike_share [of the updates above the level before a spike];
        spike_rise [largest, nats]; spikes_recovered, unstable [true, false, or None with too few
        training losses]; grad_norm_spikes; fall_last_tenth [nats, of the held-out loss over the
        last tenth of the updates]; fall_per_doubling [nats, per doubling of the updates];
        peak_learning_rate. Numbers that are unknown are NaN.
    """
    train = curve.filter(pc.equal(curve["kind"], "train"))
    evaluation = curve.filter(pc.equal(curve["kind"], "evaluation"))
    found = judge_stability(
        train["step"].to_pylist(),
        _floats(train, "train_loss"),
        _floats(train, "grad_norm"),
        evaluation["step"].to_pylist(),
        _floats(evaluation, "val_loss"),
    )
    loss, norm = found.loss, found.norm
    rates = _floats(train, "learning_rate")
    rates = rates[np.isfinite(rates)]
    return {
        "spikes": np.nan if loss is None else float(loss.count),
        "spike_share": np.nan if loss is None else loss.share,
        "spike_rise": np.nan if loss is None else loss.largest,
        "spikes_recovered": None if loss is None else loss.recovered,
        "unstable": None if loss is None else loss.unstable,
        "grad_norm_spikes": np.nan if norm is None else float(norm.count),
        "fall_last_tenth": found.fall_last_tenth,
        "fall_per_doubling": found.fall_per_doubling,
        "peak_learning_rate": float(rates.max()) if len(rates) else np.nan,
    }


def _floats(table: pa.Table, name: str) -> np.ndarray:
    """[n] a column with NaN in place of null."""
    return np.array([np.nan if v is None else v for v in table[name].to_pylist()], float)
