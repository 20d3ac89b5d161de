"""Show a plan on a terminal."""

from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from analysis.wording import duration, plural
from orchestrator.grid.corpus_view import render_contents
from orchestrator.grid.plan import Plan, PlanRow
from orchestrator.grid.plan_cells import left_out, named, value_text
from orchestrator.grid.plan_warnings import WIDTH_AND_SEED
from orchestrator.grid.supply import passes, passes_text
from trainers.data.contents import Contents

#: Columns of words, aligned to the left; numbers are aligned to the right.
WORDS = ("trial", "match")
LEGEND = """\
match: equal across widths (none: d_model; params: N; flops: FLOPs per token;
  all: every matching of the sweep); older sweep files call it hold
D/d: achieved D / d_model, near the requested multiplier
params: all parameters; N: parameters without embedding and head
passes: passes over the training split
memory: of one worker, without Python and torch themselves"""


def render_plan(plan: Plan) -> RenderableType:
    """Return the plan: trials with their cost, totals, dropped and merged cells, and warnings.

    Trials are grouped and sorted by width, which is not the order in which they run.
    """
    parts: list[RenderableType] = [Text(f"Sweep {plan.sweep}", style="bold"), *_rows(plan)]
    if plan.contents is not None:
        parts += [Text(""), *render_contents(plan.contents)]
    parts.append(_totals(plan))
    parts += left_out(plan)
    parts += [Text(f"note: {note}") for note in plan.notes]
    parts += [Text(f"warning: {warning}", style="yellow") for warning in plan.warnings]
    parts.append(Text("to run it: widthlab run FILE, with the same options", style="bold"))
    return Group(*parts)


def _group(row: PlanRow) -> dict[str, Any]:
    """The axes that are equal in trials that are compared: all except width and seed."""
    axes = row.trial.axes
    return {axis: value for axis, value in axes.items() if axis not in WIDTH_AND_SEED}


def _rows(plan: Plan) -> list[Text]:
    """One line per trial, aligned across groups, below a line with what all trials share."""
    facts = [
        _group(row)
        | {
            "seed": row.trial.axes["seed"],
            "tokens": f"{row.tokens:,}",
            "workers": row.workers,
        }
        | ({} if plan.contents is None else {"passes": _passes(row, plan.contents)})
        for row in plan.rows
    ]
    common = {
        fact: value for fact, value in facts[0].items() if all(f[fact] == value for f in facts)
    }

    def different(row: PlanRow) -> dict[str, Any]:
        return {axis: value for axis, value in _group(row).items() if axis not in common}

    def place(row: PlanRow) -> tuple[Any, ...]:
        width = sum(row.trial.spec.model.ffn_widths) / row.trial.spec.model.d_model
        matched_only = "none" not in row.trial.matchings
        # Values without a meaning in a group (null) come last.
        group = [(value is None, value or 0) for value in different(row).values()]
        return (group, matched_only, width, row.trial.axes["seed"])

    ordered = sorted(plan.rows, key=place)
    matchings = {matching for row in plan.rows for matching in row.trial.matchings}
    cells = {
        row.trial.id: {
            name: text
            for name, text in _columns(row, matchings, plan.contents).items()
            if name not in common and (plan.ids_known or name != "trial")
        }
        for row in ordered
    }
    widths = {
        name: max(len(name), *(len(columns[name]) for columns in cells.values()))
        for name in cells[ordered[0].trial.id]
    }

    def line(columns: dict[str, str], style: str = "") -> Text:
        aligned = (
            text.ljust(widths[name]) if name in WORDS else text.rjust(widths[name])
            for name, text in columns.items()
        )
        return Text(" ".join(aligned), style)

    lines = [
        Text(f"every trial: {named(common)}"),
        Text(LEGEND, "dim"),
        line({name: name for name in widths}, "bold"),
    ]
    for group, rows in groupby(ordered, key=different):
        if group:
            lines.append(Text(named(group), style="italic"))
        lines += [line(cells[row.trial.id]) for row in rows]
    return lines


def _passes(row: PlanRow, contents: Contents) -> str:
    about = "about " if contents.estimated else ""
    return f"{about}{passes_text(passes(row.trial.spec, contents))}"


def _columns(row: PlanRow, matchings: set[str], contents: Contents | None) -> dict[str, str]:
    axes, model, own = row.trial.axes, row.trial.spec.model, row.trial.matchings
    return {
        "trial": row.trial.id,
        "match": "all" if len(matchings) > 1 and matchings == set(own) else "+".join(own),
        "seed": str(axes["seed"]),
        "D/d": f"{sum(model.ffn_widths) / model.depth / model.d_model:.4g}",
        "d_model": str(model.d_model),
        "D": value_text(axes["D"]),
        "params": _scaled(row.parameters.total, 4),
        "N": _scaled(row.parameters.non_embedding, 4),
        "FLOPs": _scaled(row.flops),
        "workers": str(row.workers),
        **({} if contents is None else {"passes": _passes(row, contents)}),
        "memory": size(row.memory_bytes),
        "time": duration(row.seconds),
    }


def _totals(plan: Plan) -> Text:
    totals = plan.totals
    parts = [
        plural(totals.trials, "trial"),
        f"{_scaled(totals.flops)} FLOPs",
        _device_time(totals.device_hours),
    ]
    if totals.energy_kwh is not None:
        parts.append(f"{totals.energy_kwh:.3g} kWh")
    if totals.cost is not None:
        parts.append(f"cost {totals.cost:,.2f}")
    basis = "measured" if plan.rate_measured else "a default (nothing was measured yet)"
    return Text(f"\n{', '.join(parts)}\ntimes at {plan.rate:.2g} FLOP/s per worker, {basis}\n")


def _device_time(hours: float) -> str:
    seconds = hours * 3600
    if seconds < 120:
        return duration(seconds)
    count = f"{hours:,.0f}" if 999.5 <= hours < 1e7 else f"{hours:.3g}"
    return f"{count} device-hours ({duration(seconds)})"


def _scaled(number: float, digits: int = 3) -> str:
    """A count with its SI prefix: 1.51G."""
    return "".join(_in_units(number, 1000, ("", *"kMGTPEZYRQ"), digits))


def size(number: float) -> str:
    """Return a number of bytes with three digits and a binary unit: `25.2MiB`."""
    return "".join(_in_units(number, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")))


def _in_units(number: float, step: int, units: tuple[str, ...], digits: int = 3) -> tuple[str, str]:
    """The digits, with the first unit that leaves less than a thousand, or the largest unit."""
    for unit in units[:-1]:
        if number < 1000 - 0.5 * 10 ** (3 - digits):  # else rounding makes a thousand of it
            return f"{number:.{digits}g}", unit
        number /= step
    return f"{number:.{digits}g}", units[-1]
