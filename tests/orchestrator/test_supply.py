"""A plan shows the corpus, and warns if it is too small for the sweep."""

import json

import pytest
import yaml
from messages import mentions
from rich.console import Console

from orchestrator.grid.corpus_view import render_contents
from orchestrator.grid.expand import Grid, expand
from orchestrator.grid.plan import Plan, make_plan
from orchestrator.grid.plan_records import plan_json, resolved_yaml
from orchestrator.grid.plan_view import render_plan
from orchestrator.grid.supply import passes, passes_text
from orchestrator.sweep.load import SweepConfig, parse_sweep
from trainers.data.contents import Contents, SourcePart
from trainers.data.documents import LeftOut
from trainers.data.sources import DataSpec

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

TEXT = """\
name: mini
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid: {width_multiplier: [1, 1.5, 2.67, 4, 5.33, 8]}
match: [none, params]
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
evaluation: {tokens: 4096}
spectra: {every: 20, tokens: 8192}
"""


def contents(train: int = 300_000, heldout: int = 30_000, estimated: bool = False) -> Contents:
    return Contents(
        split_rule="a tenth of the bytes, whole documents",
        sources=(
            SourcePart("a.jsonl", "train", 20, 3 * train - 300, train - 100),
            SourcePart("a.jsonl", "heldout", 2, 3 * heldout, heldout),
            SourcePart("b.jsonl", "train", 1, 300, 100),
        ),
        left_out=(LeftOut("another kind of file", ".jsonl.lz4", 19, "files", "s-01.jsonl.lz4"),),
        remarks=("b.jsonl holds <|endoftext|> 449 times",),
        estimated=estimated,
    )


def grid(config: SweepConfig) -> Grid:
    return expand(config, DATA, 512)


def plan(holds: Contents | None, *overrides: str) -> Plan:
    config = parse_sweep(TEXT, "mini.yaml", overrides)
    return make_plan(config, grid(config), contents=holds)


def rendered(shown: Plan) -> str:
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        console.print(render_plan(shown))
    return capture.get()


def test_passes_are_tokens_asked_for_over_tokens_of_all_windows() -> None:
    config = parse_sweep(TEXT, "mini.yaml")
    (trial, *_) = grid(config).trials
    # 4,687 windows of 64 tokens have a target after their last one.
    assert passes(trial.spec, contents(300_000)) == 100 * 2048 / (4687 * 64)
    assert passes(trial.spec, contents(64)) == float("inf")


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.123, "0.123"), (4.04, "4.04"), (9.96, "9.96"), (25.5, "26"), (1234.0, "1,234")],
)
def test_passes_in_words(number: float, text: str) -> None:
    assert passes_text(number) == text


def test_enough_is_not_worth_a_word() -> None:
    assert not [
        said for said in plan(contents()).notes + plan(contents()).warnings if "pass" in said
    ]


def test_a_few_passes_are_noted_and_many_are_warned_of() -> None:
    few = plan(contents(100_000))
    assert [note for note in few.notes if "passes" in note] == [
        "up to 2.05 passes over the training split of 100,000 tokens: tokens are repeated"
    ]
    assert "memorisation" not in " ".join(few.warnings)
    many = plan(contents(8_040, estimated=True))
    assert many.warnings[0].startswith(
        "11 trials go through the training split of about 8,040 tokens more than 4 times, up to 26:"
    )


def test_a_held_out_split_that_is_too_short_is_known_before_the_run() -> None:
    (warning,) = [said for said in plan(contents(heldout=8192)).warnings if "held-out" in said]
    assert "spectra.tokens 8,192" in warning
    assert "the 8,192 tokens of the held-out split" in warning
    assert not [said for said in plan(contents(heldout=8193)).warnings if "held-out" in said]


def test_a_training_split_without_a_window_is_known_before_the_run() -> None:
    (warning,) = [said for said in plan(contents(64)).warnings if "training split" in said]
    assert "the training split of 64 tokens is shorter than one window of 64 tokens" in warning


def test_the_plan_shows_sources_what_is_left_out_and_remarks() -> None:
    text = rendered(plan(contents()))
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "split: a tenth of the bytes, whole documents" in rows
    assert "a.jsonl train 20 899,700 299,900" in rows
    assert "a.jsonl held out 2 90,000 30,000" in rows
    assert "b.jsonl train 1 300 100" in rows
    assert "all train 21 900,000 300,000" in rows
    assert "left out: 19 files (.jsonl.lz4): another kind of file, such as s-01.jsonl.lz4" in rows
    assert "corpus: b.jsonl holds <|endoftext|> 449 times" in rows
    assert "~" not in text.partition("Corpus")[2].partition("trials")[0]
    assert "~299,900" in rendered(plan(contents(estimated=True)))


def test_one_file_that_is_left_out_is_one_file() -> None:
    one = LeftOut("hidden", ".txt", 1, "files", ".a.txt")
    lines = [line.plain for line in render_contents(Contents("rule", (), (one,), ()))]
    assert any(mentions(line, "left out: 1 file (.txt): ... .a.txt") for line in lines)


def test_of_many_sources_the_largest_are_shown_and_all_are_counted() -> None:
    parts = [SourcePart(f"s{n}", "train", 1, 1000 + n, 100) for n in range(40)]
    many = Contents("rule", (*parts, SourcePart("s0", "heldout", 1, 5, 5)), (), ())
    rows = [" ".join(line.plain.split()) for line in render_contents(many)]
    assert "s28 train 1 1,028 100" in rows
    assert not [row for row in rows if row.startswith("s27 ")]
    others = sum(1000 + n for n in range(28))
    assert f"28 other sources train 28 {others:,} 2,800" in rows
    assert "28 other sources held out 1 5 5" in rows
    assert f"all train 40 {sum(1000 + n for n in range(40)):,} 4,000" in rows


def test_the_json_and_the_resolved_file_have_all_of_it() -> None:
    config = parse_sweep(TEXT, "mini.yaml")
    found = json.loads(json.dumps(plan_json(plan(contents()))))
    holds = found["corpus"]
    assert holds["splits"]["train"] == {"documents": 21, "bytes": 900_000, "tokens": 300_000}
    assert holds["left_out"][0]["count"] == 19
    assert found["trials"][0]["passes"] == pytest.approx(100 * 2048 / (4687 * 64))
    resolved = yaml.safe_load(resolved_yaml(config, grid(config), DATA, 512, contents=contents()))[
        "resolved"
    ]
    assert resolved["corpus"] == holds
    assert plan_json(plan(None))["corpus"] is None
