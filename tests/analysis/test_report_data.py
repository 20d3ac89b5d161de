"""Claims about the report's section on the data, and about numbers that are not there."""

import json
import re
from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from analysis.pipeline import analyse
from trialstore.storage import LocalStorage

Build = Callable[..., LocalStorage]
#: Fourteen sources of 1,000 to 14,000 training tokens; the largest also has 500 held-out ones.
SOURCES = [
    {"source": f"s{n:02}.jsonl", "split": "train", "documents": n, "bytes": 4000 * n,
     "tokens": 1000 * n}
    for n in range(1, 15)
] + [
    {"source": "s14.jsonl", "split": "heldout", "documents": 2, "bytes": 2100, "tokens": 500},
    {"source": "s01.jsonl", "split": "heldout", "documents": 1, "bytes": 1900, "tokens": 250},
]  # fmt: skip
CORPUS: dict[str, Any] = {
    "split_rule": "about 10 % of the tokens, by a hash of the document",
    "splits": {
        "train": {"documents": 105, "bytes": 420_000, "tokens": 105_000},
        "heldout": {"documents": 3, "bytes": 4000, "tokens": 750},
    },
    "sources": SOURCES,
    "left_out": [
        {"reason": "hidden", "suffix": ".txt", "count": 3, "unit": "files", "example": ".a.txt"},
        {"reason": "null row", "suffix": "", "count": 1234, "unit": "rows", "example": "s1:7"},
    ],
    "remarks": ["s02.jsonl holds what looks like a separator"],
    "encoding": {
        "lossless": False,
        "unknown_share": 0.021,
        "lost_share": 0.0001,
        "altered_documents": 4,
    },
}

pytestmark = pytest.mark.usefixtures("undrawn")  # its words, not its figures


@pytest.fixture
def report(build_sweep: Build) -> Callable[..., str]:
    """The words of the report on a small sweep, tags taken out."""

    def build(**options: Any) -> str:
        sweep = build_sweep(multipliers=[1.0, 2.0], holds=("none",), **options)
        return text_of(sweep)

    return build


def text_of(sweep: LocalStorage) -> str:
    analyse(sweep)
    html = re.sub(r"<svg.*?</svg>|<style.*?</style>", " ", page(sweep), flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html).replace("&nbsp;", " "))


def page(sweep: LocalStorage) -> str:
    return sweep.get("report/report.html").decode()


def test_splits_are_shown_with_their_sizes_and_shares(report) -> None:
    text = report(corpus=CORPUS)
    assert "10 % of the tokens" in text
    assert "training 105 420,000 105,000 99.3 %" in text  # 105,000 of 105,750
    assert "held out 3 4,000 750 0.7 %" in text


def test_the_twelve_largest_sources_have_rows_and_the_others_one_together(report) -> None:
    text = report(corpus=CORPUS)
    # Documents and bytes of both splits: 14 + 2, 56,000 + 2,100.
    assert "s14.jsonl 16 58,100 14,000 13.3 % 500 66.7 %" in text
    assert "s03.jsonl 3 12,000 3,000 2.9 % 0 0 %" in text
    assert "s02.jsonl 2" not in text
    # s01 and s02: 1 + 2 + 1 documents, 4,000 + 8,000 + 1,900 bytes, 3,000 of 105,000 tokens.
    assert "2 other sources 4 13,900 3,000 2.9 % 250 33.3 %" in text
    assert text.index("s14.jsonl 16") < text.index("s13.jsonl 13") < text.index("2 other sources")


@pytest.mark.long
def test_every_source_is_in_the_table_beside_the_report(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], holds=("none",), corpus=CORPUS)
    analyse(sweep)
    table = pd.read_csv(sweep.path("report/tables/sources.csv"))
    assert table.to_dict("records") == [dict(row) for row in SOURCES]


def test_what_was_left_out_remarked_and_lost_is_said(report) -> None:
    text = report(corpus=CORPUS)
    assert "hidden .txt 3 files .a.txt" in text
    assert "null row 1,234 rows s1:7" in text
    assert "s02.jsonl holds what looks like a separator." in text
    assert "2.1 % of the tokens" in text
    assert "Less than 0.1 % of the characters" in text
    assert "4 documents change" in text


def test_a_corpus_of_which_nothing_is_lost_says_so(report) -> None:
    encoding = {"lossless": True, "unknown_share": 0.0, "lost_share": 0.0, "altered_documents": 0}
    text = report(corpus=CORPUS | {"left_out": [], "remarks": [], "encoding": encoding})
    assert "Nothing was left out." in text
    assert "lossless" in text
    assert "Remarks" not in text


def test_a_sweep_that_recorded_nothing_of_its_corpus_says_so(report) -> None:
    assert "contents of the corpus were not recorded" in report()


@pytest.mark.parametrize(
    "corpus",
    [
        {"splits": None, "sources": None, "left_out": None, "remarks": None, "encoding": None},
        {"splits": {"train": {"tokens": None}}, "sources": [{"source": None, "tokens": "x"}, 3]},
        {"left_out": [{"count": -1}], "remarks": [None], "encoding": {"unknown_share": "all"}},
        {"splits": [], "sources": {}, "left_out": "x", "remarks": "x", "encoding": [], "x": 1},
        {"split_rule": "<b>&", "sources": [{"source": "<i>", "split": "train", "tokens": True}]},
    ],
    ids=str,
)
@pytest.mark.long
def test_what_is_not_known_or_no_record_at_all_is_left_open(report, corpus) -> None:
    text = report(corpus=corpus)
    assert " Data " in text
    assert "<b>" not in text


# --- columns of the trials -----------------------------------------------------------------


def edit(sweep: LocalStorage, change: Callable[[dict[str, Any]], None]) -> LocalStorage:
    for key in sweep.list("trials"):
        if key.endswith("result.json"):
            result = json.loads(sweep.get(key))
            change(result)
            sweep.put(key, json.dumps(result).encode())
    return sweep


def test_the_error_of_a_loss_and_bits_per_byte_stand_beside_it(build_sweep: Build) -> None:
    sweep = build_sweep(multipliers=[1.0, 2.0], holds=("none",))
    text = text_of(sweep)
    result = json.loads(sweep.get("trials/gpt2-pre-64-64-0/result.json"))["final"]
    assert f"{result['val_loss']:.4f} 0.0123 {result['val_bits_per_byte']:.4f}" in text
    assert "S.e.: standard error of the loss" in text
    table = pd.read_csv(sweep.path("report/tables/trials.csv"))
    assert set(table["val_loss_se"]) == {0.0123}


@pytest.mark.long
def test_bits_per_byte_of_a_tokenizer_that_loses_text_are_not_given(build_sweep: Build) -> None:
    def lossy(result: dict[str, Any]) -> None:
        result["final"]["val_bits_per_byte"] = None
        result["data"]["lossless"] = False

    sweep = edit(build_sweep(multipliers=[1.0, 2.0], holds=("none",)), lossy)
    assert "bits per byte undefined: the tokenizer loses text" in text_of(sweep)
    table = pd.read_csv(sweep.path("report/tables/trials.csv"))
    assert table["val_bits_per_byte"].isna().all()
    assert not table["lossless"].any()


def test_columns_that_no_trial_has_are_no_columns(build_sweep: Build) -> None:
    def old(result: dict[str, Any]) -> None:
        for name in ("semantics_version", "data", "best_val_loss_step"):
            del result[name]
        del result["final"]["val_loss_se"]

    text = text_of(edit(build_sweep(multipliers=[1.0, 2.0], holds=("none",)), old))
    assert "S.e.:" not in text
    assert "Passes:" not in text
