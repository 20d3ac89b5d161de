"""Parameters, FLOPs and memory: against the models that are built, and independent ones."""

from typing import Any, get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from trainers.accounting import (
    inference_flops_per_token,
    parameters,
    training_flops_per_token,
    training_memory_bytes,
)
from trainers.data.sources import DataSpec
from trainers.models.build import build, configuration, token_loss
from trainers.models.decoder import Decoder
from trainers.models.model_spec import Activation, FFNWeight, Initialisation, ModelSpec
from trainers.models.placements import PLACEMENTS
from trainers.spec import Layout, SpectraSpec, TrainingSpec, TrialSpec

#: What a tiny spec does not say.
SMALL: dict[str, Any] = {
    "architecture": "llama",
    "norm": "pre",
    "d_model": 32,
    "head_dim": 16,
    "ffn_widths": (128, 128),
    "context": 32,
    "vocab_size": 257,
}


def model(**changes: Any) -> ModelSpec:
    return ModelSpec.model_validate(SMALL | changes)


@st.composite
def models(draw: st.DrawFn) -> ModelSpec:
    """Every combination of choices that a spec allows, but a user's own block."""
    heads, head_dim, depth = draw(st.integers(1, 4)), 2 * draw(st.integers(1, 8)), draw(DEPTHS)
    content = {
        "d_model": heads * head_dim,
        "head_dim": head_dim,
        "ffn_widths": draw(st.lists(st.integers(1, 64), min_size=depth, max_size=depth)),
        "context": draw(st.integers(2, 16)),
        "vocab_size": draw(st.integers(2, 100)),
        "architecture": draw(st.sampled_from(["gpt2", "llama", "ngpt"])),
    }
    if content["architecture"] == "ngpt":
        return ModelSpec.model_validate(content | {"norm": "ngpt"})
    norm = draw(st.sampled_from(sorted(set(PLACEMENTS) - {"ngpt"})))
    return ModelSpec.model_validate(
        content
        | {
            "norm": norm,
            "post_layers": draw(st.integers(1, depth)) if norm == "mix" else 0,
            "kv_heads": draw(st.sampled_from([k for k in range(1, heads + 1) if heads % k == 0])),
            "qk_norm": draw(st.booleans()),
            "tie_embeddings": draw(st.booleans()),
            "activation": draw(st.sampled_from(get_args(Activation))),
            "ffn_weight": draw(st.sampled_from(get_args(FFNWeight))),
            "initialisation": draw(st.sampled_from(get_args(Initialisation))),
        }
    )


DEPTHS = st.integers(1, 3)


def count(module: nn.Module, *parts: str) -> int:
    """Parameters of which one of the name's parts is one of `parts`; shared ones once."""
    return sum(
        parameter.numel()
        for name, parameter in module.named_parameters()
        if not parts or set(name.split(".")) & set(parts)
    )


# --- parameters ----------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(spec=models())
@pytest.mark.long
def test_every_component_is_counted_exactly_for_every_combination(spec: ModelSpec) -> None:
    """By the names of the parameters of the model that is trained."""
    with torch.device("meta"):
        decoder = Decoder(configuration(spec))
    found = parameters(spec)
    norms = {"attention_norms", "ffn_norms", "final_norm", "q_norm", "k_norm"}
    assert found.norm == count(decoder, *norms)
    assert found.attention == count(decoder, "attention") - count(decoder, "q_norm", "k_norm")
    assert found.ffn == count(decoder, "ffn")
    assert found.embedding == count(decoder, "tokens", "positions")
    assert found.head == (0 if spec.tie_embeddings else count(decoder, "head"))
    assert found.total == count(decoder)
    assert found.non_embedding == count(decoder, "layers", "final_norm")


def test_every_field_that_changes_a_model_is_drawn_above() -> None:
    drawn = {*SMALL, "post_layers", "kv_heads", "qk_norm", "tie_embeddings", "activation",
             "ffn_weight", "initialisation"}  # fmt: skip
    assert drawn == ModelSpec.model_fields.keys() - {"block"}


