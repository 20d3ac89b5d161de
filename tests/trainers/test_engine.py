"""Every ZeRO stage computes the plain algorithm, and a closed engine restores torch."""

import math
import subprocess
import sys

import pytest
import torch
from torch import nn

from trainers.engine.engine import Engine, Ranks, start_ranks, versions
from trainers.engine.schedule import learning_rate
from trainers.models.build import build, token_loss

pytestmark = pytest.mark.long

#: Of ZeRO. At 1 and 3 most claims are tried in `make test-slow`.
STAGES = [
    0,
    pytest.param(1, marks=pytest.mark.slow),
    2,
    pytest.param(3, marks=pytest.mark.slow),
]

STEPS = 20
BATCH = 8  # sequences
CONTEXT = 16


# --- against plain PyTorch -----------------------------------------------------------------


def batches() -> list[torch.Tensor]:
    """Tokens of a skewed distribution, so that there is a lot to learn."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.arange(1, 65, dtype=torch.float64) ** -1.0
    shape = (STEPS, BATCH, CONTEXT + 1)
    drawn = torch.multinomial(weights, math.prod(shape), True, generator=generator)
    return list(drawn.view(shape))


_references: dict[str, tuple[list[float], list[float], nn.Module]] = {}


def reference(spec) -> tuple[list[float], list[float], nn.Module]:
    """Losses, gradient norms and the final model of AdamW in a plain loop.

    Computed once for all ZeRO stages: a trial's id does not depend on them.
    """
    if spec.id not in _references:
        _references[spec.id] = plain_loop(spec)
    return _references[spec.id]


def plain_loop(spec) -> tuple[list[float], list[float], nn.Module]:
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
@pytest.mark.parametrize("stage", STAGES)
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


@pytest.mark.parametrize("stage", STAGES)
def test_clipping_can_be_turned_off(spec_for, ranks, stage) -> None:
    spec = spec_for(layout__zero_stage=stage, training__gradient_clipping=0.0)
    losses, norms, _ = reference(spec)
    found, found_norms = trained(spec, ranks)
    assert found == pytest.approx(losses, rel=1e-4)
    assert found_norms == pytest.approx(norms, rel=1e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_close_to_plain_float32(spec_for, ranks, stage) -> None:
    """At stage 0 DeepSpeed's own bf16 would be off by 7 %."""
    spec = spec_for(layout__zero_stage=stage, training__precision="bf16")
    losses, _, _ = reference(spec)
    found, _ = trained(spec, ranks)
    assert found == pytest.approx(losses, rel=2e-2)
    assert found != losses  # it was not float32


@pytest.mark.parametrize("stage", STAGES)
def test_four_micro_batches_are_one_batch(spec_for, ranks, stage) -> None:
    whole = trained(spec_for(layout__zero_stage=stage), ranks)
    split = trained(spec_for(layout__zero_stage=stage, layout__micro_batch=2), ranks)
    assert split[0] == pytest.approx(whole[0], rel=1e-4)
    assert split[1] == pytest.approx(whole[1], rel=1e-3)


def test_tied_embeddings_are_trained_as_one(spec_for, ranks) -> None:
    spec = spec_for(model__tie_embeddings=True)
    assert trained(spec, ranks)[0] == pytest.approx(reference(spec)[0], rel=1e-4)


@pytest.mark.parametrize("optimizer", [pytest.param("adamw", marks=pytest.mark.slow), "muon"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_vectors_of_ngpt_have_unit_norm_after_every_update(
    spec_for, ranks, stage, optimizer
) -> None:
    spec = spec_for(
        layout__zero_stage=stage,
        model__architecture="ngpt",
        model__norm="ngpt",
        training__optimizer=optimizer,
        training__gradient_clipping=0.0,
        training__weight_decay=0.0,
    )
    engine = Engine(build(spec.model, 0), spec, ranks)
    dims = build(spec.model, 0).unit_norm_dims
    assert len(dims) == 2 + 7 * spec.model.depth
    for tokens in batches()[:3]:
        before = {name: engine.module.get_parameter(name).detach().clone() for name in dims}
        engine.backward(token_loss(engine.forward(tokens[:, :-1]), tokens[:, 1:]).mean())
        engine.step()
        for name, dim in dims.items():
            weight = engine.module.get_parameter(name).detach()
            assert not torch.equal(weight, before[name])
            torch.testing.assert_close(weight.norm(dim=dim), torch.ones(weight.shape[1 - dim]))
    engine.close()


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "bf16"), (1, "fp32"), (1, "bf16"), (2, "bf16"), (3, "fp32")]
)
def test_a_nonfinite_gradient_of_muon_is_reported(spec_for, ranks, stage, precision) -> None:
    """ZeRO reports no norm of a finite one."""
    spec = spec_for(
        layout__zero_stage=stage,
        training__precision=precision,
        training__optimizer="muon",
        training__gradient_clipping=0.0,
    )
    engine = Engine(build(spec.model, 0), spec, ranks)
    tokens = batches()[0]
    norms = []
    for factor in (1.0, math.inf):
        logits = engine.forward(tokens[:, :-1])
        logits.register_hook(lambda gradient, factor=factor: gradient * factor)
        engine.backward(token_loss(logits, tokens[:, 1:]).mean())
        norms.append(engine.step())
    engine.close()
    assert (norms[0] is None) == (stage > 0)
    assert not math.isfinite(norms[1])


