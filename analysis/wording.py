"""The text form of numbers, intervals and groups, for the report and the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.replicates import Interval

#: Prefix of a column of `trials` for an axis that has the name of a measured quantity.
AXIS_PREFIX = "axis_"


def axis_of(column: str) -> str:
    """Return the sweep file's name of the axis in a column of `trials`."""
    return column.removeprefix(AXIS_PREFIX).replace("base_d_model", "d_model")


def group_label(group: Mapping[str, Any]) -> str:
    """Return a group in a few words: `gpt2, pre, depth 2`.

    Axes with the value None are left out, and equal words appear once (nGPT's norm is `ngpt` too).
    """
    words = [
        value if isinstance(value, str) else f"{axis_of(axis).replace('_', ' ')} {value}"
        for axis, value in group.items()
        if value is not None
    ]
    return ", ".join(dict.fromkeys(words)) or "all trials"


def multiple(multiplier: float) -> str:
    """Format a width multiplier: `2.67x`."""
    return f"{multiplier:.3g}x"


def percent(share: float) -> str:
    """Format a share with at most one decimal: 0.975 gives `97.5 %`."""
    return f"{100 * share:.1f}".removesuffix(".0") + " %"


def interval(bounds: Interval | None, digits: int = 2) -> str:
    """Format an interval in a sentence: `0.41 to 0.55`, or `unknown` for None."""
    return "unknown" if bounds is None else f"{bounds[0]:.{digits}f} to {bounds[1]:.{digits}f}"


def bracketed(bounds: Interval, digits: int = 2) -> str:
    """Format an interval in a table or after its estimate: `[0.41, 0.55]`."""
    return f"[{bounds[0]:.{digits}f}, {bounds[1]:.{digits}f}]"


def passes_text(passes: Interval) -> str:
    """Format the fewest and most passes over the data: `25.5`, or `12.7 to 25.5`."""
    fewest, most = (f"{number:.3g}" for number in passes)
    return most if fewest == most else f"{fewest} to {most}"


def named_layers(layers: Sequence[int]) -> str:
    """Name layers in ascending order, runs of three or more as one: `layers 0-5, 7 and 9`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    words = [
        word
        for run in runs
        for word in ([f"{run[0]}-{run[-1]}"] if len(run) > 2 else map(str, run))
    ]
    *others, final = words
    noun = "layer" if len(layers) == 1 else "layers"
    return f"{noun} {', '.join(others)} and {final}" if others else f"{noun} {final}"


def plural(number: int, noun: str) -> str:
    """Format a count with its noun: `1 trial`, `3 trials`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def large(number: float) -> str:
    """Format a large count with a suffix: `98.3k`, `1.34B`; `unknown` if not finite."""
    if not np.isfinite(number):
        return "unknown"
    for limit, suffix in ((1e3, ""), (1e6, "k"), (1e9, "M")):
        if abs(number) < 0.9995 * limit:
            return f"{number / limit * 1e3:.3g}{suffix}"
    return f"{number / 1e9:.4g}B"


def flops(number: float) -> str:
    """Format floating-point operations: `2.0e13 FLOPs`."""
    if not np.isfinite(number):
        return "FLOPs unknown"
    mantissa, _, exponent = f"{number:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)} FLOPs"


def duration(seconds: float) -> str:
    """Format seconds to about two digits: `43 s`, `12 min`, `2.2 h`, `3.5 days`."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{round(whole / 60)} min"
    if whole < 48 * 3600:
        return f"{seconds / 3600:.1f} h"
    days = seconds / 86400
    return f"{days:.1f} days" if days < 999.5 else f"{days:.3g} days"