def llama(spec: ModelSpec) -> nn.Module:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=spec.vocab_size,
            hidden_size=spec.d_model,
            intermediate_size=spec.ffn_widths[0],
            num_hidden_layers=spec.depth,
            num_attention_heads=spec.heads,
            num_key_value_heads=spec.key_value_heads,
            tie_word_embeddings=spec.tie_embeddings,
        )
    )


def gpt2(spec: ModelSpec) -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=spec.vocab_size,
            n_embd=spec.d_model,
            n_inner=spec.ffn_widths[0],
            n_layer=spec.depth,
            n_head=spec.heads,
            n_positions=spec.context,
            tie_word_embeddings=spec.tie_embeddings,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("make", "changes"),
    [(gpt2, {"architecture": "gpt2"}), (llama, {}), (llama, {"head_dim": 8, "kv_heads": 2})],
)
def test_every_component_counts_what_transformers_counts(make, changes, tied) -> None:
    spec = model(**changes, tie_embeddings=tied)
    with torch.device("meta"):
        theirs = make(spec)
    ours = parameters(spec)
    assert ours.total == count(theirs)
    assert ours.embedding == count(theirs, "wte", "wpe", "embed_tokens")
    assert ours.head == count(theirs, "lm_head")
    assert ours.attention == count(theirs, "attn", "self_attn")
    assert ours.ffn == count(theirs, "mlp")
    norms = {"ln_1", "ln_2", "ln_f", "input_layernorm", "post_attention_layernorm", "norm"}
    assert ours.norm == count(theirs, *norms)


@pytest.mark.parametrize(
    ("d_model", "D", "depth", "total", "non_embedding"),
    [
        (768, 2048, 12, 134.1, 84.9),
        (768, 2560, 24, 247.4, 198.2),
        (1024, 2736, 24, 368.0, 302.4),
        (2048, 5461, 24, 1339, 1208),
    ],
)
def test_published_llama_sizes(d_model, D, depth, total, non_embedding) -> None:
    """LLaMA 130M, 250M, 350M and 1B of arXiv 2412.13795, vocabulary 32,000; in millions."""
    spec = model(d_model=d_model, head_dim=64, ffn_widths=(D,) * depth, vocab_size=32000)
    found, last_digit = parameters(spec), 1 if total > 1000 else 0.1
    assert found.total / 1e6 == pytest.approx(total, abs=last_digit)
    assert found.non_embedding / 1e6 == pytest.approx(non_embedding, abs=last_digit)


def test_published_gpt2_size() -> None:
    """GPT-2 small has 124,439,808 parameters; its head is its embedding."""
    spec = model(
        architecture="gpt2", d_model=768, head_dim=64, ffn_widths=(3072,) * 12, context=1024,
        vocab_size=50257, tie_embeddings=True,
    )  # fmt: skip
    assert parameters(spec).total == 124_439_808


# --- FLOPs ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(spec=models())
@pytest.mark.long
def test_a_flop_counter_finds_the_flops_of_a_forward_pass(spec: ModelSpec) -> None:
    """Every matrix multiplication, attention's over the whole context; the power iterations of
    spectral norms are none of them: they do not grow with the tokens."""
    decoder = build(spec, 0)
    tokens = torch.zeros((2, spec.context), dtype=torch.long)
    # The fused kernel of the CPU is unknown to the counter; this one multiplies in the open.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as counter,
        torch.no_grad(),
    ):
        decoder(tokens)
    assert counter.get_total_flops() == inference_flops_per_token(spec) * tokens.numel()


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_shared_keys_and_values_save_their_projections_alone(kv_heads) -> None:
    full, shared = model(head_dim=8), model(head_dim=8, kv_heads=kv_heads)
    saved = inference_flops_per_token(full) - inference_flops_per_token(shared)
    assert saved == 2 * 2 * 2 * 32 * (32 - 8 * kv_heads)  # 2 layers, k and v, 2 FLOPs a weight


@given(spec=models())
def test_training_costs_three_forward_passes(spec: ModelSpec) -> None:
    assert training_flops_per_token(spec) == 3 * inference_flops_per_token(spec)


