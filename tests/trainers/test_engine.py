"""The engine: its schedule, and that every ZeRO stage is the plain algorithm."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainers.engine import Engine, Ranks, learning_rate, start_ranks, versions
from trainers.models.build import build, token_loss
from trainers.spec import TrainingSpec

STEPS = 20
BATCH = 8  # sequences
CONTEXT = 16


def schedule(steps: int, **changes) -> list[float]:
    training = TrainingSpec(steps=steps, batch_tokens=2, learning_rate=0.5, **changes)
    return [learning_rate(training, update) for update in range(steps)]


# --- the learning rate ---------------------------------------------------------------------


def test_warm_up_is_linear_and_ends_at_the_peak_then_a_cosine_ends_at_the_floor() -> None:
    rates = schedule(10, warmup_fraction=0.4, final_fraction=0.2)
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    cosine = [0.5 * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * k / 6))) for k in range(1, 7)]
    assert rates[4:] == pytest.approx(cosine)
    assert rates[-1] == pytest.approx(0.2 * 0.5)


def test_without_warm_up_it_decays_from_the_first_update() -> None:
    rates = schedule(4, warmup_fraction=0.0, final_fraction=0.0)
    assert rates == pytest.approx(
        [0.5 * 0.5 * (1 + math.cos(math.pi * k / 4)) for k in (1, 2, 3, 4)]
    )
    assert rates[-1] == 0.0


def test_warm_up_may_last_to_the_end() -> None:
    assert schedule(4, warmup_fraction=1.0) == [0.125, 0.25, 0.375, 0.5]


@given(st.integers(1, 300), st.floats(0, 1), st.floats(0, 1))
def test_the_rate_rises_to_the_peak_and_falls_to_its_fraction(
    steps: int, warmup: float, floor: float
) -> None:
    rates = schedule(steps, warmup_fraction=warmup, final_fraction=floor)
    updates = round(warmup * steps)
    assert all(0 <= rate <= 0.5 for rate in rates)
    assert rates[:updates] == sorted(rates[:updates])
    assert rates[updates:] == sorted(rates[updates:], reverse=True)
    assert rates[-1] == pytest.approx(0.5 if updates == steps else 0.5 * floor)


# --- against plain PyTorch -----------------------------------------------------------------


def batches() -> list[torch.Tensor]:
    """The same tokens for everyone: a skewed distribution, so that there is a lot to learn."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, 65, dtype=torch.float64) ** -1.0
    shape = (STEPS, BATCH, CONTEXT + 1)
    drawn = torch.multinomial(weights, math.prod(shape), True, generator=generator)
    return list(drawn.view(shape))


def reference(spec) -> tuple[list[float], list[float], nn.Module]:
    """Losses, gradient norms and the final model of AdamW in a plain loop."""
    model = build(spec.model, spec.replicate)
    training = spec.training
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, betas=(training.beta1, training.beta2))
    losses, norms = [], []
    for update, tokens in enumerate(batches()):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, update)
        loss = token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean()
        optimizer.zero_grad()
        loss.backward()
        limit = training.gradient_clipping or math.inf
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), limit)))
        optimizer.step()
        losses.append(loss.item())
    return losses, norms, model


def trained(spec, ranks: Ranks) -> tuple[list[float], list[float]]:
    """Losses and gradient norms of the engine on the same tokens."""
    engine = Engine(build(spec.model, spec.replicate), spec, ranks)
    losses, norms = [], []
    for tokens in batches():
        parts, norm = [], None
        for micro in torch.split(tokens, spec.layout.micro_batch or BATCH):
            loss = token_loss(engine.forward(micro[:, :-1]), micro[:, 1:]).mean()
            parts.append(loss.item())
            engine.backward(loss)
            norm = engine.step()
        losses.append(sum(parts) / len(parts))
        norms.append(norm)
    engine.close()
    return losses, norms


@pytest.fixture
def ranks() -> Ranks:
    return start_ranks("cpu")


@pytest.fixture
def spec_for(make_spec):
    """A model of d_model 32 that learns fast enough for its gradients to be clipped."""

    def make(**changes):
        shared = {
            "model__d_model": 32,
            "model__ffn_widths": [96, 64],
            "training__steps": STEPS,
            "training__batch_tokens": BATCH * CONTEXT,
            "training__gradient_clipping": 0.5,
        }
        return make_spec(**{**shared, **changes})

    return make


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_every_stage_gives_the_losses_and_norms_of_plain_pytorch(
    spec_for, ranks, stage, architecture
) -> None:
    spec = spec_for(layout__zero_stage=stage, model__architecture=architecture)
    losses, norms, _ = reference(spec)
    assert max(norms) > spec.training.gradient_clipping  # it was clipped
    assert losses[-1] < losses[0] - 0.5  # and learned
    found, found_norms = trained(spec, ranks)
    assert found == pytest.approx(losses, rel=1e-4)
    assert found_norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_clipping_can_be_turned_off(spec_for, ranks, stage) -> None:
    spec = spec_for(layout__zero_stage=stage, training__gradient_clipping=0.0)
    losses, norms, _ = reference(spec)
    found, found_norms = trained(spec, ranks)
    assert found == pytest.approx(losses, rel=1e-4)
    assert found_norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_stays_close_to_plain_float32(spec_for, ranks, stage) -> None:
    """Stage 0 is where DeepSpeed's own bf16 would be off by 7 %."""
    spec = spec_for(layout__zero_stage=stage, training__precision="bf16")
    losses, _, _ = reference(spec)
    found, _ = trained(spec, ranks)
    assert found == pytest.approx(losses, rel=2e-2)
    assert found != losses  # it was not float32


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_four_micro_batches_are_one_batch(spec_for, ranks, stage) -> None:
    whole = trained(spec_for(layout__zero_stage=stage), ranks)
    split = trained(spec_for(layout__zero_stage=stage, layout__micro_batch=2), ranks)
    assert split[0] == pytest.approx(whole[0], rel=1e-4)
    assert split[1] == pytest.approx(whole[1], rel=1e-3)


def test_tied_embeddings_are_trained_as_one(spec_for, ranks) -> None:
    spec = spec_for(model__tie_embeddings=True)
    assert trained(spec, ranks)[0] == pytest.approx(reference(spec)[0], rel=1e-4)


# --- what the process is left with ---------------------------------------------------------


def test_a_cpu_trial_needs_no_launcher_and_no_port(ranks) -> None:
    assert (ranks.rank, ranks.world_size, ranks.is_first) == (0, 1, True)
    assert ranks.device == torch.device("cpu")
    assert ranks.gather("a") == ["a"]
    assert ranks.broadcast("a") == "a"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_not_there_is_named() -> None:
    with pytest.raises(RuntimeError, match="torch sees no CUDA device"):
        start_ranks("cuda")


def test_nothing_is_printed_to_stdout_and_no_tracking_library_is_imported() -> None:
    """stdout belongs to the command that was asked for."""
    code = (
        "import sys; from trainers.engine import start_ranks; start_ranks('cpu');"
        "sys.exit(' '.join({'mlflow', 'ray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "", "")


def test_versions_are_of_what_is_installed() -> None:
    assert versions()["torch"] == torch.__version__
