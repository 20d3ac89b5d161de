"""The decoders against transformers, and as models of transformers."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainers.models.build import build, feed_forwards, token_loss
from trainers.models.decoder import FFN, Decoder, DecoderConfig, rotary, rotate
from trainers.models.model_spec import ModelSpec
from trainers.models.placements import PLACEMENTS

#: Our gated activations and what transformers calls the non-linearity of their gate.
GATED = {"swiglu": "silu", "geglu": "gelu_pytorch_tanh"}
UNGATED = {"gelu": "gelu_new", "relu": "relu", "relu2": "relu2"}


@st.composite
def pre_ln_specs(draw: st.DrawFn, architecture: str) -> ModelSpec:
    """Pre-LN models that transformers has a class for."""
    head_dim = 2 * draw(st.integers(1, 6))
    # A LayerNorm over two or four numbers can amplify rounding a hundredfold.
    heads = draw(st.integers(-(-8 // head_dim), 4))
    depth = draw(st.integers(1, 3))
    kv_heads, qk_norm, activations = None, False, list(UNGATED)
    if architecture == "llama":
        kv_heads = draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0]))
        qk_norm, activations = draw(st.booleans()), list(GATED)
    return ModelSpec(
        architecture=architecture, norm="pre", d_model=heads * head_dim, head_dim=head_dim,
        ffn_widths=(draw(st.integers(1, 48)),) * depth, context=draw(st.integers(2, 24)),
        vocab_size=draw(st.integers(2, 120)), tie_embeddings=draw(st.booleans()),
        kv_heads=kv_heads, qk_norm=qk_norm, activation=draw(st.sampled_from(activations)),
    )  # fmt: skip


# --- the same in transformers --------------------------------------------------------------


def stock_llama(spec: ModelSpec) -> nn.Module:
    """Llama, or Qwen 3 with a norm on queries and keys."""
    config, model = (
        (Qwen3Config, Qwen3ForCausalLM) if spec.qk_norm else (LlamaConfig, LlamaForCausalLM)
    )
    return model(
        config(
            vocab_size=spec.vocab_size, hidden_size=spec.d_model, head_dim=spec.head_dim,
            intermediate_size=spec.ffn_widths[0], num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads, num_key_value_heads=spec.key_value_heads,
            max_position_embeddings=spec.context, hidden_act=GATED[spec.ffn_activation],
            rms_norm_eps=1e-5, tie_word_embeddings=spec.tie_embeddings,
            attn_implementation="eager", use_cache=False,
            bos_token_id=None, eos_token_id=None, pad_token_id=None,
        )
    )  # fmt: skip


def stock_gpt2(spec: ModelSpec) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=spec.vocab_size, n_embd=spec.d_model, n_inner=spec.ffn_widths[0],
            n_layer=spec.depth, n_head=spec.heads, n_positions=spec.context,
            activation_function=UNGATED[spec.ffn_activation],
            tie_word_embeddings=spec.tie_embeddings,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager",
            use_cache=False, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def in_llama_names(ours: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    theirs = {
        "model.embed_tokens.weight": ours["tokens.weight"],
        "model.norm.weight": ours["final_norm.weight"],
    }
    if not spec.tie_embeddings:
        theirs["lm_head.weight"] = ours["head.weight"]
    parts = {
        "input_layernorm": "attention_norms.0",
        "post_attention_layernorm": "ffn_norms.0",
        **{f"self_attn.{p}_proj": f"attention.{p}" for p in "qkvo"},
        **{f"mlp.{p}_proj": f"ffn.{p}" for p in ("gate", "up", "down")},
    }
    if spec.qk_norm:
        parts |= {f"self_attn.{p}_norm": f"attention.{p}_norm" for p in "qk"}
    for i in range(spec.depth):
        for their, our in parts.items():
            theirs[f"model.layers.{i}.{their}.weight"] = ours[f"layers.{i}.{our}.weight"]
    return theirs


def in_gpt2_names(ours: dict[str, Tensor], spec: ModelSpec) -> dict[str, Tensor]:
    """Its linear layers hold their weights transposed, and q, k and v in one."""
    theirs = {
        "transformer.wte.weight": ours["tokens.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
    }
    if not spec.tie_embeddings:
        theirs["lm_head.weight"] = ours["head.weight"]
    norms = {"ln_1": "attention_norms.0", "ln_2": "ffn_norms.0"}
    linear = {"attn.c_proj": "attention.o", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
    for i in range(spec.depth):
        for kind in ("weight", "bias"):
            there, here = f"transformer.h.{i}", f"layers.{i}"
            for their, our in norms.items():
                theirs[f"{there}.{their}.{kind}"] = ours[f"{here}.{our}.{kind}"]
            for their, our in linear.items():
                theirs[f"{there}.{their}.{kind}"] = turned(ours[f"{here}.{our}.{kind}"])
            qkv = torch.cat([ours[f"{here}.attention.{p}.{kind}"] for p in "qkv"])
            theirs[f"{there}.attn.c_attn.{kind}"] = turned(qkv)
    return theirs


def turned(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 else tensor  # a bias is not transposed


def largest(tensor: Tensor) -> float:
    return float(tensor.detach().abs().max())


#: The machine precision of float32, by which a weight is moved to see what a rounding does.
EPS = torch.finfo(torch.float32).eps
#: Roundings on the way through a model: what two orders of summing may differ by, of each.
ROUNDINGS = 100


def compare(spec: ModelSpec, ours: Decoder, tokens: Tensor) -> None:
    """Logits and the gradient of every parameter, with the same weights, in float32.

    Two that are one differ by their roundings, which a norm of a small vector magnifies: by as
    much as they magnify a move of every weight by one rounding.
    """
    stock, translate = (
        (stock_llama, in_llama_names)
        if spec.architecture == "llama"
        else (stock_gpt2, in_gpt2_names)
    )
    weights = {
        name: w.detach() for name, w in translate(dict(ours.named_parameters()), spec).items()
    }
    moved = {
        name: w * (1 + EPS * torch.sign(torch.randn(w.shape, generator=seeded)))
        for seeded in [torch.Generator().manual_seed(6)]
        for name, w in weights.items()
    }
    logits = ours(tokens).logits
    token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
    gradients = translate({name: p.grad for name, p in ours.named_parameters()}, spec)
    expected, wanted = answers(stock(spec), weights, tokens)
    nearby, shifted = answers(stock(spec), moved, tokens)
    assert largest(logits - expected) < rounding(expected, nearby)
    assert gradients.keys() == wanted.keys()
    # A gradient that cancels to about 0 has the rounding error of its summands.
    allowed = max(rounding(wanted[name], shifted[name]) for name in wanted)
    for name, gradient in wanted.items():
        assert largest(gradients[name] - gradient) < allowed, name


def answers(
    theirs: torch.nn.Module, weights: dict[str, Tensor], tokens: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """The logits and gradients of a stock model with these weights."""
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict(weights, strict=False)
    logits = theirs(tokens).logits
    token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
    return logits, {name: parameter.grad for name, parameter in theirs.named_parameters()}


def rounding(value: Tensor, nearby: Tensor) -> float:
    """The tolerance, from the value after every weight has moved by one rounding."""
    return ROUNDINGS * (EPS * max(1.0, largest(value)) + largest(nearby - value))


@settings(max_examples=40, deadline=None)
@given(spec=pre_ln_specs("gpt2"))
@pytest.mark.long
def test_gpt2_pre_ln_is_the_gpt2_of_transformers(spec, lively, random_tokens) -> None:
    compare(spec, lively(spec), random_tokens(spec))


@settings(max_examples=60, deadline=None)
@given(spec=pre_ln_specs("llama"))
@pytest.mark.long
def test_llama_pre_ln_is_the_llama_of_transformers_or_its_qwen3(
    spec, lively, random_tokens
) -> None:
    compare(spec, lively(spec), random_tokens(spec))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_no_gradient_that_was_compared_is_zero(
    architecture, model_spec, lively, random_tokens
) -> None:
    """A parameter without effect would agree with anything."""
    spec = model_spec(architecture, qk_norm=True, kv_heads=2)
    model, tokens = lively(spec), random_tokens(spec)
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        if not name.endswith(("attention.k.bias", "attention.k_norm.bias")):  # softmax: no effect
            assert largest(parameter.grad) > 1e-6, name


# --- what any causal model promises --------------------------------------------------------

VARIANTS = {
    "gpt2": {"architecture": "gpt2"},
    "gpt2 post": {"architecture": "gpt2", "norm": "post"},
    "llama": {"architecture": "llama"},
    "llama, shared keys, normed": {"architecture": "llama", "kv_heads": 2, "qk_norm": True},
    "llama, tied": {"architecture": "llama", "tie_embeddings": True},
    "llama, spectral norm": {"architecture": "llama", "ffn_weight": "spectral_norm"},
    "gpt2, weight norm": {"architecture": "gpt2", "ffn_weight": "weight_norm"},
    "ngpt": {"architecture": "ngpt"},
}


@pytest.fixture(params=VARIANTS)
def spec(request: pytest.FixtureRequest, model_spec: Callable[..., ModelSpec]) -> ModelSpec:
    return model_spec(**VARIANTS[request.param])


def test_no_token_sees_what_comes_after_it(spec, lively, random_tokens) -> None:
    model, tokens = lively(spec), random_tokens(spec)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % spec.vocab_size
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-6)
    assert not torch.isclose(before[:, 9:], after[:, 9:]).all(-1).any()


def test_padding_on_the_left_changes_no_real_token(spec, lively, random_tokens) -> None:
    model, rows = lively(spec), random_tokens(spec, sequences=4)
    lengths = (16, 13, 1, 7)
    tokens, mask = torch.full_like(rows, 5), torch.zeros_like(rows)
    for i, n in enumerate(lengths):
        tokens[i, -n:], mask[i, -n:] = rows[i, :n], 1
    with torch.no_grad():
        logits = model(tokens, attention_mask=mask).logits
        for i, n in enumerate(lengths):
            alone = model(rows[i : i + 1, :n]).logits[0]
            torch.testing.assert_close(logits[i, -n:], alone, rtol=1e-5, atol=1e-5)


def test_padding_on_the_right_changes_no_real_token(spec, lively, random_tokens) -> None:
    model, tokens = lively(spec), random_tokens(spec)
    mask = torch.ones_like(tokens)
    mask[0, 6:] = mask[2, 11:] = 0
    with torch.no_grad():
        padded = model(tokens, attention_mask=mask).logits
        expected = model(tokens).logits
    torch.testing.assert_close(padded[mask == 1], expected[mask == 1], rtol=1e-5, atol=1e-5)


def test_a_mask_without_padding_changes_nothing(spec, lively, random_tokens) -> None:
    model, tokens = lively(spec), random_tokens(spec)
    with torch.no_grad():
        masked = model(tokens, attention_mask=torch.ones_like(tokens)).logits
        assert torch.equal(masked, model(tokens).logits)


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    cos, sin = rotary(torch.arange(12), 8)
    turned_q, turned_k = (rotate(x.expand(1, 1, 12, 8), cos, sin)[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


def test_more_tokens_than_the_context_are_refused(spec, random_tokens) -> None:
    with pytest.raises(ValueError, match=r"17 .* 16"):
        build(spec, 0)(random_tokens(spec, length=17))


def test_unknown_arguments_of_forward_are_refused(spec, random_tokens) -> None:
    tokens = random_tokens(spec)
    with pytest.raises(TypeError, match="position_ids"):
        build(spec, 0)(tokens, position_ids=tokens)


# --- the feed-forward network --------------------------------------------------------------

#: From the formulas: GELU is GPT-2's (arXiv 1606.08415, its tanh form), SwiGLU and GeGLU are
#: arXiv 2002.05202's, relu^2 is arXiv 2109.08668's.
FORMULAS = {
    "gelu": lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "relu": lambda x: torch.where(x > 0, x, 0.0),
    "relu2": lambda x: torch.where(x > 0, x * x, 0.0),
    "silu": lambda x: x / (1 + torch.exp(-x)),
}


@pytest.mark.parametrize("activation", ["gelu", "relu", "relu2", "swiglu", "geglu"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_activation_follows_its_formula(architecture, activation, model_spec, lively) -> None:
    model = lively(model_spec(architecture, activation=activation), spread=0.5)
    act = FORMULAS[{"swiglu": "silu", "geglu": "gelu"}.get(activation, activation)]
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(3))
    for ffn in feed_forwards(model):
        w = dict(ffn.named_parameters())
        hidden = x @ w["up.weight"].T + w.get("up.bias", 0.0)
        if activation in GATED:
            hidden = act(x @ w["gate.weight"].T + w.get("gate.bias", 0.0)) * hidden
        else:
            assert "gate.weight" not in w
            hidden = act(hidden)
        expected = hidden @ w["down.weight"].T + w.get("down.bias", 0.0)
        torch.testing.assert_close(ffn(x), expected, rtol=1e-5, atol=1e-5)
        assert ("up.bias" in w) == (architecture == "gpt2")


def test_every_layer_has_its_own_width_and_the_probe_finds_it(spec) -> None:
    ffns = list(feed_forwards(build(spec, 0)))
    assert [ffn.width for ffn in ffns] == [96, 40]
    for ffn in ffns:
        assert isinstance(ffn, FFN)
        assert ffn.nonlinearity_input.out_features == ffn.down.in_features == ffn.width


# --- a model of transformers ---------------------------------------------------------------


def test_save_and_load_keep_the_logits(spec, lively, random_tokens, tmp_path) -> None:
    model = lively(spec)
    model.save_pretrained(tmp_path)
    loaded = Decoder.from_pretrained(tmp_path)
    for name in DecoderConfig.__annotations__.keys() - {"model_type"}:
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    assert tuple(loaded.config.ffn_widths) == spec.ffn_widths
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    tokens = random_tokens(spec)
    with torch.no_grad():  # how loaded weights are aligned in memory may change the rounding
        torch.testing.assert_close(loaded(tokens).logits, model(tokens).logits)
    shared = loaded.head.weight.data_ptr() == loaded.tokens.weight.data_ptr()
    assert shared == spec.tie_embeddings


def test_generation_beyond_the_context_uses_the_last_tokens(spec, lively, random_tokens) -> None:
    model, prompt = lively(spec).eval(), random_tokens(spec, sequences=2, length=5)
    generated = model.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    expected = prompt
    with torch.no_grad():
        for _ in range(20):
            following = model(expected[:, -spec.context :]).logits[:, -1].argmax(-1)
            expected = torch.cat([expected, following[:, None]], dim=1)
    assert torch.equal(generated, expected)


def test_padding_does_not_change_a_generation(spec, lively, random_tokens) -> None:
    model, prompt = lively(spec).eval(), random_tokens(spec, sequences=1, length=4)
    alone = model.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    padding = torch.zeros(1, 3, dtype=torch.long)
    padded = model.generate(
        torch.cat([padding, prompt], dim=1),
        attention_mask=torch.cat([padding, torch.ones_like(prompt)], dim=1),
        max_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
    )
    assert torch.equal(padded[:, 3:], alone)


# --- losses --------------------------------------------------------------------------------


def test_the_loss_of_labels_is_the_mean_over_the_next_tokens(spec, lively, random_tokens) -> None:
    model, tokens = lively(spec), random_tokens(spec)
    output = model(tokens, labels=tokens)
    log_p = F.log_softmax(output.logits[:, :-1], -1)
    expected = -log_p.gather(-1, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_labels_of_minus_100_do_not_count(model_spec, lively, random_tokens) -> None:
    spec = model_spec("llama")
    model, tokens = lively(spec), random_tokens(spec)
    labels = tokens.clone()
    labels[:, :10] = -100
    output = model(tokens, labels=labels)
    expected = token_loss(output.logits[:, 9:-1], tokens[:, 10:]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_losses_of_bf16_logits_are_float32() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.bfloat16)
    losses = token_loss(logits, torch.zeros(2, 3, dtype=torch.long))
    assert (losses.dtype, losses.shape) == (torch.float32, (6,))


# --- in half precision ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["autocast", "bf16 weights"])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("norm", sorted(set(PLACEMENTS) - {"ngpt", "mix"}))
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_half_precision_stays_near(
    architecture, norm, qk_norm, how, model_spec, random_tokens
) -> None:
    """Also without a warning, at every norm of a bf16 sub-layer output."""
    spec = model_spec(architecture, norm, qk_norm=qk_norm)
    model, tokens = build(spec, 0), random_tokens(spec)
    with torch.no_grad():
        expected = model(tokens).logits
    if how == "bf16 weights":
        model.bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=how == "autocast"):
        logits = model(tokens).logits
    assert logits.dtype == torch.bfloat16
    token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
    error = (logits.detach() - expected).abs().max() / expected.abs().max()
    assert float(error) < 0.05
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
