"""nGPT against its equations (arXiv 2410.01131), and that everything is on the unit sphere."""

import pytest
import torch
from torch import Tensor, nn

from trainers.models.build import build
from trainers.models.decoder import Decoder
from trainers.models.model_spec import ModelSpec
from trainers.models.ngpt import LearnedScale


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def reference(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits from the weights alone; every learned scale is stored * init / scale."""
    w, d, h = dict(model.named_parameters()), model.config.d_model, model.config.head_dim
    T = tokens.shape[1]

    def learned(name: str, init: float, scale: float) -> Tensor:
        return w[f"{name}.weight"] * init / scale

    def turned(x: Tensor) -> Tensor:  # each pair (i, i + h/2) as a complex number
        angles = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, h, 2) / h)
        pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([pairs.real, pairs.imag], -1)

    def attention(x: Tensor, at: str) -> Tensor:
        q, k, v = (
            (x @ w[f"{at}.{p}.weight"].T).unflatten(-1, (-1, h)).transpose(-2, -3) for p in "qkv"
        )
        s_qk = learned(f"{at}.qk_scale", 1.0, d**-0.5).unflatten(0, (-1, 1, h))
        q, k = unit(turned(q)) * s_qk, unit(turned(k)) * s_qk
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        mixed = (h**0.5 * q @ k.mT).masked_fill(future, -torch.inf).softmax(-1) @ v
        return mixed.transpose(-2, -3).flatten(-2) @ w[f"{at}.o.weight"].T

    def mlp(x: Tensor, at: str) -> Tensor:
        u = x @ w[f"{at}.up.weight"].T * learned(f"{at}.up.scale", 1.0, 1.0)
        v = x @ w[f"{at}.gate.weight"].T * learned(f"{at}.gate.scale", 1.0, 1.0) * d**0.5
        return (u * v * torch.sigmoid(v)) @ w[f"{at}.down.weight"].T

    x = w["tokens.weight"][tokens]
    for i in range(len(model.config.ffn_widths)):
        for f, name in ((attention, "attention"), (mlp, "ffn")):
            a = learned(f"layers.{i}.{name}_norms.0.step", 0.05, d**-0.5).abs()
            x = unit(x + a * (unit(f(x, f"layers.{i}.{name}")) - x))
    return x @ w["head.weight"].T * learned("head.scale", 1.0, d**-0.5)


@pytest.fixture
def spec(model_spec) -> ModelSpec:
    return model_spec("ngpt", ffn_widths=(48, 24, 40))


@pytest.mark.parametrize("head_dim", [4, 8, 32])
@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
def test_ngpt_follows_its_equations(spread, head_dim, model_spec, lively, random_tokens) -> None:
    """At the start, and with every matrix and learned scale moved, far past zero too."""
    spec = model_spec("ngpt", head_dim=head_dim, ffn_widths=(48, 24, 40))
    model, tokens = lively(spec, spread), random_tokens(spec)
    if spread == 0.5:
        assert any((p < 0).any() for n, p in model.named_parameters() if n.endswith("step.weight"))
    expected = reference(model, tokens)
    logits = model(tokens).logits
    scale = max(1.0, float(expected.detach().abs().max()))
    assert float((logits - expected).detach().abs().max()) < 1e-5 * scale

    model.zero_grad()
    logits.square().mean().backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected.square().mean().backward()
    for name, parameter in model.named_parameters():
        scale = max(1.0, float(parameter.grad.abs().max()))
        assert float((found[name] - parameter.grad).abs().max()) < 1e-4 * scale, name


# --- the start -----------------------------------------------------------------------------

#: Along which dimension of [out, in] the vectors of each matrix have norm 1.
ALONG = {
    "tokens": 1, "head": 1, "q": 1, "k": 1, "v": 1, "o": 0, "gate": 1, "up": 1, "down": 0,
}  # fmt: skip


def test_every_matrix_starts_with_unit_norm_along_d_model(spec) -> None:
    model = build(spec, 0)
    matrices = {name: p for name, p in model.named_parameters() if p.ndim == 2}
    assert model.unit_norm_dims == {name: ALONG[name.split(".")[-2]] for name in matrices}
    assert len(matrices) == 2 + 3 * 7
    for name, matrix in matrices.items():
        dim = model.unit_norm_dims[name]
        norms = matrix.detach().norm(dim=dim)
        assert matrix.shape[dim] == spec.d_model
        torch.testing.assert_close(norms, torch.ones_like(norms))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_other_architecture_keeps_unit_norms(architecture, model_spec) -> None:
    assert build(model_spec(architecture), 0).unit_norm_dims == {}


#: Name: initial factor, and how it is stored at d_model 32.
SCALES = {
    "attention_norms.0.step": (0.05, 32**-0.5),
    "ffn_norms.0.step": (0.05, 32**-0.5),
    "attention.qk_scale": (1.0, 32**-0.5),
    "ffn.gate.scale": (1.0, 1.0),
    "ffn.up.scale": (1.0, 1.0),
    "head.scale": (1.0, 32**-0.5),
}


def test_every_learned_scale_starts_at_its_value_and_is_stored_at_its_scale(spec) -> None:
    model = build(spec, 0)
    found = {name: m for name, m in model.named_modules() if isinstance(m, LearnedScale)}
    assert len(found) == 3 * 5 + 1
    for name, scale in found.items():
        initial, stored = SCALES[name.removeprefix("layers.").lstrip("012.")]
        torch.testing.assert_close(scale(), torch.full_like(scale.weight, initial))
        torch.testing.assert_close(scale.weight, torch.full_like(scale.weight, stored))


def test_ngpt_has_neither_norm_gains_nor_biases(spec) -> None:
    """All that is not a matrix is a learned scale."""
    model = build(spec, 0)
    assert not any(isinstance(m, nn.LayerNorm | nn.RMSNorm) for m in model.modules())
    vectors = {name for name, p in model.named_parameters() if p.ndim == 1}
    scales = {n for n, m in model.named_modules() if isinstance(m, LearnedScale)}
    assert vectors == {f"{name}.weight" for name in scales}
    assert model.final_norm is None


# --- what follows --------------------------------------------------------------------------


def test_hidden_states_are_unit_vectors_after_every_layer(spec, lively, random_tokens) -> None:
    model, norms = lively(spec), []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, x, y: norms.append(y.norm(dim=-1)))
    with torch.no_grad():
        model(random_tokens(spec))
    assert len(norms) == 3
    for norm in norms:
        torch.testing.assert_close(norm, torch.ones_like(norm))


def test_logits_at_the_start_are_cosines(spec, random_tokens) -> None:
    with torch.no_grad():
        assert float(build(spec, 0)(random_tokens(spec)).logits.abs().max()) <= 1 + 1e-6


@pytest.mark.parametrize("name", ["q", "k", "o"])
def test_scaling_a_matrix_whose_output_is_normalised_changes_nothing(
    name, spec, lively, random_tokens
) -> None:
    model, tokens = lively(spec), random_tokens(spec)
    with torch.no_grad():
        before = model(tokens).logits
        getattr(model.layers[0].attention, name).weight *= 3
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
        model.layers[1].ffn.down.weight *= 5
        torch.testing.assert_close(model(tokens).logits, before, rtol=1e-4, atol=1e-5)
        model.layers[1].ffn.gate.weight *= 2  # which SiLU sees
        assert not torch.allclose(model(tokens).logits, before, rtol=1e-2, atol=1e-2)


def test_a_step_of_zero_stays_and_a_step_of_one_is_the_sub_layer(spec, random_tokens) -> None:
    """The spherical walk of equations 10 and 11."""
    model, tokens = build(spec, 0), random_tokens(spec)
    block = model.layers[0]
    x = unit(torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        block.ffn_norms[0].step.weight.zero_()
        torch.testing.assert_close(block.ffn_norms[0](x, block.ffn(x)), x)
        block.ffn_norms[0].step.weight.fill_(32**-0.5 / 0.05)
        torch.testing.assert_close(block.ffn_norms[0](x, block.ffn(x)), unit(block.ffn(x)))
        assert torch.isfinite(model(tokens).logits).all()


@pytest.mark.parametrize("how", ["autocast", "bf16 weights"])
def test_half_precision_stays_near(how, spec, lively, random_tokens) -> None:
    model, tokens = lively(spec, spread=0.02), random_tokens(spec)
    with torch.no_grad():
        expected = model(tokens).logits
        if how == "bf16 weights":
            model.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
            logits = model(tokens).logits.float()
    assert float((logits - expected).abs().max() / expected.abs().max()) < 0.05
