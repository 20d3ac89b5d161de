"""The fits of a table as text for a terminal."""

from analysis.fit.saturating_law import SaturatingLaw
from analysis.fit.scaling_fit import FLAT_WITHIN, ScalingLaw
from analysis.fit.table_fit import GroupFit, TableFit, intervals_of, parameters_of, warnings_of
from analysis.laws.power_law import PowerLaw
from analysis.refusal import Refusal
from analysis.wording import percent, plural


def as_text(fitted: TableFit) -> str:
    """Return the fits of all groups as text for a terminal."""
    return "\n\n".join(_group_text(group) for group in fitted.groups)


def _group_text(group: GroupFit) -> str:
    heading = f"{group.label}: {_formula(group)}" if group.group else _formula(group)
    left_out = sum(group.excluded.values())
    why = ", ".join(f"{count} {reason}" for reason, count in group.excluded.items())
    lines = [heading, plural(group.n, "row") + (f", {left_out} left out ({why})" if why else "")]
    law = group.fit
    if isinstance(law, Refusal):
        return "\n".join([*lines, f"  no law: {law.sentence}"])
    parameters, intervals = parameters_of(law), intervals_of(law)
    if isinstance(law, ScalingLaw) and law.allocation is not None:
        parameters["allocation_exponent"] = law.allocation
    for name, value in parameters.items():
        bounds = intervals.get(name)
        where = "" if bounds is None else f"   90 %: {bounds[0]:.4g} to {bounds[1]:.4g}"
        what = "   (N_opt ~ C^allocation)" if name == "allocation_exponent" else ""
        shown = name.removesuffix("_exponent")
        lines.append(f"  {shown:<11}{value:>12.5g}{where}{what}")
    lines.append(f"  objective {law.objective:.6g}, R2 {law.r_squared:.4f}")
    if law.interval_method:
        lines.append(f"  intervals: {law.interval_method}")
    if isinstance(law, PowerLaw):
        if law.lack_of_fit_p is not None:
            lines.append(f"  lack of fit: p = {law.lack_of_fit_p:.2g}")
    else:
        lines.append(
            f"  starts: {percent(law.share_at_best)} of {law.starts} reached this objective"
        )
    if isinstance(law, ScalingLaw):
        lines.append(f"  condition number {law.condition_number:.3g}")
        if law.flat_ranges:
            ranges = (
                f"{name} {low:.4g} to {high:.4g}" for name, (low, high) in law.flat_ranges.items()
            )
            lines.append(f"  within {percent(FLAT_WITHIN)} of the objective: {', '.join(ranges)}")
    return "\n".join([*lines, *(f"  warning: {text}" for text in warnings_of(law))])


def _formula(group: GroupFit) -> str:
    law = group.fit
    if isinstance(law, ScalingLaw):
        return f"loss = {law.form.formula}"
    if isinstance(law, SaturatingLaw):
        return "y = E + A x^-b"
    return "y = exp(intercept) x^beta" if isinstance(law, PowerLaw) else "refused"
