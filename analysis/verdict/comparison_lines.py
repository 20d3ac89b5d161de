"""The comparisons between groups as lines for a terminal: the main ones, and how many more."""

import textwrap
from collections import Counter
from collections.abc import Iterator

from analysis.verdict.comparisons import Comparison, Comparisons, Outcome
from analysis.wording import plural

COLUMNS = 96
#: Comparisons that get lines of their own; the report has all.
MOST_LINES = 6
_ORDER: tuple[Outcome, ...] = ("told", "no interval", "not told", "refused")


def comparison_lines(found: Comparisons) -> Iterator[str]:
    """Yield the lines; none where no groups differ in one axis only."""
    if not found.pairs:
        return
    yield "Comparisons between groups: held-out loss of the first-named less that of the second"
    yield from _wrapped(f"({about(found)})", "  ")
    shown = sorted(found.pairs, key=_rank)[:MOST_LINES]
    bases = {pair.basis for pair in shown if pair.basis}
    if len(bases) == 1:
        yield from _wrapped(f"(in every pair here: {next(iter(bases))})", "  ")
    for pair in shown:
        place = f" ({pair.place})" if pair.place else ""
        basis = f"; {pair.basis}" if pair.basis and len(bases) > 1 else ""
        yield from _wrapped(f"{pair.label}{place}: {pair.finding}{basis}.", "  ", "    ")
    hidden = len(found.pairs) - len(shown)
    for note in found.notes:
        yield from _wrapped(note, "  - ", "    ")
    if hidden:
        yield from _wrapped(f"{hidden} more in the report ({counts(found)} in all)", "  ")


def main_pairs(found: Comparisons, most: int) -> list[Comparison]:
    """Return the most important comparisons with a difference, in the order of their axes."""
    known = [pair for pair in found.pairs if pair.primary and pair.difference is not None]
    chosen = {id(pair) for pair in sorted(known, key=_rank)[:most]}
    return [pair for pair in known if id(pair) in chosen]


def about(found: Comparisons) -> str:
    """What the intervals are, in words without a final full stop."""
    if not found.judged:
        return f"{plural(len(found.pairs), 'comparison')}, none of them with an interval"
    return (
        f"pairs of the same width and seed; 90 % intervals of the mean over widths, simultaneous "
        f"over {plural(found.judged, 'comparison')}"
    )


def counts(found: Comparisons) -> str:
    """How many comparisons have which outcome: `3 told, 9 not told`."""
    of = Counter(pair.outcome for pair in found.pairs)
    return ", ".join(f"{of[outcome]} {outcome}" for outcome in _ORDER if of[outcome])


def _rank(pair: Comparison) -> tuple[bool, int, bool, float]:
    """Sorts by importance: the deciding cells, then what is told, at tuned rates, by size."""
    size = 0.0 if pair.difference is None else abs(pair.difference.mean)
    return not pair.primary, _ORDER.index(pair.outcome), not pair.groups.tuned, -size


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    rest = first if later is None else later
    return textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=rest)