def test_palm_formula_for_a_gpt2():
    """6 N + 12 L d T with N the weights that multiply (arXiv 2204.02311, appendix B)."""
    d, D, L, T, V = 64, 256, 2, 128, 512
    weights = L * (4 * d * d + 2 * d * D) + V * d
    spec = model(architecture="gpt2", d_model=d, ffn_widths=(D,) * L, context=T, vocab_size=V)
    assert training_flops_per_token(spec) == 6 * weights + 12 * L * d * T


def trial(precision: str = "fp32", **layout) -> TrialSpec:
    return TrialSpec(
        model=model(),
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
        ("bf16", 0, 4 + 4 + 8 + 2),  # autocast's copies
        ("bf16", 1, 2 + 4 + (8 + 4) / 2),
        ("bf16", 2, 2 + 4 / 2 + (8 + 4) / 2),
        ("bf16", 3, 2 / 2 + 4 / 2 + (8 + 4) / 2),
    ],
)
def test_zero_divides_the_state_of_the_model(precision, stage, bytes_per_parameter):
    one = trial(precision, workers=2, zero_stage=stage, micro_batch=1)
    two = trial(precision, workers=2, zero_stage=stage, micro_batch=2)
    activations = training_memory_bytes(two) - training_memory_bytes(one)
    matrices = sum(4 * width**2 for width in one.model.ffn_widths)
    state = training_memory_bytes(one) - activations - matrices
    assert state == pytest.approx(parameters(one.model).total * bytes_per_parameter, abs=2)


def test_scatter_matrices_take_no_more_than_they_may() -> None:
    """Two layers of width 1024: 4 MiB each, at every site and for every bucket."""
    shape = trial().model.model_copy(update={"ffn_widths": (1024, 1024)})

    def memory(**spectra: object) -> float:
        chosen = SpectraSpec.model_validate(spectra)
        changes = {"model": shape, "spectra": chosen}
        return training_memory_bytes(trial().model_copy(update=changes)) / 2**20

    least = memory(memory_mb=4)
    assert memory(memory_mb=5) - least == 1
    assert memory() - least == 4
    assert memory(sites=["pre", "post"]) - least == 12
    assert memory(sites=["pre", "post"], buckets=True) - least == 44


def test_activations_grow_with_the_micro_batch_alone():
    sizes = [training_memory_bytes(trial(micro_batch=n)) for n in (1, 2, 4, 8)]
    assert sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0
    assert training_memory_bytes(trial()) == training_memory_bytes(trial(micro_batch=32))


def kept_for_backward(spec: ModelSpec, precision: str, sequences: int) -> int:
    """Bytes of all tensors that autograd keeps, but the parameters."""
    decoder, kept = build(spec, 0), {}
    own = {p.untyped_storage().data_ptr() for p in decoder.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held: no address comes twice
        return tensor

    tokens = torch.zeros((sequences, spec.context), dtype=torch.long)
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"),
    ):
        token_loss(decoder(tokens).logits, tokens)
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [
        {"architecture": "gpt2"},
        {"architecture": "gpt2", "norm": "sandwich"},
        {"architecture": "gpt2", "activation": "geglu", "qk_norm": True},
        {},
        {"norm": "deepnorm", "kv_heads": 1},
        {"activation": "relu2", "norm": "lns"},
        {"ffn_weight": "weight_norm"},
        {"ffn_weight": "spectral_norm"},
        {"architecture": "ngpt", "norm": "ngpt"},
    ],
    ids=str,
)
def test_the_estimate_of_activations_is_what_autograd_keeps(changes, precision):
    """Within 30 %: kernels differ in what they keep, the unfused RMSNorm of a CPU most."""
    spec = model(d_model=64, ffn_widths=(256, 256), context=64, vocab_size=64, **changes)
    trials = [trial(precision, micro_batch=n).model_copy(update={"model": spec}) for n in (8, 16)]
    fewer, more = (training_memory_bytes(one) for one in trials)
    kept = [kept_for_backward(spec, precision, n) for n in (8, 16)]
    gradients = 2 * 4 * 64 * 8 * 64  # of log-probabilities and logits, not there yet
    assert more - fewer == pytest.approx(kept[1] - kept[0] + gradients, rel=0.3)
