"""Every norm placement against its equation, with attention and FFN in plain functions."""

from collections.abc import Callable
from math import sqrt

import pytest
import torch
from torch import Tensor

from trainers.models.build import build
from trainers.models.decoder import Decoder
from trainers.models.model_spec import ModelSpec
from trainers.models.placements import PLACEMENTS

#: The residual stream x, a sub-layer f, its norms n, in layer i of L; p is Mix-LN's number of
#: Post-LN layers.
EQUATIONS: dict[str, Callable[..., Tensor]] = {
    "pre": lambda x, f, n, i, L, p: x + f(n[0](x)),
    "post": lambda x, f, n, i, L, p: n[0](x + f(x)),
    "mix": lambda x, f, n, i, L, p: n[0](x + f(x)) if i <= p else x + f(n[0](x)),
    "lns": lambda x, f, n, i, L, p: x + f(n[0](x) * i**-0.5),
    "sandwich": lambda x, f, n, i, L, p: x + n[1](f(n[0](x))),
    "reordered": lambda x, f, n, i, L, p: x + n[0](f(x)),
    "deepnorm": lambda x, f, n, i, L, p: n[0]((2 * L) ** 0.25 * x + f(x)),
}  # fmt: skip
WITHOUT_FINAL_NORM = {"post", "deepnorm"}
ARCHITECTURES = ["gpt2", "llama"]


def reference(model: Decoder, tokens: Tensor) -> Tensor:
    """Logits from a model's weights alone, by the equation of its placement."""
    w, config = dict(model.named_parameters()), model.config
    gpt2, T, h = config.architecture == "gpt2", tokens.shape[1], config.head_dim

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0.0)

    def norm(x: Tensor, name: str) -> Tensor:
        if gpt2:
            x = x - x.mean(-1, keepdim=True)
        root_mean_square = (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x / root_mean_square * w[f"{name}.weight"] + w.get(f"{name}.bias", 0.0)

    def turned(x: Tensor) -> Tensor:  # each pair (i, i + h/2) as a complex number
        angles = torch.arange(T)[:, None] * 10_000.0 ** (-torch.arange(0, h, 2) / h)
        pairs = torch.complex(*x.chunk(2, -1)) * torch.polar(torch.ones_like(angles), angles)
        return x if gpt2 else torch.cat([pairs.real, pairs.imag], -1)

    def attention(x: Tensor, at: str) -> Tensor:
        q, k, v = (linear(x, f"{at}.{p}").unflatten(-1, (-1, h)).transpose(-2, -3) for p in "qkv")
        scores = turned(q) @ turned(k).mT / h**0.5
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(future, -torch.inf).softmax(-1) @ v
        return linear(mixed.transpose(-2, -3).flatten(-2), f"{at}.o")

    def ffn(x: Tensor, at: str) -> Tensor:
        up = linear(x, f"{at}.up")
        if gpt2:
            gelu = 0.5 * up * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (up + 0.044715 * up**3)))
            return linear(gelu, f"{at}.down")
        gate = linear(x, f"{at}.gate")
        return linear(gate * torch.sigmoid(gate) * up, f"{at}.down")

    x = w["tokens.weight"][tokens]
    if gpt2:
        x = x + w["positions.weight"][:T]
    L = len(config.ffn_widths)
    for i in range(1, L + 1):
        for f, name in ((attention, "attention"), (ffn, "ffn")):
            at = f"layers.{i - 1}.{name}"
            norms = [lambda y, n=f"{at}_norms.{j}": norm(y, n) for j in (0, 1)]
            sub_layer = lambda y, f=f, at=at: f(y, at)  # noqa: E731
            x = EQUATIONS[config.norm](x, sub_layer, norms, i, L, config.post_layers)
    if config.norm not in WITHOUT_FINAL_NORM:
        x = norm(x, "final_norm")
    return x @ w["head.weight"].T


def deep_spec(
    model_spec: Callable[..., ModelSpec], architecture: str, norm: str, **changes
) -> ModelSpec:
    """Three layers: enough that the first, a later and the last differ."""
    changes = {"ffn_widths": (48, 24, 40), "post_layers": 2 if norm == "mix" else 0} | changes
    return model_spec(architecture, norm, **changes)


@pytest.mark.parametrize("norm", EQUATIONS)
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_placement_follows_its_equation(
    architecture, norm, model_spec, lively, random_tokens
) -> None:
    spec = deep_spec(model_spec, architecture, norm)
    model, tokens = lively(spec), random_tokens(spec)
    with torch.no_grad():
        expected = reference(model, tokens)
        error = (model(tokens).logits - expected).abs().max() / expected.abs().max()
    assert float(error) < 1e-5


def test_every_placement_but_ngpt_is_tested_here() -> None:
    assert set(EQUATIONS) == set(PLACEMENTS) - {"ngpt"}  # that one is in test_ngpt.py


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_two_placements_are_the_same_model(
    architecture, model_spec, lively, random_tokens
) -> None:
    logits = []
    for norm in EQUATIONS:
        spec = deep_spec(model_spec, architecture, norm)
        with torch.no_grad():
            logits.append(lively(spec)(random_tokens(spec)).logits)
    for i, one in enumerate(logits):
        assert all(float((one - other).abs().max()) > 0.1 for other in logits[:i])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("norm", EQUATIONS)
