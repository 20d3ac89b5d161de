"""Claims about analysis.target: a model beyond the sweep, by both of its numbers."""

import pytest

from orchestrator.sweep.load import parse_sweep
from trialstore.errors import InputError

SWEEP = """
name: target
model: {architecture: llama, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid: {width_multiplier: [1, 2, 4]}
training: {steps: 10, batch_tokens: 256, learning_rate: 1e-3}
"""


def test_a_target_is_read_and_written_back() -> None:
    config = parse_sweep(SWEEP + "analysis: {target: {params: 1e9, tokens: 20000000}}\n", "s.yaml")
    assert config.to_dict()["analysis"]["target"] == {"params": 1e9, "tokens": 2e7}
    assert parse_sweep(SWEEP, "s.yaml").analysis.target is None


@pytest.mark.parametrize(
    ("target", "told"),
    [
        ("{params: 1e9}", "the keys params and tokens"),
        ("{parms: 1e9, tokens: 1e9}", "'parms': 1000000000.0"),
        ("7", "7 should be"),
        ("{params: 0, tokens: 1e9}", "should be greater than 0"),
        ("{params: .inf, tokens: 1e9}", "finite"),
    ],
)
def test_what_is_wrong_with_a_target_is_said(target: str, told: str) -> None:
    with pytest.raises(InputError, match=r"analysis\.target") as caught:
        parse_sweep(SWEEP + f"analysis: {{target: {target}}}\n", "s.yaml")
    assert told in str(caught.value)
