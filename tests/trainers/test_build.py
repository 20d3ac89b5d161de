"""Building a model: initial weights depend on the replicate and the parameter name only."""

import math

import pytest
import torch

from trainers.models.build import (
    INITIAL_STD,
    build,
    configuration,
    feed_forwards,
    initialise,
)
from trainers.models.linear import GEOMETRIES
from trainers.models.model_spec import ModelSpec

ARCHITECTURES = ["gpt2", "llama", "ngpt"]


def weights(spec: ModelSpec, replicate: int = 0) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in build(spec, replicate).named_parameters()}


# --- the spec as the model reads it --------------------------------------------------------


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_default_of_the_spec_is_resolved(architecture, model_spec) -> None:
    spec = model_spec(architecture)
    config = configuration(spec)
    assert (config.depth, config.heads, config.kv_heads) == (2, 4, 4)
    assert config.activation == ("gelu" if architecture == "gpt2" else "swiglu")
    assert config.biased == (architecture == "gpt2")
    for name in ("architecture", "norm", "d_model", "head_dim", "context", "vocab_size"):
        assert getattr(config, name) == getattr(spec, name)


def test_every_choice_of_the_spec_reaches_the_model(model_spec) -> None:
    spec = model_spec(
        "llama", "mix", post_layers=1, kv_heads=2, qk_norm=True, activation="relu2",
        ffn_weight="weight_norm", tie_embeddings=True,
    )  # fmt: skip
    config = configuration(spec)
    assert (config.post_layers, config.kv_heads, config.qk_norm) == (1, 2, True)
    assert (config.activation, config.ffn_weight) == ("relu2", "weight_norm")
    assert config.tie_word_embeddings
    assert config.ffn_widths == [96, 40]


# --- drawn by replicate and name -----------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize(
    "other",
    [
        {"ffn_widths": (96, 48, 96)},
        {"norm": "sandwich"},
        {"norm": "lns"},
        {"tie_embeddings": True},
        {"qk_norm": True},
        {"kv_heads": 2},
        {"activation": "geglu"},
        {"activation": "relu"},
        {"ffn_weight": "spectral_norm"},
        {"context": 8},
    ],
    ids=str,
)
def test_equal_name_and_shape_give_equal_initial_values(architecture, other, model_spec) -> None:
    """The models may differ in depth, width, norms, heads and geometry."""
    one, another = weights(model_spec(architecture)), weights(model_spec(architecture, **other))
    shared = [n for n in one if n in another and one[n].shape == another[n].shape]
    expected = {"tokens.weight", "layers.0.attention.q.weight", "layers.0.ffn.up.weight"}
    assert expected <= set(shared)
    for name in shared:
        assert torch.equal(one[name], another[name]), name


def test_replicates_and_parameters_have_different_initial_values(model_spec) -> None:
    first, second = (weights(model_spec("llama"), replicate) for replicate in (0, 1))
    drawn = [name for name in first if first[name].ndim == 2]
    assert all(not torch.equal(first[name], second[name]) for name in drawn)
    leading = {tuple(first[name].flatten()[:4].tolist()) for name in drawn}
    assert len(leading) == len(drawn)


def test_initial_values_of_a_replicate_never_change(model_spec) -> None:
    """Stored trials depend on them: raise SEMANTICS_VERSION instead of editing them."""
    found = weights(model_spec("gpt2"), replicate=3)
    for name, values in {
        "tokens.weight": [0.00244499417, 0.01023429446, 0.01730696484],
        "layers.1.ffn.up.weight": [0.01777408272, -0.02685317956, 0.00978631340],
    }.items():
        assert found[name][0, :3].tolist() == pytest.approx(values, rel=1e-5)


def test_initialisation_ignores_and_leaves_alone_the_random_state_of_the_process(
    model_spec,
) -> None:
    spec = model_spec("gpt2")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    model = build(spec, 0)
    torch.manual_seed(6)
    again = build(spec, 0)
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    torch.set_rng_state(state)
    initialise(model, spec, 1)
    assert torch.equal(torch.get_rng_state(), state)


