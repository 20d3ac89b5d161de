"""Parameters against independent models, FLOPs against a FLOP counter, memory against ZeRO."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers.accounting import (
    inference_flops_per_token,
    parameters,
    training_flops_per_token,
    training_memory_bytes,
)
from trainers.models.decoder import Decoder, DecoderConfig
from trainers.spec import DataSpec, Layout, ModelSpec, TrainingSpec, TrialSpec

#: d_model, head_dim, D, depth, context, vocabulary
SHAPES = [(32, 16, 128, 2, 32, 257), (64, 16, 168, 3, 64, 512), (48, 12, 416, 1, 128, 1000)]


def model(architecture: str, norm: str = "pre", shape=SHAPES[0], tied: bool = False) -> ModelSpec:
    d_model, head_dim, D, depth, context, vocab_size = shape
    return ModelSpec(
        architecture=architecture,
        norm=norm,
        d_model=d_model,
        head_dim=head_dim,
        ffn_widths=(D,) * depth,
        context=context,
        vocab_size=vocab_size,
        tie_embeddings=tied,
    )


def reference(spec: ModelSpec, device: str = "meta") -> torch.nn.Module:
    """The same Pre-LN model from transformers, without memory of its own on `meta`."""
    shared = {
        "vocab_size": spec.vocab_size,
        "tie_word_embeddings": spec.tie_embeddings,
        "attn_implementation": "eager",
        "use_cache": False,
    }
    with torch.device(device):
        if spec.architecture == "llama":
            return LlamaForCausalLM(
                LlamaConfig(
                    **shared,
                    hidden_size=spec.d_model,
                    intermediate_size=spec.ffn_widths[0],
                    num_hidden_layers=spec.depth,
                    num_attention_heads=spec.heads,
                    max_position_embeddings=spec.context,
                )
            )
        return GPT2LMHeadModel(
            GPT2Config(
                **shared,
                n_embd=spec.d_model,
                n_inner=spec.ffn_widths[0],
                n_layer=spec.depth,
                n_head=spec.heads,
                n_positions=spec.context,
            )
        )


def count(module: torch.nn.Module, *names: str) -> int:
    """Parameters whose name contains one of `names`; shared ones once."""
    return sum(p.numel() for name, p in module.named_parameters() if any(n in name for n in names))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_every_component_counts_what_transformers_counts(architecture, shape, tied):
    spec = model(architecture, shape=shape, tied=tied)
    theirs, ours = reference(spec), parameters(spec)
    assert ours.total == count(theirs, "")
    assert ours.embedding == count(theirs, "wte", "wpe", "embed_tokens")
    assert ours.head == count(theirs, "lm_head")
    assert ours.attention == count(theirs, ".attn.", "self_attn")
    assert ours.ffn == count(theirs, "mlp")
    assert ours.norm == count(theirs, "ln_", "norm")
    assert ours.non_embedding == ours.total - ours.embedding - ours.head


@settings(max_examples=20, deadline=None)
@given(
    architecture=st.sampled_from(["gpt2", "llama"]),
    norm=st.sampled_from(["pre", "post"]),
    heads=st.integers(1, 4),
    half_head=st.integers(1, 8),
    widths=st.lists(st.integers(1, 200), min_size=1, max_size=4),
    vocab_size=st.integers(2, 300),
    tied=st.booleans(),
)
def test_the_count_is_that_of_the_model_that_is_trained(
    architecture, norm, heads, half_head, widths, vocab_size, tied
):
    spec = ModelSpec(
        architecture=architecture,
        norm=norm,
        d_model=heads * 2 * half_head,
        head_dim=2 * half_head,
        ffn_widths=widths,
        context=8,
        vocab_size=vocab_size,
        tie_embeddings=tied,
    )
    with torch.device("meta"):
        decoder = Decoder(DecoderConfig.of(spec))
    assert parameters(spec).total == count(decoder, "")


@pytest.mark.parametrize(("architecture", "gain_and_bias"), [("gpt2", 2), ("llama", 1)])
def test_post_ln_has_no_final_norm(architecture, gain_and_bias):
    pre, post = parameters(model(architecture, "pre")), parameters(model(architecture, "post"))
    assert pre.total - post.total == pre.norm - post.norm == gain_and_bias * 32


@pytest.mark.parametrize(
    ("d_model", "D", "depth", "total", "non_embedding"),
    [
        (768, 2048, 12, 134.1, 84.9),
        (768, 2560, 24, 247.4, 198.2),
        (1024, 2736, 24, 368.0, 302.4),
        (2048, 5461, 24, 1339, 1208),
    ],
)
def test_published_llama_sizes(d_model, D, depth, total, non_embedding):
    """LLaMA 130M, 250M, 350M and 1B of arXiv 2412.13795, vocabulary 32,000; in millions."""
    found = parameters(model("llama", shape=(d_model, 64, D, depth, 256, 32000)))
    last_digit = 1 if total > 1000 else 0.1
    assert found.total / 1e6 == pytest.approx(total, abs=last_digit)
    assert found.non_embedding / 1e6 == pytest.approx(non_embedding, abs=last_digit)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_a_flop_counter_finds_the_flops_of_a_forward_pass(architecture, shape, tied):
    spec = model(architecture, shape=shape, tied=tied)
    theirs = reference(spec, "cpu")
    tokens = torch.zeros((2, spec.context), dtype=torch.long)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        theirs(tokens)
    counted = counter.get_total_flops()
    assert counted == inference_flops_per_token(spec) * tokens.numel()


def test_training_costs_three_forward_passes():
    spec = model("llama")
    assert training_flops_per_token(spec) == 3 * inference_flops_per_token(spec)


def test_palm_formula_for_a_gpt2():
    """6 N + 12 L d T with N the weights that multiply (arXiv 2204.02311, appendix B)."""
    d, D, L, T, V = 64, 256, 2, 128, 512
    weights = L * (4 * d * d + 2 * d * D) + V * d
    found = training_flops_per_token(model("gpt2", shape=(d, 16, D, L, T, V)))
    assert found == 6 * weights + 12 * L * d * T


def trial(precision: str = "fp32", **layout) -> TrialSpec:
    return TrialSpec(
        model=model("llama"),
        training=TrainingSpec(steps=1, batch_tokens=1024, learning_rate=1e-3, precision=precision),
        data=DataSpec(corpus_fingerprint="0" * 16, tokenizer_hash="0" * 16),
        replicate=0,
        layout=Layout(**layout),
    )


@pytest.mark.parametrize(
    ("precision", "stage", "bytes_per_parameter"),
    [
        # weights + gradients + (Adam moments + master copy), over two workers where divided
        ("fp32", 0, 4 + 4 + 8),
        ("fp32", 1, 4 + 4 + (8 + 4) / 2),
        ("bf16", 0, 4 + 4 + 8),
        ("bf16", 1, 2 + 4 + (8 + 4) / 2),
        ("bf16", 2, 2 + 4 / 2 + (8 + 4) / 2),
        ("bf16", 3, 2 / 2 + 4 / 2 + (8 + 4) / 2),
    ],
)
def test_zero_divides_the_state_of_the_model(precision, stage, bytes_per_parameter):
    one = trial(precision, workers=2, zero_stage=stage, micro_batch=1)
    two = trial(precision, workers=2, zero_stage=stage, micro_batch=2)
    activations = training_memory_bytes(two) - training_memory_bytes(one)
    state = training_memory_bytes(one) - activations
    assert state == pytest.approx(parameters(one.model).total * bytes_per_parameter, abs=2)


def test_activations_grow_with_the_micro_batch_alone():
    sizes = [training_memory_bytes(trial(micro_batch=n)) for n in (1, 2, 4, 8)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0
    assert training_memory_bytes(trial()) == training_memory_bytes(trial(micro_batch=32))
