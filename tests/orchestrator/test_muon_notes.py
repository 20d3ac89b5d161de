"""A plan says which weights AdamW trains beside Muon."""

from pathlib import Path

import pytest
from mini_sweep import MINIMAL

from orchestrator.grid.expand import expand
from orchestrator.grid.plan import make_plan
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec

DATA = DataSpec(corpus_fingerprint="fingerprint", tokenizer_hash="tokenizer-hash")
#: Two experts in one stack of matrices, a convolution, and a matrix: D x 64 each.
EXPERTS = """
import torch
from torch import nn


class Experts(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.width = width
        self.up = nn.Parameter(torch.randn(2, config.d_model, width) * 0.02)
        self.mix = nn.Conv1d(width, width, 3, padding=1, groups=width, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(width, config.d_model, bias=False)

    @property
    def nonlinearity_input(self):
        return self.act

    def forward(self, x):
        up = torch.einsum("...d,edw->...w", x, self.up)
        return self.down(self.act(self.mix(up.transpose(1, 2)).transpose(1, 2)))
"""


def notes(*settings: str) -> list[str]:
    config = parse_sweep(MINIMAL, "mini.yaml", settings)
    found = make_plan(config, expand(config, DATA, 512)).notes
    return [note for note in found if "muon" in note]


def test_a_sweep_without_muon_says_nothing_of_it():
    assert notes() == []


def test_embeddings_head_gains_and_biases_are_named():
    (note,) = notes("grid.optimizer=[adamw, muon]")
    assert note.startswith("muon (3 trials) trains the matrices of the layers;")
    assert note.endswith("adamw trains embeddings, the head, gains and biases")


def test_weights_of_an_own_block_that_are_no_matrices_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "experts_for_muon.py").write_text(EXPERTS)
    monkeypatch.syspath_prepend(tmp_path)
    block = "model.block=experts_for_muon:Experts"
    assert notes(block) == []
    _, note = notes(block, "optimizer=muon", "grid.width_multiplier=[4]")
    # Two layers, each with a stack [2, 64, 256] and a kernel [256, 1, 3]; beside them attention
    # 4 x 64 x 64 with its biases, down 256 x 64, and two norms with gain and bias.
    left = 2 * (2 * 64 * 256 + 256 * 3)
    others = 2 * (4 * (64 * 64 + 64) + 256 * 64 + 2 * 2 * 64) + 2 * 64
    assert "4 weights of experts_for_muon:Experts with" in note
    assert "layers.0.ffn.up [2, 64, 256]" in note
    assert f"[2, 64, 256], {left / (left + others):.0%} of the non-embedding parameters" in note
