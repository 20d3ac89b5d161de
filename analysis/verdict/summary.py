"""The verdicts as plain text for a terminal of 96 columns."""

import textwrap
from collections import Counter
from collections.abc import Iterator

from analysis.laws.power_law import PowerLaw, is_shown
from analysis.laws.spectral import SpectralEvidence
from analysis.refusal import Refusal
from analysis.tables.sweep_tables import SweepTables
from analysis.verdict.comparison_lines import comparison_lines
from analysis.verdict.fixed_rates import NO_VERDICT
from analysis.verdict.group_verdict import GroupVerdict, Recommendation
from analysis.verdict.supply import SELECTION
from analysis.wording import bracketed, duration, flops, group_label, passes_text, plural

COLUMNS = 96


def summarise(tables: SweepTables, recommendation: Recommendation) -> str:
    """Return trial counts, rank exponents and the verdict of every group; ends with a newline."""
    lines = [headline(tables), "", *_laws(recommendation), ""]
    common = shared_caveats(recommendation)
    for verdict in recommendation.groups:
        lines += [*_verdict(verdict, common), ""]
    for found in recommendation.transfers:
        lines += [*_wrapped(f"{found.label}: {found.sentence}.", "", "  "), ""]
    compared = list(comparison_lines(recommendation.comparisons))
    if compared:
        lines += [*compared, ""]
    if common:
        lines.append("Caveats of every group" if len(recommendation.groups) > 1 else "Caveats")
        lines += [line for caveat in common for line in _wrapped(caveat, "  - ")]
    return "\n".join(lines).rstrip() + "\n"


def headline(tables: SweepTables) -> str:
    """Return one line on the trials: how many in each state, device time, FLOPs, passes."""
    trials = tables.trials
    states = Counter(trials["state"])
    counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
    line = f"{tables.name}: {plural(len(trials), 'trial')}, {counts}"
    seconds = float(trials["seconds_total"].sum())
    if seconds > 0:
        spent = float(trials.loc[trials["tokens"].notna(), "flops"].sum(min_count=1))
        line += f"; {duration(seconds)} of device time, {flops(spent)}"
    passes = trials["passes"].dropna()
    if len(passes) and passes.max() > 1:
        line += f"; {passes_text((passes.min(), passes.max()))} passes over the training data"
    return "; ".join([line, *tables.left_out])


def shared_caveats(recommendation: Recommendation) -> list[str]:
    """Return the caveats that all groups share."""
    first, *others = recommendation.groups
    return [caveat for caveat in first.caveats if all(caveat in other.caveats for other in others)]


def _laws(recommendation: Recommendation) -> Iterator[str]:
    yield "Exponents of rank over FFN width D, with 90 % intervals"
    label_width = max(len("group"), *(len(verdict.label) for verdict in recommendation.groups))
    label_width = min(label_width, 34)

    def row(label: str, *cells: str) -> str:
        above = ""
        if len(label) > label_width:  # on its own lines: labels may differ only at the end
            above, label = "\n".join(_wrapped(label, "  ", "    ")) + "\n", ""
        columns = "  ".join(f"{cell:<17}" for cell in cells)
        return above + f"  {label:<{label_width}}  {columns}".rstrip()

    yield from _wrapped(f"(a trial's rank: {recommendation.aggregation})", "")
    yield from _wrapped("(hard rank: debiased in the number of samples; raw: as recorded)", "")
    yield row("group", "soft rank", "hard rank", "soft - hard")
    for verdict in recommendation.groups:
        soft = verdict.spectral.laws["soft_rank"]
        hard = verdict.spectral.laws["hard_rank"]
        yield row(verdict.label, *_exponents(verdict.spectral))
        if isinstance(soft, Refusal) and isinstance(hard, Refusal):
            yield from _wrapped(f"({soft.sentence})", "    ")
        else:
            yield from _wrapped(f"raw hard rank {_exponent(hard)}", "      ")
        if verdict.layers.spread_sentence:
            yield from _wrapped(f"single layers: {verdict.layers.spread_sentence}", "      ")
        for at in verdict.at_rates:
            yield row(f"  learning rate {at.learning_rate:g}", *_exponents(at.spectral))


def _exponents(spectral: SpectralEvidence) -> list[str]:
    """The exponents of soft rank, hard rank and their ratio; `no law` where none has one."""
    laws = spectral.laws
    gap = laws["asymmetry"]
    if isinstance(laws["soft_rank"], Refusal) and isinstance(laws["hard_rank_debiased"], Refusal):
        return ["no law"]
    cells = [_exponent(laws[name]) for name in ("soft_rank", "hard_rank_debiased", "asymmetry")]
    if isinstance(gap, PowerLaw):
        cells[2] += "" if is_shown(gap) else " not shown"
    return cells


def _exponent(law: PowerLaw | Refusal) -> str:
    if isinstance(law, Refusal):
        return "no law"
    return f"{law.beta:.2f} {bracketed(law.beta_interval)}"


def _verdict(verdict: GroupVerdict, common: list[str]) -> Iterator[str]:
    yield from _wrapped(f"{group_label(verdict.group)}: {verdict.sentence}.", "", "  ")
    if verdict.verdict == "recommended":
        yield from _wrapped(f"rule: {verdict.rule}.", "  ")
    if verdict.verdict == "plateau":
        yield from _wrapped(f"no single width: {verdict.rule}.", "  ")
    if verdict.on_best is not None:
        yield from _wrapped(f"by best losses: {verdict.on_best.sentence}. {SELECTION}", "  ")
    for choice in verdict.choices:
        yield from _wrapped(f"{choice.sentence}.", "  ")
    for found in verdict.at_budgets:
        deciding = verdict.deciding is not None and found.currency == verdict.deciding.matching
        if found.source is not None and not deciding:
            yield from _wrapped(f"{found.sentence}.", "  ")
    if verdict.at_rates:
        each = "; ".join(at.sentence for at in verdict.at_rates)
        yield from _wrapped(f"optimum at one learning rate: {each}. {NO_VERDICT}", "  ")
    yield from _wrapped(f"spectra: {verdict.spectral_sentence}.", "  ")
    for caveat in verdict.caveats:
        if caveat not in common:
            yield from _wrapped(caveat, "  - ")
    for cells in verdict.run_next:
        added = "" if cells.planned else "; add to the file:"
        yield from _wrapped(f"run next: {cells.why} ({cells.cost}){added}", "  ")
        yield from textwrap.indent(cells.to_yaml(), "      ").splitlines()


def _wrapped(text: str, first: str, later: str | None = None) -> list[str]:
    rest = " " * len(first) if later is None else later
    return textwrap.wrap(text, COLUMNS, initial_indent=first, subsequent_indent=rest)
