"""The report's section on the data: corpus, split, sources, files left out, losses in encoding.

The section shows what the run wrote into `resolved.corpus` of sweep.yaml. Values that are missing
or of a wrong type are skipped: a storage may hold files that widthlab did not write.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from markupsafe import Markup

from analysis.report.page import Table, plain_table, render
from analysis.tables.sweep_tables import SweepTables
from analysis.wording import large, percent, plural
from trialstore.sweep_file import section

#: The largest sources that get a row of their own; one row sums up the rest.
MOST_SOURCES = 12
SPLITS = {"train": "training", "heldout": "held out"}
COUNTS = ("documents", "bytes", "tokens")


def data_section(tables: SweepTables) -> Markup:
    """Return the section on the data, or one sentence if the run recorded nothing."""
    corpus = section(section(tables.config, "resolved"), "corpus")
    remarks = corpus.get("remarks")
    return render(
        "data.html",
        configured=_configured(tables),
        recorded=bool(corpus),
        rule=str(corpus.get("split_rule") or ""),
        splits=_splits(corpus),
        sources=_sources(corpus),
        left_out=_left_out(corpus),
        remarks=[str(one) for one in remarks] if isinstance(remarks, list) else [],
        most_remarks=MOST_SOURCES,
        encoding=_encoding(corpus),
        plural=plural,
    )


def sources_table(tables: SweepTables) -> pd.DataFrame:
    """Return one row per source and split, with its documents, bytes and tokens.

    The frame has no columns if the run did not record its sources.
    """
    corpus = section(section(tables.config, "resolved"), "corpus")
    rows = [
        {"source": str(row.get("source")), "split": str(row.get("split"))}
        | {name: _count(row.get(name)) for name in COUNTS}
        for row in _objects(corpus, "sources")
    ]
    return pd.DataFrame(rows)


def _configured(tables: SweepTables) -> str:
    """Name the corpus and the tokenizer as the sweep file does."""
    told = []
    for name in ("corpus", "tokenizer"):
        given = section(tables.config, name)
        own = [
            f"{key.replace('_', ' ')} {value}"
            for key, value in given.items()
            if key != "kind" and isinstance(value, str | int) and not isinstance(value, bool)
        ]
        if given.get("kind"):
            told.append(f"{name} {given['kind']}" + (f" ({', '.join(own)})" if own else ""))
    return "; ".join(told)


def _splits(corpus: Mapping[str, Any]) -> Table | None:
    splits = section(corpus, "splits")
    rows, sums = [], dict.fromkeys(COUNTS, 0)
    for split, title in SPLITS.items():
        of = section(splits, split)
        counts = {name: _count(of.get(name)) for name in COUNTS}
        rows.append((title, counts))
        for name in COUNTS:
            sums[name] += counts[name] or 0
    if not any(count is not None for _, counts in rows for count in counts.values()):
        return None
    return plain_table(
        ["split", "documents", "bytes", "tokens", "share of the tokens"],
        [
            [
                title,
                *(_number(counts[name]) for name in COUNTS),
                _share(counts["tokens"], sums["tokens"]),
            ]
            for title, counts in rows
        ],
    )


def _sources(corpus: Mapping[str, Any]) -> Table | None:
    """List the largest sources, with the share of each in both splits."""
    sources: dict[str, dict[str, dict[str, int | None]]] = {}
    for row in _objects(corpus, "sources"):
        counts = {name: _count(row.get(name)) for name in COUNTS}
        sources.setdefault(str(row.get("source")), {})[str(row.get("split"))] = counts
    if not sources:
        return None
    ordered = sorted(sources.items(), key=lambda item: (-_size(item[1]), item[0]))
    shown, others = ordered[:MOST_SOURCES], ordered[MOST_SOURCES:]
    if len(others) == 1:  # its own row says more than "1 other source"
        shown, others = ordered, []
    of_split = {split: sum(_tokens(own, split) for _, own in ordered) for split in SPLITS}
    rows = [_source_row(name, [own], of_split) for name, own in shown]
    if others:
        title = f"{len(others)} other sources"
        rows.append(_source_row(title, [own for _, own in others], of_split))
    names = ["source", "documents", "bytes", "training tokens", "share", "held-out tokens", "share"]
    return plain_table(names, rows)


def _source_row(
    name: str,
    members: Sequence[Mapping[str, Mapping[str, int | None]]],
    of_split: Mapping[str, int],
) -> list[str]:
    def total(what: str) -> int:
        return sum(counts[what] or 0 for own in members for counts in own.values())

    row = [name, _number(total("documents")), _number(total("bytes"))]
    for split in SPLITS:
        tokens = sum(_tokens(own, split) for own in members)
        row += [_number(tokens), _share(tokens, of_split[split])]
    return row


def _size(own: Mapping[str, Mapping[str, int | None]]) -> int:
    """Size for ordering: tokens, or bytes if the tokens are unknown."""
    tokens = sum(counts["tokens"] or 0 for counts in own.values())
    return tokens or sum(counts["bytes"] or 0 for counts in own.values())


def _tokens(own: Mapping[str, Mapping[str, int | None]], split: str) -> int:
    return own[split]["tokens"] or 0 if split in own else 0


def _left_out(corpus: Mapping[str, Any]) -> Table | None:
    rows = [
        [
            str(row.get("reason") or ""),
            str(row.get("suffix") or ""),
            f"{_number(_count(row.get('count')))} {row.get('unit') or ''}",
            str(row.get("example") or ""),
        ]
        for row in _objects(corpus, "left_out")
    ]
    return plain_table(["reason", "suffix", "how many", "for example"], rows) if rows else None


def _encoding(corpus: Mapping[str, Any]) -> str:
    encoding = section(corpus, "encoding")
    if not encoding:
        return ""
    told = []
    if encoding.get("lossless") is True:
        told.append("The tokenizer is lossless: decoding returns the encoded text.")
    for name, what in (
        ("unknown_share", "of the tokens are the unknown token"),
        ("lost_share", "of the characters have no token"),
    ):
        share = encoding.get(name)
        if isinstance(share, int | float) and not isinstance(share, bool) and share > 0:
            told.append(f"{_positive_percent(float(share))} {what}.")
    altered = _count(encoding.get("altered_documents"))
    if altered:
        told.append(f"{plural(altered, 'document')} change when they are encoded and decoded.")
    if encoding.get("lossless") is not True and not told:
        told.append("The tokenizer can alter text, but it altered none of these documents.")
    return " ".join(told)


def _objects(corpus: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    given = corpus.get(name)
    return [row for row in given if isinstance(row, Mapping)] if isinstance(given, list) else []


def _count(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value < 2**63 else None  # type: ignore[operator,return-value]


def _number(count: int | None) -> str:
    """A count in full up to a million; empty if unknown."""
    if count is None:
        return ""
    return f"{count:,}" if count < 1_000_000 else large(count)


def _share(part: int | None, whole: int) -> str:
    return "" if part is None or not whole else percent(part / whole)


def _positive_percent(share: float) -> str:
    """A positive share, never rounded to 0 %."""
    return percent(share) if share >= 0.0005 else "Less than 0.1 %"
