"""The decoders against independent implementations, and what their initialisation promises."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers import accounting
from trainers.models.decoder import (
    FFN,
    INITIAL_STD,
    Decoder,
    build,
    feed_forwards,
    initialise,
    rotate,
    token_loss,
)
from trainers.spec import ModelSpec

#: d_model, head_dim, D of each layer, context
SHAPES = [(32, 8, (96, 96), 16), (24, 12, (24,), 40), (64, 64, (40, 40, 40), 8)]
VOCABULARY = 101


def model_spec(architecture: str, norm: str = "pre", shape=SHAPES[0], **changes) -> ModelSpec:
    d_model, head_dim, widths, context = shape
    return ModelSpec(
        architecture=architecture, norm=norm, d_model=d_model, head_dim=head_dim,
        ffn_widths=widths, context=context, vocab_size=VOCABULARY, **changes,
    )  # fmt: skip


def lively(spec: ModelSpec) -> Decoder:
    """A model whose every parameter, gains and biases too, matters."""
    model = build(spec, 0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def random_tokens(spec: ModelSpec, sequences: int = 3, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(spec.vocab_size, (sequences, length or spec.context), generator=generator)


# --- against transformers ------------------------------------------------------------------


def llama(spec: ModelSpec) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.vocab_size, hidden_size=spec.d_model,
            intermediate_size=spec.ffn_widths[0], num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads, max_position_embeddings=spec.context,
            rms_norm_eps=1e-5, tie_word_embeddings=False, attn_implementation="eager",
        )
    )  # fmt: skip


def gpt2(spec: ModelSpec) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=spec.vocab_size, n_embd=spec.d_model, n_inner=spec.ffn_widths[0],
            n_layer=spec.depth, n_head=spec.heads, n_positions=spec.context,
            activation_function="gelu_new", tie_word_embeddings=False,
            attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, attn_implementation="eager",
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def in_llama_names(ours: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    theirs = {
        "model.embed_tokens.weight": ours["tokens.weight"],
        "model.norm.weight": ours["final_norm.weight"],
        "lm_head.weight": ours["head.weight"],
    }
    parts = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        **{f"self_attn.{p}_proj": f"attention.{p}" for p in "qkvo"},
        **{f"mlp.{p}_proj": f"ffn.{p}" for p in ("gate", "up", "down")},
    }
    for i in range(depth):
        for their, our in parts.items():
            theirs[f"model.layers.{i}.{their}.weight"] = ours[f"layers.{i}.{our}.weight"]
    return theirs


def in_gpt2_names(ours: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Its linear layers hold their weights transposed, and q, k and v in one."""
    theirs = {
        "transformer.wte.weight": ours["tokens.weight"],
        "transformer.wpe.weight": ours["positions.weight"],
        "transformer.ln_f.weight": ours["final_norm.weight"],
        "transformer.ln_f.bias": ours["final_norm.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    linear = {"attn.c_proj": "attention.o", "mlp.c_fc": "ffn.up", "mlp.c_proj": "ffn.down"}
    for i in range(depth):
        for kind in ("weight", "bias"):
            for their, our in (("ln_1", "attention_norm"), ("ln_2", "ffn_norm")):
                theirs[f"transformer.h.{i}.{their}.{kind}"] = ours[f"layers.{i}.{our}.{kind}"]
            for their, our in linear.items():
                theirs[f"transformer.h.{i}.{their}.{kind}"] = transposed(
                    ours[f"layers.{i}.{our}.{kind}"]
                )
            qkv = torch.cat([ours[f"layers.{i}.attention.{p}.{kind}"] for p in "qkv"])
            theirs[f"transformer.h.{i}.attn.c_attn.{kind}"] = transposed(qkv)
    return theirs


def transposed(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 else tensor  # a bias has nothing to turn


REFERENCES = {"llama": (llama, in_llama_names), "gpt2": (gpt2, in_gpt2_names)}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", REFERENCES)
def test_pre_ln_is_the_model_of_transformers(architecture: str, shape) -> None:
    """Logits and every gradient, with the same weights."""
    spec = model_spec(architecture, shape=shape)
    make, translate = REFERENCES[architecture]
    ours, theirs = lively(spec), make(spec)
    weights = translate(dict(ours.named_parameters()), spec.depth)
    assert weights.keys() == dict(theirs.named_parameters()).keys()
    theirs.load_state_dict(
        {name: weight.detach() for name, weight in weights.items()}, strict=False
    )

    tokens = random_tokens(spec)
    logits = ours(tokens).logits
    expected = theirs(tokens).logits
    largest = float(expected.detach().abs().max())
    assert float((logits - expected).detach().abs().max()) < 1e-5 * max(1.0, largest)

    token_loss(logits[:, :-1], tokens[:, 1:]).mean().backward()
    theirs(tokens, labels=tokens).loss.backward()
    gradients = translate({n: p.grad for n, p in ours.named_parameters()}, spec.depth)
    for name, parameter in theirs.named_parameters():
        largest = float(parameter.grad.abs().max())
        assert largest > 0, name
        error = float((gradients[name] - parameter.grad).abs().max())
        assert error < 1e-4 * max(1.0, largest), name


# --- post-LN, in ten lines -----------------------------------------------------------------


def post_ln_reference(model: Decoder, tokens: Tensor) -> Tensor:
    """LN(x + f(x)) at both sub-layers, no final norm; from the weights alone."""
    w, config = dict(model.named_parameters()), model.config
    heads = config.d_model // config.head_dim
    x = w["tokens.weight"][tokens] + w["positions.weight"][: tokens.shape[1]]
    for i in range(len(config.ffn_widths)):
        at = f"layers.{i}."
        attention = nn.MultiheadAttention(config.d_model, heads, batch_first=True)
        state = {
            "in_proj_weight": torch.cat([w[f"{at}attention.{p}.weight"] for p in "qkv"]),
            "in_proj_bias": torch.cat([w[f"{at}attention.{p}.bias"] for p in "qkv"]),
            "out_proj.weight": w[f"{at}attention.o.weight"],
            "out_proj.bias": w[f"{at}attention.o.bias"],
        }
        attention.load_state_dict(state)
        mask = torch.full((tokens.shape[1],) * 2, -math.inf).triu(1)
        mixed, _ = attention(x, x, x, attn_mask=mask, need_weights=False)
        x = norm(x + mixed, w, f"{at}attention_norm")
        hidden = x @ w[f"{at}ffn.up.weight"].T + w[f"{at}ffn.up.bias"]
        gelu = (
            0.5 * hidden * (1 + torch.tanh((2 / math.pi) ** 0.5 * (hidden + 0.044715 * hidden**3)))
        )
        x = norm(
            x + gelu @ w[f"{at}ffn.down.weight"].T + w[f"{at}ffn.down.bias"], w, f"{at}ffn_norm"
        )
    return x @ w["head.weight"].T


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


@pytest.mark.parametrize("shape", SHAPES)
def test_post_ln_normalises_after_the_residual_and_has_no_final_norm(shape) -> None:
    spec = model_spec("gpt2", "post", shape)
    model = lively(spec)
    assert not hasattr(model, "final_norm")
    tokens = random_tokens(spec)
    with torch.no_grad():
        torch.testing.assert_close(
            model(tokens).logits, post_ln_reference(model, tokens), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("architecture", REFERENCES)
@pytest.mark.parametrize("norm_placement", ["pre", "post"])
def test_no_token_sees_what_comes_after_it(architecture: str, norm_placement: str) -> None:
    spec = model_spec(architecture, norm_placement)
    model, tokens = lively(spec), random_tokens(spec)
    changed = tokens.clone()
    changed[:, 9] = (changed[:, 9] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = model(tokens).logits, model(changed).logits
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_rotary_scores_depend_on_distance_only() -> None:
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotate(x.expand(1, 1, 12, 8))[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))


# --- initialisation ------------------------------------------------------------------------


def test_what_shares_a_shape_shares_its_values_whatever_the_width() -> None:
    narrow = dict(build(model_spec("llama", shape=(32, 8, (48, 96), 16)), 0).named_parameters())
    wide = dict(build(model_spec("llama", shape=(32, 8, (96, 96, 96), 16)), 0).named_parameters())
    shared = [name for name in narrow if narrow[name].shape == wide[name].shape]
    assert {"tokens.weight", "head.weight", "layers.0.attention.q.weight"} <= set(shared)
    assert "layers.1.ffn.up.weight" in shared
    assert "layers.0.ffn.up.weight" not in shared
    for name in shared:
        assert torch.equal(narrow[name], wide[name]), name


def test_norm_placement_does_not_change_the_weights() -> None:
    pre, post = (build(model_spec("gpt2", norm), 0).state_dict() for norm in ("pre", "post"))
    assert set(pre) - set(post) == {"final_norm.weight", "final_norm.bias"}
    assert all(torch.equal(pre[name], post[name]) for name in post)


def test_every_replicate_and_every_parameter_has_values_of_its_own() -> None:
    first, second = (build(model_spec("gpt2"), replicate).state_dict() for replicate in (0, 1))
    drawn = [name for name in first if first[name].ndim == 2]
    assert all(not torch.equal(first[name], second[name]) for name in drawn)
    leading = {tuple(first[name].flatten()[:4].tolist()) for name in drawn}
    assert len(leading) == len(drawn)


def test_matrices_have_the_stated_spread_biases_are_0_and_gains_1() -> None:
    model = build(model_spec("gpt2", shape=(64, 16, (256, 256), 64)), 3)
    for name, parameter in model.state_dict().items():
        if parameter.ndim == 2:
            error = INITIAL_STD * 5 / math.sqrt(parameter.numel())
            assert abs(float(parameter.std()) - INITIAL_STD) < error, name
            assert abs(float(parameter.mean())) < error, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, not name.endswith("bias")))


def test_initialisation_ignores_and_leaves_alone_the_random_state_of_the_process() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = build(model_spec("gpt2"), 0)
    torch.manual_seed(6)
    again = build(model_spec("gpt2"), 0)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.set_rng_state(state)
    initialise(model, 1)
    assert torch.equal(torch.get_rng_state(), state)


# --- sizes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("norm_placement", ["pre", "post"])
@pytest.mark.parametrize("architecture", REFERENCES)
def test_it_has_as_many_parameters_as_accounted_for(
    architecture: str, norm_placement: str, tied: bool
) -> None:
    spec = model_spec(architecture, norm_placement, (32, 8, (48, 100), 16), tie_embeddings=tied)
    model = build(spec, 0)
    assert sum(p.numel() for p in model.parameters()) == accounting.parameters(spec).total
    assert [ffn.width for ffn in feed_forwards(model)] == [48, 100]


@pytest.mark.parametrize("architecture", REFERENCES)
def test_the_probes_places_have_the_width_of_the_ffn(architecture: str) -> None:
    model = build(model_spec(architecture, shape=(32, 8, (48, 100), 16)), 0)
    for ffn in feed_forwards(model):
        assert isinstance(ffn, FFN)
        assert ffn.nonlinearity_input.out_features == ffn.down.in_features == ffn.width


# --- a model of transformers ---------------------------------------------------------------


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("architecture", REFERENCES)
def test_it_is_saved_and_loaded_like_any_other(architecture: str, tied: bool, tmp_path) -> None:
    spec = model_spec(architecture, tie_embeddings=tied)
    model = lively(spec)
    model.save_pretrained(tmp_path)
    loaded = Decoder.from_pretrained(tmp_path)
    for name in ("architecture", "norm", "d_model", "head_dim", "context", "vocab_size"):
        assert getattr(loaded.config, name) == getattr(spec, name)
    assert tuple(loaded.config.ffn_widths) == spec.ffn_widths
    tokens = random_tokens(spec)
    with torch.no_grad():
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    shared = loaded.head.weight.data_ptr() == loaded.tokens.weight.data_ptr()
    assert shared == tied


@pytest.mark.parametrize("architecture", REFERENCES)
def test_more_tokens_than_the_context_are_refused(architecture: str) -> None:
    spec = model_spec(architecture)
    with pytest.raises(ValueError, match="17 tokens do not fit the context of 16"):
        build(spec, 0)(random_tokens(spec, length=17))


@pytest.mark.parametrize("architecture", REFERENCES)
def test_it_generates_beyond_its_context_from_the_last_tokens(architecture: str) -> None:
    spec = model_spec(architecture)
    model, prompt = lively(spec).eval(), random_tokens(spec, sequences=2, length=5)
    generated = model.generate(prompt, max_new_tokens=20, do_sample=False, pad_token_id=0)
    expected = prompt
    with torch.no_grad():
        for _ in range(20):
            following = model(expected[:, -spec.context :]).logits[:, -1].argmax(-1)
            expected = torch.cat([expected, following[:, None]], dim=1)
    assert torch.equal(generated, expected)


def test_the_loss_of_labels_is_the_mean_over_the_next_tokens() -> None:
    spec = model_spec("gpt2")
    model, tokens = lively(spec), random_tokens(spec)
    output = model(tokens, labels=tokens)
    log_p = F.log_softmax(output.logits[:, :-1], -1)
    expected = -log_p.gather(-1, tokens[:, 1:, None]).mean()
    torch.testing.assert_close(output.loss, expected)


def test_losses_are_in_float32_whatever_the_logits_are() -> None:
    logits = torch.randn(2, 3, 7, dtype=torch.bfloat16)
    losses = token_loss(logits, torch.zeros(2, 3, dtype=torch.long))
    assert (losses.dtype, losses.shape) == (torch.float32, (6,))
