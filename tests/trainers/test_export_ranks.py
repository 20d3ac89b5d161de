"""A trial of several ranks is exported from the pieces that each of them wrote."""

import subprocess
import sys

import pytest
import torch
from repository import ROOT, SUPPORT

from trainers.data.batches import heldout_windows
from trainers.data.store import open_store
from trainers.export.weights import trained_model
from trainers.models.build import token_loss
from trialstore import records
from trialstore.storage import LocalStorage


@pytest.mark.processes
@pytest.mark.slow
def test_two_ranks_at_every_stage(make_spec, tmp_path) -> None:
    """Odd sizes, so that ZeRO has to pad."""
    specs = {
        f"stage-{stage}-{precision}": make_spec(
            model={
                "architecture": "llama", "norm": "pre", "d_model": 18, "head_dim": 6,
                "ffn_widths": [23, 19], "context": 16, "vocab_size": 257, "kv_heads": 1,
                "tie_embeddings": True, "ffn_weight": "spectral_norm",
            },
            layout__workers=2, layout__zero_stage=stage,
            training__precision=precision, training__steps=3,
        )
        for stage, precision in ((0, "fp32"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32"))
    }  # fmt: skip
    for name, spec in specs.items():
        (tmp_path / f"{name}.json").write_bytes(spec.to_json())
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(SUPPORT / "train_each.py"), str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, spec in specs.items():
        trial = LocalStorage(tmp_path / name)
        optimizers = [key for key in trial.list("checkpoints") if "optim_states" in key]
        assert len(optimizers) == (2 if spec.layout.zero_stage else 0)
        model = trained_model(trial).model
        store = open_store(spec.source, expected=spec.data)
        windows = heldout_windows(
            store.heldout, spec.evaluation.tokens, spec.model.context, spec.data.corpus_fingerprint
        )
        tokens = torch.from_numpy(windows)
        with torch.no_grad():
            loss = token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean()
        recorded = records.get_result(trial)["final"]["val_loss"]
        tolerance = 1e-6 if spec.training.precision == "fp32" else 1e-2
        assert float(loss) == pytest.approx(recorded, rel=tolerance), name