# --- their spread --------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_matrices_have_the_stated_spread_biases_are_0_and_gains_1(architecture, model_spec) -> None:
    spec = model_spec(
        architecture, d_model=64, head_dim=16, ffn_widths=(256, 256), context=64, qk_norm=True
    )
    for name, parameter in weights(spec, 3).items():
        if parameter.ndim == 2:
            error = INITIAL_STD * 5 / math.sqrt(parameter.numel())
            assert abs(float(parameter.std()) - INITIAL_STD) < error, name
            assert abs(float(parameter.mean())) < error, name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, not name.endswith("bias")))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_depth_scaled_divides_what_writes_to_the_residual_stream(architecture, model_spec) -> None:
    """By sqrt(2 depth): attention-out and FFN-down, and nothing else."""
    shape = {"ffn_widths": (48,) * 8}
    plain = weights(model_spec(architecture, **shape))
    scaled = weights(model_spec(architecture, initialisation="depth_scaled", **shape))
    for name, parameter in scaled.items():
        factor = 4 if name.endswith((".attention.o.weight", ".ffn.down.weight")) else 1
        torch.testing.assert_close(parameter * factor, plain[name], rtol=1e-6, atol=0)


def test_depth_scaled_and_deepnorm_multiply(model_spec) -> None:
    plain = weights(model_spec("llama"))
    both = weights(model_spec("llama", "deepnorm", initialisation="depth_scaled"))
    beta, root = (8 * 2) ** -0.25, (2 * 2) ** 0.5
    for name, factor in {"attention.v": beta, "attention.o": beta / root, "ffn.up": beta,
                         "ffn.down": beta / root, "attention.q": 1.0}.items():  # fmt: skip
        name = f"layers.1.{name}.weight"
        torch.testing.assert_close(both[name], plain[name] * factor)


# --- weight geometries ---------------------------------------------------------------------


@pytest.mark.parametrize("initialisation", ["plain", "depth_scaled"])
@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_weight_norm_starts_as_the_plain_model(
    architecture, initialisation, model_spec, random_tokens
) -> None:
    plain, normed = (
        model_spec(architecture, ffn_weight=geometry, initialisation=initialisation)
        for geometry in ("plain", "weight_norm")
    )
    tokens = random_tokens(plain)
    with torch.no_grad():
        torch.testing.assert_close(
            build(normed, 0)(tokens).logits, build(plain, 0)(tokens).logits, rtol=1e-5, atol=1e-6
        )


@pytest.mark.parametrize("ffn_weight", GEOMETRIES)
def test_a_geometry_stores_the_plain_models_matrices(ffn_weight, model_spec) -> None:
    plain = weights(model_spec("gpt2"))
    found = weights(model_spec("gpt2", ffn_weight=ffn_weight))
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    extra = found.keys() - plain.keys()
    assert all(name.endswith(".gain") for name in extra)
    assert bool(extra) == (ffn_weight == "weight_norm")


def test_ngpt_draws_with_the_spread_of_its_width_before_it_normalises(model_spec) -> None:
    """Along d_model the vectors are normalised; across, elements spread by 1/sqrt(d_model)."""
    spec = model_spec("ngpt", d_model=64, ffn_widths=(256, 256))
    for name, parameter in weights(spec, 3).items():
        if parameter.ndim == 2:
            assert float(parameter.std()) == pytest.approx(64**-0.5, rel=0.02), name


def test_the_ffns_come_in_the_order_of_the_layers(model_spec) -> None:
    model = build(model_spec("llama", ffn_widths=(8, 24, 16)), 0)
    assert [ffn.width for ffn in feed_forwards(model)] == [8, 24, 16]
    assert list(feed_forwards(model)) == [layer.ffn for layer in model.layers]
