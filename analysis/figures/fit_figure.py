"""The figure of `widthlab fit`: per group the points, the law, and its residuals."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from analysis.figures.style import DASHES, FAINT, INK, LOSS, end_labels, log_ranks, panels, title
from analysis.fit.request import Role
from analysis.fit.saturating_law import SaturatingLaw
from analysis.fit.scaling_fit import ScalingLaw
from analysis.fit.scaling_laws import Variable
from analysis.fit.table_fit import GroupFit, TableFit
from analysis.laws.power_law import PowerLaw
from analysis.refusal import Refusal
from analysis.replicates import Floats
from analysis.wording import large

#: Most groups that the figure shows. Text and JSON have the numbers of all groups.
MOST_GROUPS = 12
#: Most points per group.
_MOST_POINTS = 2000
_CURVES = 5
_PLACES = 120


def fit_figure(fitted: TableFit, names: Mapping[Role, str]) -> Figure:
    """Draw one row of panels per group with a law: the fit and, for a loss law, its residuals.

    Args:
        fitted: The fits; at least one group must have a law.
        names: The column of the table that plays each role, for the labels of the axes.
    """
    drawn = [group for group in fitted.groups if not isinstance(group.fit, Refusal)][:MOST_GROUPS]
    over_losses = isinstance(drawn[0].fit, ScalingLaw)
    figure, grid = panels(rows=len(drawn), columns=2 if over_losses else 1)
    for k, group in enumerate(drawn):
        if isinstance(group.fit, ScalingLaw):
            _loss_law(grid[2 * k], grid[2 * k + 1], group, group.fit, names)
        elif isinstance(group.fit, PowerLaw | SaturatingLaw):
            _curve(grid[k], group, group.fit, names)
    return figure


def _curve(
    axes: Axes, group: GroupFit, law: PowerLaw | SaturatingLaw, names: Mapping[Role, str]
) -> None:
    x, y = _shown([group.rows["x"], group.rows["y"]])
    places = np.geomspace(x.min(), x.max(), _PLACES)
    if isinstance(law, PowerLaw):
        low, high = law.band(places)
        axes.fill_between(places, low, high, color=LOSS, alpha=0.15, linewidth=0)
        text = f"{names['y']} ~ {names['x']}^{law.beta:.3g}"
    else:
        text = f"{law.E:.4g} {'+' if law.A > 0 else '-'} {abs(law.A):.3g} {names['x']}^-{law.b:.3g}"
        axes.axhline(law.E, color=FAINT, linewidth=0.9, linestyle=DASHES)
    axes.plot(places, law.predict(places), color=LOSS, linewidth=1.6)
    axes.plot(x, y, "o", color=LOSS, markersize=4.5)
    title(axes, f"{group.label}: {text}" if group.group else text)
    _amounts(axes, names["x"])
    log_ranks(axes, names["y"])


def _loss_law(
    left: Axes, right: Axes, group: GroupFit, law: ScalingLaw, names: Mapping[Role, str]
) -> None:
    """Loss against the last variable, one curve per value of the first; residuals in percent."""
    variables = law.form.variables
    along, across = variables[-1], variables[0]
    roles: list[Role] = [*variables, "loss"]
    *columns, loss = _shown([group.rows[role] for role in roles])
    rows: dict[Variable, Floats] = dict(zip(variables, columns, strict=True))
    order = np.log(rows[across])
    span = float(np.ptp(order)) or 1.0

    def colour(log_value: Floats | float) -> Any:
        return mpl.colormaps["viridis"](0.02 + 0.64 * (log_value - order.min()) / span)

    miss = 100 * (loss / law.predict(rows) - 1)
    left.scatter(rows[along], loss, c=colour(order), s=18)
    right.scatter(rows[along], miss, c=colour(order), s=18)
    right.axhline(0, color=INK, linewidth=0.9)

    # Any other variable is fixed at its median.
    places = np.geomspace(rows[along].min(), rows[along].max(), _PLACES)
    labels = []
    for value in _spread(rows[across]) if len(variables) > 1 else [float(rows[across].min())]:
        line = {name: np.full(_PLACES, np.median(rows[name])) for name in variables}
        line[across] = np.full(_PLACES, value)
        line[along] = places
        shade = colour(float(np.log(value)))
        left.plot(places, law.predict(line), color=shade, linewidth=1.2)
        if len(variables) > 1:
            labels.append((float(law.predict(line)[-1]), large(value), shade))
        elif (band := law.band(line)) is not None:
            left.fill_between(places, *band, color=shade, alpha=0.15, linewidth=0)
    for axes in (left, right):
        colours = f"   (colour: {names[across]})" if len(variables) > 1 else ""
        _amounts(axes, names[along] + colours)
    log_ranks(left, names["loss"])
    end_labels(left, labels)
    heading = law.form.formula if not group.group else f"{group.label}: {law.form.formula}"
    title(left, heading)
    title(right, "Residuals")
    right.set_ylabel("measured / predicted - 1 (%)")


def _shown(columns: Sequence[Floats]) -> list[Floats]:
    """The rows with positive, finite values, thinned evenly to `_MOST_POINTS`."""
    stacked = np.stack(columns)
    usable = stacked[:, np.all(np.isfinite(stacked) & (stacked > 0), axis=0)]
    step = -(-usable.shape[1] // _MOST_POINTS)
    return list(usable[:, ::step])


def _spread(values: Floats) -> list[float]:
    """At most five of the values, from the smallest to the largest."""
    distinct = np.unique(values)
    at = np.linspace(0, len(distinct) - 1, min(_CURVES, len(distinct))).round().astype(int)
    return [float(value) for value in distinct[at]]


def _amounts(axes: Axes, label: str) -> None:
    """A logarithmic x axis of counts: `100k`, `2M`."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    subs = (1.0,) if high / low > 300 else (1.0, 2.0, 5.0)
    axes.xaxis.set_major_locator(LogLocator(subs=subs, numticks=9))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: large(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel(label, parse_math=False)
