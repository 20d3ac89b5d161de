"""What the optimisers do to a parameter, against plain references."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trainers.engine.engine import start_ranks
from trainers.engine.optimizer import make_optimizer
from trainers.models.build import build
from trainers.spec import TrainingSpec

RATE, DECAY = 0.01, 0.1


@pytest.fixture(autouse=True)
def _deepspeed() -> None:
    start_ranks("cpu")


def training(optimizer: str, **changes) -> TrainingSpec:
    fields = {"steps": 10, "batch_tokens": 2, "learning_rate": RATE, "weight_decay": DECAY}
    if optimizer == "muon":
        fields["gradient_clipping"] = 0.0
    return TrainingSpec(optimizer=optimizer, **{**fields, **changes})


class Layer(nn.Module):
    """A tall, a wide and a square matrix of a layer, and a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(12, 20), nn.Linear(20, 12), nn.Linear(12, 12)])


def gradient(parameter: Tensor, seed: int) -> Tensor:
    """Well conditioned: singular values from 0.5 to 2."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(parameter.shape, generator=generator)
    if drawn.ndim < 2:
        return drawn
    left, _, right = torch.linalg.svd(drawn, full_matrices=False)
    return left @ torch.diag(torch.linspace(0.5, 2, min(drawn.shape))) @ right


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for parameter in model.parameters():
        parameter.grad = gradient(parameter, seed)
    optimizer.step()


# --- which parameter is whose --------------------------------------------------------------


def moved_by(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, tuple[bool, float]]:
    """Of every parameter: whether it is Muon's, and rate times decay of its group."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {
        names[parameter]: (group.get("use_muon", False), group["lr"] * group["weight_decay"])
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(make_spec, optimizer) -> None:
    model = build(make_spec().model, 0)
    found = moved_by(model, make_optimizer(model, training(optimizer)))
    assert found.keys() == dict(model.named_parameters()).keys()
    for name, parameter in model.named_parameters():
        expected = RATE * DECAY if parameter.ndim >= 2 else 0.0
        assert found[name][1] == pytest.approx(expected), name


def test_muon_moves_the_matrices_of_layers_and_nothing_else(make_spec) -> None:
    spec = make_spec(
        model__architecture="llama", model__ffn_weight="weight_norm", model__qk_norm=True
    )
    model = build(spec.model, 0)
    found = moved_by(model, make_optimizer(model, training("muon")))
    assert {name for name, (muon, _) in found.items() if muon} == {
        f"layers.{layer}.{matrix}.weight"
        for layer in (0, 1)
        for matrix in (
            *("attention.q", "attention.k", "attention.v", "attention.o"),
            *("ffn.gate", "ffn.up", "ffn.down"),
        )
    }


def test_a_model_without_gains_and_biases_has_no_empty_group() -> None:
    for optimizer in ("adamw", "muon"):
        model = nn.Sequential()
        model.layers = nn.ModuleList([nn.Linear(3, 4, bias=False)])
        groups = make_optimizer(model, training(optimizer)).param_groups
        assert [len(group["params"]) for group in groups] == [1]


# --- AdamW ---------------------------------------------------------------------------------


def test_adamw_is_the_textbook_update() -> None:
    """arXiv 1711.05101, algorithm 2, in float64."""
    model, rng = Layer(), np.random.default_rng(0)
    optimizer = make_optimizer(model, training("adamw", beta1=0.8, beta2=0.9))
    weight = model.layers[0].weight
    expected = weight.detach().double().numpy().copy()
    m, v = np.zeros_like(expected), np.zeros_like(expected)
    for t in range(1, 4):
        g = rng.normal(size=expected.shape)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight.grad = torch.tensor(g, dtype=torch.float32)
        optimizer.step()
        m, v = 0.8 * m + 0.2 * g, 0.9 * v + 0.1 * g**2
        adam = (m / (1 - 0.8**t)) / (np.sqrt(v / (1 - 0.9**t)) + 1e-8)
        expected -= RATE * (adam + DECAY * expected)
    np.testing.assert_allclose(weight.detach().numpy(), expected, rtol=1e-5, atol=1e-6)


# --- Muon ----------------------------------------------------------------------------------


def newton_schulz(x: np.ndarray) -> np.ndarray:
    """Five quintic steps (Jordan et al., 2024), in float64."""
    if x.shape[0] > x.shape[1]:
        return newton_schulz(x.T).T
    x = x / np.linalg.norm(x)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("number", [0, 1, 2], ids=["tall", "wide", "square"])
def test_muon_is_nesterov_momentum_orthogonalised(number: int) -> None:
    model = Layer()
    optimizer = make_optimizer(model, training("muon", momentum=0.9))
    weight = model.layers[number].weight
    expected = weight.detach().double().numpy().copy()
    momentum = np.zeros_like(expected)
    for seed in range(3):
        step(model, optimizer, seed)
        g = gradient(weight, seed).double().numpy()
        momentum = 0.9 * momentum + 0.1 * g
        update = newton_schulz(0.1 * g + 0.9 * momentum)
        expected *= 1 - RATE * DECAY
        expected -= RATE * 0.2 * max(expected.shape) ** 0.5 * update
    np.testing.assert_allclose(weight.detach().numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("number", [0, 1, 2], ids=["tall", "wide", "square"])
def test_a_muon_update_has_the_singular_vectors_of_the_momentum_and_values_near_one(number) -> None:
    """Against the exact polar factor, by singular value decomposition."""
    model = Layer()
    optimizer = make_optimizer(model, training("muon"))
    weight = model.layers[number].weight
    before = weight.detach().clone()
    left, _, right = torch.linalg.svd(gradient(weight, 0), full_matrices=False)
    step(model, optimizer, 0)
    update = (before * (1 - RATE * DECAY) - weight.detach()) / (
        RATE * 0.2 * max(weight.shape) ** 0.5
    )
    core = left.T @ update @ right.T
    values = core.diagonal()
    assert 0.65 < values.min() <= values.max() < 1.25
    assert (core - torch.diag(values)).abs().max() < 1e-3


@pytest.mark.parametrize("number", [0, 1, 2], ids=["tall", "wide", "square"])
def test_a_muon_update_is_as_large_as_one_of_adamw(number: int) -> None:
    """A root mean square of 0.2 at rate 1, whatever the shape."""
    model = Layer()
    optimizer = make_optimizer(model, training("muon", learning_rate=1.0, weight_decay=0.0))
    weight = model.layers[number].weight
    before = weight.detach().clone()
    step(model, optimizer, 0)
    size = (weight.detach() - before).square().mean().sqrt().item()
    assert size == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_without_a_gradient_matrices_shrink_by_rate_times_decay(optimizer: str) -> None:
    model = Layer()
    chosen = make_optimizer(model, training(optimizer))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    chosen.step()
    for name, parameter in model.named_parameters():
        factor = 1 - RATE * DECAY if parameter.ndim == 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * factor)


def test_stacks_of_matrices_go_to_adamw_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    model = Layer()
    make_optimizer(model, training("muon"))
    assert caplog.records == []
    model.layers.append(nn.Conv1d(12, 12, 3, groups=12, bias=False))
    found = moved_by(model, make_optimizer(model, training("muon")))
    assert {name for name, (muon, _) in found.items() if muon} == {
        f"layers.{layer}.weight" for layer in range(3)
    }
    (record,) = caplog.records
    assert record.args == (1, [12, 1, 3])  # how many, and the shape of one
