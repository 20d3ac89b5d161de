"""The weight geometries of an FFN's matrices: against torch's own and against linear algebra."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from trainers.models.build import build, feed_forwards
from trainers.models.linear import (
    GEOMETRIES,
    HypersphericalLinear,
    SpectralNormLinear,
    WeightNormLinear,
)

IN, OUT = 12, 20


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def filled(kind: type[nn.Linear], bias: bool = True) -> nn.Linear:
    """A linear layer with random parameters."""
    linear = kind(IN, OUT, bias=bias)
    with torch.no_grad():
        for seed, parameter in enumerate(linear.parameters()):
            parameter.copy_(randn(*parameter.shape, seed=seed))
        if isinstance(linear, SpectralNormLinear):
            linear.left.copy_(F.normalize(randn(OUT, seed=9), dim=0))
    return linear


def gradients(linear: nn.Linear, x: Tensor) -> dict[str, Tensor]:
    """Gradients of a loss that weights every output differently."""
    out = linear(x)
    (out * randn(*out.shape, seed=5)).sum().backward()
    return {name: p.grad for name, p in linear.named_parameters() if p.grad is not None}


# --- weight normalisation ------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_weight_norm_is_torchs(bias) -> None:
    """Output and gradients of gain, direction and bias."""
    ours = filled(WeightNormLinear, bias)
    theirs = parametrizations.weight_norm(nn.Linear(IN, OUT, bias=bias))
    with torch.no_grad():
        theirs.parametrizations.weight.original0.copy_(ours.gain[:, None])
        theirs.parametrizations.weight.original1.copy_(ours.weight)
        if bias:
            theirs.bias.copy_(ours.bias)
    x = randn(3, 4, IN, seed=7)
    torch.testing.assert_close(ours(x), theirs(x))
    found, expected = gradients(ours, x), gradients(theirs, x)
    torch.testing.assert_close(found["gain"], expected["parametrizations.weight.original0"][:, 0])
    torch.testing.assert_close(found["weight"], expected["parametrizations.weight.original1"])
    if bias:
        torch.testing.assert_close(found["bias"], expected["bias"])


def test_the_gain_is_the_length_of_an_incoming_vector() -> None:
    linear = filled(WeightNormLinear)
    torch.testing.assert_close(linear.effective_weight().norm(dim=1), linear.gain.abs())


# --- hyperspherical ------------------------------------------------------------------------


def test_hyperspherical_incoming_vectors_have_norm_one() -> None:
    linear = filled(HypersphericalLinear)
    torch.testing.assert_close(linear.effective_weight().norm(dim=1), torch.ones(OUT))
    x = randn(3, IN, seed=7)
    cosines = F.cosine_similarity(x[:, None], linear.weight[None], dim=-1)
    expected = cosines * x.norm(dim=-1, keepdim=True) + linear.bias
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize("kind", [HypersphericalLinear, WeightNormLinear])
def test_only_the_direction_of_a_stored_vector_counts(kind) -> None:
    linear, x = filled(kind), randn(3, IN, seed=7)
    before = linear(x)
    gradient = gradients(linear, x)["weight"]
    radial = (gradient * linear.weight).sum(1)
    torch.testing.assert_close(radial, torch.zeros(OUT), rtol=0, atol=1e-5)
    with torch.no_grad():
        linear.weight *= torch.linspace(0.1, 10, OUT)[:, None]
    torch.testing.assert_close(linear(x), before)


def test_a_hyperspherical_gradient_is_that_of_the_formula() -> None:
    linear, x = filled(HypersphericalLinear), randn(3, IN, seed=7)
    found = gradients(linear, x)["weight"]
    v = linear.weight.detach().clone().requires_grad_()
    out = x @ (v / v.square().sum(1, keepdim=True).sqrt()).T + linear.bias.detach()
    (out * randn(*out.shape, seed=5)).sum().backward()
    torch.testing.assert_close(found, v.grad)


# --- spectral normalisation ----------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_built_models_spectral_norms_are_one(architecture, model_spec) -> None:
    """Of every up, gate and down, against the singular value decomposition."""
    model = build(model_spec(architecture, ffn_weight="spectral_norm"), 0)
    found = [m for m in model.modules() if isinstance(m, SpectralNormLinear)]
    assert len(found) == 2 * (3 if architecture == "llama" else 2)
    for linear in found:
        largest = torch.linalg.svdvals(linear.effective_weight().detach())[0]
        assert float(largest) == pytest.approx(1, abs=5e-3)  # power iteration is from below
        assert float(largest) >= 1 - 1e-6


def test_iterations_converge_to_the_largest_singular_value() -> None:
    linear = filled(SpectralNormLinear)
    linear.iterate(1000)
    values = torch.linalg.svdvals(linear.effective_weight().detach())
    expected = torch.linalg.svdvals(linear.weight.detach())
    torch.testing.assert_close(values, expected / expected[0])


def test_spectral_norm_is_torchs_update_by_update() -> None:
    """The estimate, the output and the gradient, while the weights move. torch carries the right
    singular vector over from the last update; we take it of the weights as they are."""
    ours, x = filled(SpectralNormLinear), randn(3, 4, IN, seed=7)
    theirs = parametrizations.spectral_norm(nn.Linear(IN, OUT), n_power_iterations=1)
    original = theirs.parametrizations.weight.original
    (norm,) = theirs.parametrizations.weight
    with torch.no_grad():
        norm._u.copy_(ours.left)
        theirs.bias.copy_(ours.bias)
    for update in range(4):
        with torch.no_grad():
            ours.weight += 0.3 * randn(OUT, IN, seed=20 + update)
            original.copy_(ours.weight)
            norm._v.copy_(F.normalize(original.T @ norm._u, dim=0))
        ours.zero_grad()
        theirs.zero_grad()
        ours.begin_update()
        found, expected = gradients(ours, x), gradients(theirs, x)
        torch.testing.assert_close(ours.left, norm._u)
        torch.testing.assert_close(found["weight"], expected["parametrizations.weight.original"])
        torch.testing.assert_close(ours(x), theirs.eval()(x))  # neither iterates
        theirs.train()


def test_a_spectral_gradient_is_that_of_the_formula() -> None:
    """dW = (G - <G, W/sigma> u v^T) / sigma, with G the gradient of W/sigma (arXiv 1802.05957,
    equation 12): both singular vectors are constants."""
    linear, x = filled(SpectralNormLinear), randn(6, IN, seed=7)
    found = gradients(linear, x)["weight"]
    weight = linear.weight.detach()
    u = linear.left
    v = F.normalize(weight.T @ u, dim=0)
    sigma = u @ weight @ v
    G = randn(6, OUT, seed=5).T @ x
    expected = (G - (G * weight / sigma).sum() * torch.outer(u, v)) / sigma
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_power_iteration_runs_once_per_update_for_any_number_of_forward_passes() -> None:
    linear, x = filled(SpectralNormLinear), randn(3, IN, seed=7)

    def iterated(left: Tensor) -> Tensor:
        return F.normalize(linear.weight @ (linear.weight.T @ left), dim=0)

    start = linear.left.clone()
    for _ in range(3):
        linear(x)
    assert torch.equal(linear.left, start)  # measuring is no update
    once = iterated(start)
    for expected in (once, iterated(once)):
        linear.begin_update()
        for _ in range(4):
            linear(x)
        torch.testing.assert_close(linear.left, expected)


def test_a_model_begins_the_update_of_all_its_spectral_norms(model_spec, random_tokens) -> None:
    spec = model_spec("llama", ffn_weight="spectral_norm")
    model, tokens = build(spec, 0), random_tokens(spec)
    norms = [m for m in model.modules() if isinstance(m, SpectralNormLinear)]
    with torch.no_grad():
        for linear in norms:
            linear.weight += randn(*linear.weight.shape)
        before = [linear.left.clone() for linear in norms]
        model(tokens)
        assert all(torch.equal(m.left, left) for m, left in zip(norms, before, strict=True))
        model.begin_update()
        model(tokens)
        after = [linear.left.clone() for linear in norms]
        model(tokens)
    assert not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert all(torch.equal(m.left, left) for m, left in zip(norms, after, strict=True))


# --- in a model, and in half precision -----------------------------------------------------


@pytest.mark.parametrize("ffn_weight", GEOMETRIES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_all_matrices_of_the_ffn_have_the_geometry_and_no_others(
    architecture, ffn_weight, model_spec
) -> None:
    kind = GEOMETRIES[ffn_weight]
    model = build(model_spec(architecture, ffn_weight=ffn_weight), 0)
    for ffn in feed_forwards(model):
        linear = [m for m in ffn.modules() if isinstance(m, nn.Linear)]
        assert len(linear) == (3 if architecture == "llama" else 2)
        assert {type(m) for m in linear} == {kind}
    for layer in model.layers:
        others = [m for m in layer.attention.modules() if isinstance(m, nn.Linear)]
        assert {type(m) for m in [*others, model.head]} == {nn.Linear}


@pytest.mark.parametrize("kind", GEOMETRIES.values())
@pytest.mark.parametrize("how", ["autocast", "bf16 weights"])
def test_half_precision_stays_near(kind, how) -> None:
    linear, x = filled(kind), randn(8, IN, seed=7)
    expected = linear(x).detach()
    expected_gradient = gradients(linear, x)["weight"]
    half = copy.deepcopy(linear)
    half.zero_grad()
    if how == "bf16 weights":
        half, x = half.bfloat16(), x.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        out = half(x)
    assert out.dtype == torch.bfloat16
    (out.float() * randn(*out.shape, seed=5)).sum().backward()
    assert float((out.detach() - expected).abs().max() / expected.abs().max()) < 0.03
    error = (half.weight.grad.float() - expected_gradient).abs().max()
    assert float(error / expected_gradient.abs().max()) < 0.05


@pytest.mark.parametrize("ffn_weight", GEOMETRIES)
@pytest.mark.parametrize("how", ["autocast", "bf16 weights"])
def test_a_whole_model_in_half_precision_stays_near(
    ffn_weight, how, model_spec, random_tokens
) -> None:
    spec = model_spec("llama", ffn_weight=ffn_weight)
    model, tokens = build(spec, 0), random_tokens(spec)
    with torch.no_grad():
        expected = model(tokens).logits
        if how == "bf16 weights":
            model.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            model.begin_update()
            logits = model(tokens).logits.float()
    assert float((logits - expected).abs().max() / expected.abs().max()) < 0.05


def test_the_singular_value_is_not_rounded_by_autocast() -> None:
    linear = filled(SpectralNormLinear)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        linear.begin_update()
        linear(randn(2, IN))
    left, weight = linear.left, linear.effective_weight()
    other = filled(SpectralNormLinear)
    other.begin_update()
    other(randn(2, IN))
    assert torch.equal(left, other.left)
    assert torch.equal(weight, other.effective_weight())