# --- the parts of an update ----------------------------------------------------------------


def test_an_update_begins_with_its_first_micro_batch_and_never_in_evaluation(
    spec_for, ranks
) -> None:
    spec = spec_for(layout__micro_batch=4)
    engine = Engine(build(spec.model, 0), spec, ranks)
    begun: list[None] = []
    engine.module.begin_update = lambda: begun.append(None)
    tokens = batches()[0]

    def evaluate() -> None:
        engine.eval()
        engine.forward(tokens[:, :-1])
        engine.train()

    evaluate()
    for update in range(1, 4):
        for micro in torch.split(tokens, 4):
            loss = token_loss(engine.forward(micro[:, :-1]), micro[:, 1:]).mean()
            engine.backward(loss)
            engine.step()
            assert len(begun) == update
            evaluate()
    assert len(begun) == 3
    engine.close()


@pytest.mark.parametrize(
    ("optimizer", "stage"), [("adamw", 0), pytest.param("muon", 3, marks=pytest.mark.slow)]
)
def test_a_branch_before_the_decay_ends_like_an_unbranched_run(
    spec_for, ranks, tmp_path, optimizer, stage
) -> None:
    """The checkpoint's next rate is the trunk's peak; the branch's is already lower."""
    changes = {
        "training__schedule": "wsd",
        "training__warmup_steps": 2,
        "training__decay_fraction": 0.5,
        "training__optimizer": optimizer,
        "training__gradient_clipping": 0.0,
        "layout__zero_stage": stage,
    }
    trunk, branch = (spec_for(training__steps=steps, **changes) for steps in (20, 10))
    tokens = batches()

    def losses(engine: Engine, begin: int, end: int) -> list[float]:
        found = []
        for number in range(begin, end):
            loss = token_loss(engine.forward(tokens[number][:, :-1]), tokens[number][:, 1:]).mean()
            engine.backward(loss)
            engine.step()
            found.append(loss.item())
        return found

    engine = Engine(build(trunk.model, 0), trunk, ranks)
    losses(engine, 0, 5)
    engine.save(tmp_path, "branch", {})
    engine.close()

    engine = Engine(build(branch.model, 0), branch, ranks)
    engine.load(tmp_path, "branch")
    branched = losses(engine, 5, 10)
    engine.close()

    engine = Engine(build(branch.model, 0), branch, ranks)
    assert losses(engine, 0, 10)[5:] == branched
    engine.close()


# --- what the process is left with ---------------------------------------------------------


def test_a_cpu_trial_needs_no_launcher_and_no_port(ranks) -> None:
    assert (ranks.rank, ranks.world_size, ranks.is_first) == (0, 1, True)
    assert ranks.device == torch.device("cpu")
    assert ranks.gather("a") == ["a"]
    assert ranks.broadcast("a") == "a"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_missing_cuda_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"layout\.device"):
        start_ranks("cuda")


@pytest.mark.processes
def test_nothing_is_printed_to_stdout_and_no_tracking_library_is_imported() -> None:
    """stdout is for the command's own output."""
    code = (
        "import sys; from trainers.engine.engine import start_ranks; start_ranks('cpu');"
        "sys.exit(' '.join({'mlflow', 'ray'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.strip()) == (0, "", "")


def test_versions_are_those_installed() -> None:
    assert versions()["torch"] == torch.__version__


def test_a_closed_engine_leaves_torch_as_it_was(make_spec) -> None:
    """ZeRO 3 replaces torch's linear, which must not affect the next trial in the process."""
    before = nn.functional.linear
    spec = make_spec(layout__zero_stage=3)
    engine = Engine(build(spec.model, 0), spec, start_ranks("cpu"))
    assert nn.functional.linear is not before
    engine.close()
    assert nn.functional.linear is before
