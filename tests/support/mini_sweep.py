"""A sweep file of the least that one must say, and what is made of it."""

import pytest

from orchestrator.sweep.load import SweepConfig, parse_sweep
from trialstore.errors import InputError

MINIMAL = """\
name: mini
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid:
  width_multiplier: [1, 2.67, 4]
training:
  steps: 100
  batch_tokens: 2048
  learning_rate: 1e-3
"""


def parse(text: str = MINIMAL, *overrides: str) -> SweepConfig:
    return parse_sweep(text, "mini.yaml", overrides)


def refused(text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text, *overrides)
    return str(caught.value)


def replaced(old: str, new: str) -> str:
    assert old in MINIMAL
    return MINIMAL.replace(old, new)
