"""The step on a record is the number of updates that its weights have had, whatever happened.

The activations of the block below are a fixed pattern times one weight. The gradient of that
weight is the same at every update, so that AdamW moves it by exactly the learning rate: its value
tells how many updates it has had, and a record's total variance tells its value.
"""

import numpy as np
import pytest

from trainers import check_block
from trainers.engine.schedule import learning_rate
from trainers.train import train
from trialstore.records import SPECTRA, read_records

pytestmark = pytest.mark.long

#: Of ZeRO. 1 and 3 are tried in `make test-slow`.
STAGES = [
    0,
    pytest.param(1, marks=pytest.mark.slow),
    2,
    pytest.param(3, marks=pytest.mark.slow),
]

CLOCK = """
import torch
from torch import nn


class Ticks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight):
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        return -torch.ones_like(gradient)


class Clock(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.width = width
        self.hand = nn.Parameter(torch.ones(1))
        self.nonlinearity_input = nn.Identity()
        self.down = nn.Linear(width, config.d_model)

    def forward(self, x):
        B, T, _ = x.shape
        angles = torch.outer(torch.arange(1.0, T + 1), torch.arange(1.0, self.width + 1))
        shown = self.nonlinearity_input(Ticks.apply(self.hand) * torch.sin(angles))
        return self.down(shown.expand(B, T, self.width))
"""


@pytest.fixture
def clock_spec(make_spec, tmp_path, monkeypatch):
    """A trial of Clock blocks, measured after every update."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "clock_block.py").write_text(CLOCK)
    block = check_block.resolve("clock_block:Clock")
    model = {
        "architecture": "gpt2", "norm": "pre", "d_model": 16, "head_dim": 8,
        "ffn_widths": [20, 12], "context": 16, "vocab_size": 257, "block": block.model_dump(),
    }  # fmt: skip
    training = {
        "steps": 10, "batch_tokens": 128, "learning_rate": 0.05, "schedule": "linear",
        "gradient_clipping": 0.0, "weight_decay": 0.0,
    }  # fmt: skip

    def make(**changes):
        return make_spec(model=model, training=training, spectra__every=1, **changes)

    return make


def updates_had(spec, trial) -> dict[tuple[int, str, int], float]:
    """Of every record: how far along the sum of learning rates its weights are, in updates."""
    rates = [learning_rate(spec.training, update) for update in range(spec.training.steps)]
    hand = 1 + np.concatenate([[0.0], np.cumsum(rates)])
    rows = read_records(trial, SPECTRA).to_pylist()
    start = {(row["layer"], row["site"]): row["total_variance"] for row in rows if row["step"] == 0}
    return {
        (row["layer"], row["site"], row["step"]): float(
            np.interp(
                np.sqrt(row["total_variance"] / start[row["layer"], row["site"]]),
                hand,
                np.arange(len(hand)),
            )
        )
        for row in rows
    }


def has_every_step_rightly(spec, trial) -> None:
    found = updates_had(spec, trial)
    places = [(layer, site) for layer in (0, 1) for site in ("pre", "post")]
    assert set(found) == {(*place, step) for place in places for step in range(11)}
    for (*_, step), updates in found.items():
        assert updates == pytest.approx(step, abs=0.01)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("micro_batch", [None, 2], ids=["one batch", "accumulation of 4"])
def test_every_record_carries_the_updates_that_its_weights_have_had(
    clock_spec, trial, diary, stage, micro_batch
) -> None:
    spec = clock_spec(layout__zero_stage=stage, layout__micro_batch=micro_batch)
    assert train(spec, trial, diary()).outcome == "completed"
    has_every_step_rightly(spec, trial)


@pytest.mark.parametrize(
    "micro_batch",
    [pytest.param(None, marks=pytest.mark.slow), 2],
    ids=["one batch", "accumulation of 4"],
)
def test_and_so_it_does_after_having_been_cut_off_twice(
    clock_spec, trial, diary, dying_at, killed, micro_batch
) -> None:
    spec = clock_spec(layout__micro_batch=micro_batch)
    for step in (6, 9):
        with pytest.raises(killed):
            train(spec, trial, dying_at(step))
    log = diary()
    train(spec, trial, log)
    assert log.starts[0][1:3] == (3, 8)
    has_every_step_rightly(spec, trial)


def test_a_label_that_is_late_by_one_would_be_seen(clock_spec, trial, diary) -> None:
    """The measure of this file can fail: read as if each record were of the step before."""
    spec = clock_spec()
    train(spec, trial, diary())
    found = updates_had(spec, trial)
    late = [abs(found[0, "post", step] - (step - 1)) for step in range(1, 11)]
    assert min(late) > 0.9
