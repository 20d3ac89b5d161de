"""The report's section on the comparisons between groups, and their tables for programs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.page import Table, drawn_figure, render, sentence
from analysis.verdict.comparison_lines import about, counts, main_pairs
from analysis.verdict.comparisons import CELL_NAMES, Comparison, Comparisons
from analysis.verdict.simultaneous import POWER
from analysis.wording import axis_of, bracketed, multiple, percent, plural

#: Rows of the table that is not folded.
MOST_ROWS = 24
CAPTION = (
    "Large dot: mean over widths. Bar: its simultaneous 90 % interval, green where it excludes 0; "
    "none with one replicate. Small dots: widths, dark for narrow ones. Right: pairs in which the "
    "first-named has the lower loss."
)
#: Keys of an entry of recommendation.json that are no column of the table.
_NESTED = ("where", "settings", "interval", "missing", "broken", "equal", "ratios", "widths")


def comparisons_section(found: Comparisons, svgs: Mapping[str, bytes]) -> Markup:
    """Return the section; nothing where no groups differ in one axis only."""
    if not found.pairs:
        return Markup("")
    known = [pair for pair in found.pairs if pair.primary and pair.difference is not None]
    shown = main_pairs(found, MOST_ROWS)
    others = [pair for pair in found.pairs if not pair.primary]
    remarks = [(pair, "; ".join(pair.remarks)) for pair in known if pair.remarks]
    bases, at_others = ({pair.basis for pair in pairs} for pairs in (known, others))
    return render(
        "comparisons.html",
        about=sentence(about(found)),
        counts=counts(found),
        notes=found.notes,
        judged=found.judged,
        figure=drawn_figure(svgs, "comparisons", CAPTION),
        basis=next(iter(bases)) if len(bases) == 1 else "",
        others_basis=next(iter(at_others)) if len(at_others) == 1 else "",
        shown=_table(shown) if shown else None,
        all=_table(known) if len(known) > len(shown) else None,
        count=plural(len(known), "comparison"),
        others=_table(others, cells=True) if others else None,
        by_width=_by_width(shown) if any(_several(pair) for pair in shown) else None,
        remarks=[f"{_named(pair)}: {text}." for pair, text in remarks],
        most=MOST_ROWS,
        refused=_refused(found),
        power=percent(POWER),
        plural=plural,
    )


def comparisons_table(found: Comparisons) -> pd.DataFrame:
    """Return one row per comparison; nested values are left to recommendation.json."""
    rows = []
    for pair in found.pairs:
        entry = pair.to_dict()
        low, high = entry["interval"] or (None, None)
        row = {name: value for name, value in entry.items() if name not in _NESTED}
        row |= {"where": pair.place, "settings": "; ".join(pair.groups.settings)}
        for cost, ratio in entry.get("ratios", {}).items():
            row[f"{cost}_ratio"] = ratio[1]
        rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def differences_table(found: Comparisons) -> pd.DataFrame:
    """Return one row per comparison and width, with the width's own interval."""
    rows: list[dict[str, Any]] = []
    for pair in found.pairs:
        entry = pair.to_dict()
        names = {name: entry[name] for name in ("axis", "baseline", "other", "cells")}
        for width in entry.get("widths", []):
            low, high = width["interval"] or (None, None)
            row = {name: value for name, value in width.items() if name != "interval"}
            rows.append({**names, "where": pair.place, **row, "low": low, "high": high})
    return pd.DataFrame(rows)


def _table(pairs: Sequence[Comparison], *, cells: bool = False) -> Table:
    several = len({pair.basis for pair in pairs}) > 1
    placed = any(pair.place for pair in pairs)
    names = [
        "comparison",
        *(["where"] if placed else []),
        "difference",
        "90 % interval",
        "first lower in",
    ]
    names += ["finding", "smallest told", *(["cells"] if cells else [])]
    names += ["equal in a pair, and ratios"] if several else []
    groups: dict[str, list[list[str]]] = {}
    for pair in pairs:
        row = [pair.label, *([pair.place] if placed else []), *_numbers(pair)]
        row += [CELL_NAMES[pair.cells]] if cells else []
        row += [pair.basis] if several else []
        groups.setdefault(axis_of(pair.groups.axis).replace("_", " "), []).append(row)
    return Table(names, groups)


def _numbers(pair: Comparison) -> list[str]:
    assert pair.difference is not None
    ahead, count = pair.ahead
    lower = pair.groups.other if pair.difference.mean < 0 else pair.groups.baseline
    finding = f"{lower} lower" if pair.outcome == "told" else pair.outcome
    return [
        f"{pair.difference.mean:+.4f}",
        "" if pair.interval is None else bracketed(pair.interval, 4),
        f"{ahead} of {count}",
        finding + (", by width" if pair.depends_on_width else ""),
        "" if pair.limit is None else f"{pair.limit.smallest_told:.2g}",
    ]


def _by_width(pairs: Sequence[Comparison]) -> Table:
    """The difference at each width, with its own interval."""
    found = {float(width) for pair in pairs if pair.difference for width in pair.difference.widths}
    widths = list(dict.fromkeys(map(multiple, sorted(found))))
    rows = []
    for pair in pairs:
        assert pair.difference is not None
        cells = dict.fromkeys(widths, "")
        own = pair.difference
        for width, mean, bounds in zip(own.widths, own.by_width, own.intervals, strict=True):
            known = f" {bracketed(tuple(bounds), 3)}" if bounds[0] == bounds[0] else ""
            cells[multiple(width)] = f"{mean:+.3f}{known}"
        p = "" if pair.width_p is None else f"{pair.width_p:.2g}"
        rows.append([_named(pair), *cells.values(), p])
    return Table(["comparison", *widths, "p"], {"": rows})


def _several(pair: Comparison) -> bool:
    return pair.difference is not None and len(pair.difference.widths) > 1


def _named(pair: Comparison) -> str:
    return f"{pair.label} ({pair.place})" if pair.place else pair.label


def _refused(found: Comparisons) -> list[str]:
    """The comparisons that were not made: each one, or their number where a reason recurs."""
    refused = [pair for pair in found.pairs if pair.outcome == "refused"]
    of = Counter(pair.finding for pair in refused)
    one = {pair.finding: _named(pair) for pair in refused}
    return [
        f"{one[reason] if count == 1 else plural(count, 'comparison')}: {reason}."
        for reason, count in of.most_common()
    ]