def test_a_placement_has_its_norms_and_a_final_one_only_where_it_needs_it(
    architecture, norm, model_spec
) -> None:
    gains = 2 if norm == "sandwich" else 1
    expected = {
        f"layers.{i}.{part}_norms.{j}"
        for i in range(3)
        for part in ("attention", "ffn")
        for j in range(gains)
    } | (set() if norm in WITHOUT_FINAL_NORM else {"final_norm"})
    kinds = {"gpt2": torch.nn.LayerNorm, "llama": torch.nn.RMSNorm}
    model = build(deep_spec(model_spec, architecture, norm), 0)
    found = {name for name, m in model.named_modules() if isinstance(m, kinds[architecture])}
    assert found == expected


# --- what follows from the equations -------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_lns_is_pre_ln_with_gains_and_biases_divided_by_the_root_of_the_layer(
    architecture, model_spec, lively, random_tokens
) -> None:
    """Of both norms of a layer and not of the final one (arXiv 2502.05795)."""
    lns = lively(deep_spec(model_spec, architecture, "lns"))
    spec = deep_spec(model_spec, architecture, "pre")
    pre, tokens = build(spec, 0), random_tokens(spec)
    pre.load_state_dict(lns.state_dict())
    with torch.no_grad():
        assert not torch.allclose(pre(tokens).logits, lns(tokens).logits, atol=1e-2)
        for layer, block in enumerate(pre.layers, start=1):
            for norm in (*block.attention_norms, *block.ffn_norms):
                for parameter in norm.parameters():
                    parameter /= sqrt(layer)
        torch.testing.assert_close(pre(tokens).logits, lns(tokens).logits, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mix_ln_of_post_layers_alone_is_post_ln_with_a_final_norm(
    architecture, model_spec, lively, random_tokens
) -> None:
    mix = lively(deep_spec(model_spec, architecture, "mix", post_layers=3))
    spec = deep_spec(model_spec, architecture, "post")
    post, tokens = build(spec, 0), random_tokens(spec)
    final = {name for name in mix.state_dict() if name.startswith("final_norm")}
    assert mix.state_dict().keys() - post.state_dict().keys() == final
    post.load_state_dict({k: v for k, v in mix.state_dict().items() if k not in final})
    post.final_norm = mix.final_norm
    with torch.no_grad():
        assert torch.equal(post(tokens).logits, mix(tokens).logits)


@pytest.mark.parametrize("norm", ["post", "deepnorm"])
def test_post_norms_leave_every_layer_with_the_size_of_their_gain(
    norm, model_spec, random_tokens
) -> None:
    """Gains are 1 at the start: every token's vector has root mean square 1."""
    spec = deep_spec(model_spec, "llama", norm)
    model, sizes = build(spec, 0), []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, x, y: sizes.append(y.square().mean(-1).sqrt()))
    with torch.no_grad():
        model(random_tokens(spec))
    assert len(sizes) == 3
    for size in sizes:
        torch.testing.assert_close(size, torch.ones_like(size), rtol=1e-3, atol=1e-3)


# --- DeepNorm's constants (arXiv 2203.00555, table 2, decoder only) ------------------------

#: depth: (2 depth)^(1/4), (8 depth)^(-1/4)
DEEPNORM = {12: (2.213364, 0.319472), 24: (2.632148, 0.268642), 32: (2.828427, 0.25)}


@pytest.mark.parametrize("depth", DEEPNORM)
def test_deepnorms_constants(depth, model_spec) -> None:
    alpha, beta = DEEPNORM[depth]
    spec = model_spec("llama", "deepnorm", ffn_widths=(8,) * depth)
    model = build(spec, 0)
    plain = dict(build(model_spec("llama", "post", ffn_widths=(8,) * depth), 0).named_parameters())
    for name, parameter in model.named_parameters():
        carries = ".ffn." in name or name.endswith((".v.weight", ".o.weight"))
        carries &= parameter.ndim == 2
        torch.testing.assert_close(parameter, plain[name] * (beta if carries else 1.0))
    seen = []
    place = model.layers[depth - 1].place
    PLACEMENTS["deepnorm"].apply(torch.ones(()), torch.zeros_like, [seen.append], place)
    assert float(seen[0]) == pytest.approx(alpha, rel=1e-6)


def test_deepnorm_leaves_queries_keys_embeddings_head_and_gains_alone(model_spec) -> None:
    deepnorm, post = (
        dict(build(model_spec("gpt2", norm), 0).named_parameters()) for norm in ("deepnorm", "post")
    )
    same = {name for name in post if torch.equal(post[name], deepnorm[name])}
    matrices = {name for name in post if post[name].ndim == 2}
    assert {n.split(".", 2)[-1] for n in matrices - same} == {
        "attention.v.weight", "attention.o.weight", "ffn.up.weight", "ffn.down.weight",
    }  # fmt: skip
    assert {"tokens.weight", "positions.weight", "head.weight"} <= same


@pytest.mark.parametrize("norm", [norm for norm in EQUATIONS if norm != "deepnorm"])
def test_no_other_placement_scales_the_weights(norm, model_spec) -> None:
    found, pre = (build(deep_spec(model_spec, "gpt2", n), 0).state_dict() for n in (norm, "pre"))
    shared = found.keys() & pre.keys()
    assert len(shared) >= len(pre) - 2  # but the final norm
    assert all(torch.equal(found[name], pre[name]) for name in shared)
