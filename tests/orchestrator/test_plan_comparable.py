"""The plan says which verdicts will be refused, because trials differ in more than their width."""

import pytest
from messages import mentions

from orchestrator.grid.expand import expand
from orchestrator.grid.plan_comparable import refused_verdicts
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec

DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")
SWEEP = """\
name: mini
model: {architecture: gpt2, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  norm: [pre, post]
  width_multiplier: [1, 2.67, 4]
match: [none, params]
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
"""


def refused(*settings: str, text: str = SWEEP) -> list[str]:
    config = parse_sweep(text, "mini.yaml", settings)
    return list(refused_verdicts(expand(config, DATA, 512).trials))


def test_nothing_is_said_of_widths_that_differ_in_their_width_alone() -> None:
    assert refused() == []
    assert refused("match=flops") == []
    assert refused("overrides=[{when: {norm: post}, set: {weight_decay: 0, steps: 50}}]") == []


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps: 150", "tokens trained ... at 4x ... elsewhere; training.steps 150 at 4x, 100"),
        ("warmup_fraction: 0.2", "training.warmup_fraction 0.2 at 4x, 0.1 elsewhere"),
        ("qk_norm: true", "model.qk_norm true at 4x, false elsewhere"),
        ("precision: bf16", "training.precision bf16 at 4x, fp32 elsewhere"),
        ("device: cuda", "device cuda at 4x, cpu elsewhere"),
        ("evaluation.tokens: 4096", "evaluation.tokens 4096 at 4x, 16384 elsewhere"),
    ],
)
def test_an_override_by_width_will_cost_verdict_and_rank_laws(override: str, said: str) -> None:
    found = refused(f"overrides=[{{when: {{width_multiplier: 4}}, set: {{{override}}}}}]")
    assert len(found) == 2
    assert mentions(found[0], f"verdict of groups gpt2, pre, depth 2; gpt2, post ... {said}")
    assert mentions(found[1], f"rank laws of groups ... {said}")


def test_spectra_by_width_cost_the_rank_laws_alone() -> None:
    found = refused("overrides=[{when: {width_multiplier: 4}, set: {spectra.tokens: 16384}}]")
    assert len(found) == 1
    assert mentions(found[0], "rank laws ... spectra.tokens 16384 at 4x")


@pytest.mark.parametrize("setting", ["workers: 2", "micro_batch: 4", "evaluation.every: 50"])
def test_layouts_by_width_cost_nothing(setting: str) -> None:
    assert refused(f"overrides=[{{when: {{width_multiplier: 4}}, set: {{{setting}}}}}]") == []


def test_rates_on_the_grid_are_tuned_and_rates_by_override_are_not() -> None:
    assert refused("grid.learning_rate=[1e-3, 2e-3, 4e-3]") == []
    assert refused("grid.learning_rate=[1e-3, 2e-3]") == []
    by_width = "overrides=[{when: {width_multiplier: 4}, set: {learning_rate: 5e-4}}]"
    assert all("training.learning_rate 0.0005 at 4x" in text for text in refused(by_width))
    by_rate = "overrides=[{when: {learning_rate: 4e-3}, set: {warmup_fraction: 0.2}}]"
    found = refused("grid.learning_rate=[1e-3, 2e-3, 4e-3]", by_rate)
    assert len(found) == 1
    assert mentions(found[0], "verdict ... tuned per width ... training.warmup_fraction")
    assert "4x in 1 of 3 trials (width_multiplier 4" in found[0]


def test_sizes_may_have_their_own_settings() -> None:
    by_size = "overrides=[{when: {d_model: 128}, set: {learning_rate: 5e-4}}]"
    assert refused("grid.d_model=[64, 128]", by_size) == []
