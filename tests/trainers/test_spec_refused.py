"""What no trial can be: refused by name, value and place."""

import json

import pytest
from gpt2_spec import GPT2, spec
from pydantic import ValidationError

from trainers.spec import (
    parse_spec,
)
from trialstore.errors import InputError


def test_a_spec_that_was_edited_by_hand_is_refused():
    content = json.loads(spec().to_json())
    content["training"]["steps"] = 3
    with pytest.raises(InputError, match=rf"spec\.json: .*id {spec().id} "):
        parse_spec(json.dumps(content), "spec.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"spec\.json: .*JSON"),
        ("[]", r"spec\.json: .*list"),
        (json.dumps(GPT2 | {"replicas": 1}), "replicas: "),
        (json.dumps(GPT2 | {"replicate": "0"}), "replicate: .*integer"),
        (json.dumps({k: v for k, v in GPT2.items() if k != "data"}), "data: "),
    ],
)
def test_a_broken_spec_is_refused_by_name_and_place(text, message):
    with pytest.raises(InputError, match=message):
        parse_spec(text, "spec.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__head_dim": 24}, "head_dim 24 .*d_model 64"),
        ({"model__ffn_widths": [256, 0]}, "D = 0 .*1"),
        ({"model__ffn_widths": []}, r"ffn_widths\n.* 1 item"),
        (
            {"model__architecture": "llama", "model__d_model": 9, "model__head_dim": 3},
            "head_dim 3 .*even",
        ),
        ({"training__batch_tokens": 2000}, "batch_tokens 2000 .* 64; .*1984"),
        ({"training__batch_tokens": 10}, "batch_tokens 10 .*64"),
        ({"training__learning_rate": 0}, r"learning_rate\n.* 0"),
        ({"training__learning_rate": float("nan")}, "finite"),
        ({"layout": {"workers": 3}}, "32 sequences .*3 workers"),
        ({"layout": {"workers": 2, "micro_batch": 5}}, "micro_batch 5 .*16"),
        ({"spectra__tokens": 32}, r"spectra\.tokens 32 .*64"),
        ({"evaluation__tokens": 32}, r"evaluation\.tokens 32 .*64"),
        ({"spectra__sites": ["post", "post"]}, "site twice"),
        ({"data__tokenizer_hash": ""}, r"tokenizer_hash\n.* 8 "),
        # the model
        ({"model__norm": "prenorm"}, "'prenorm' .*pre, post, mix, lns, sandwich"),
        ({"model__kv_heads": 3}, "kv_heads 3 .*4 heads of d_model 64"),
        ({"model__kv_heads": 8}, "kv_heads 8 .*4 heads"),
        ({"model__kv_heads": 0}, r"kv_heads\n.* 1"),
        ({"model__norm": "mix"}, "post_layers 0 .*norm mix .*depth 2: .* 1 to 2"),
        (
            {"model__norm": "mix", "model__post_layers": 3},
            "post_layers 3 .*norm mix .*depth 2: .* 1 to 2",
        ),
        ({"model__post_layers": 1}, "post_layers 1 .*norm pre .*depth 2: .* 0 to 0"),
        (
            {"model__activation": "silu"},
            r"activation\n.*'gelu', 'relu', 'relu2', 'swiglu' or 'geglu'",
        ),
        (
            {
                "model__block": {"path": "blocks:Mine", "source_hash": "01234567"},
                "model__ffn_weight": "weight_norm",
            },
            r"ffn_weight weight_norm .*model\.block",
        ),
        ({"model__block": {"path": "Mine", "source_hash": "01234567"}}, r"path\n.*pattern"),
        # the training
        ({"training__optimizer": "muon"}, r"gradient_clipping 1\.0 .*muon: .*; use 0"),
        ({"training__momentum": 0.9}, r"momentum 0\.9 .*muon; adamw .*beta1"),
        (
            {"training__decay_fraction": 0.3},
            r"decay_fraction 0\.3 .*wsd; cosine ",
        ),
        (
            {"training__warmup_steps": 5, "training__warmup_fraction": 0.2},
            r"warmup_steps 5 and warmup_fraction 0\.2 ",
        ),
        ({"training__warmup_steps": 251}, "warmup_steps 251 .*250"),
        (
            {"training__schedule": "wsd", "training__warmup_steps": 201},
            "201 steps .*200 of 250",
        ),
        ({"training__schedule": "wsd", "training__decay_fraction": 0.0}, r"decay_fraction\n.* 0"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm": "pre"}, "norm pre .*ngpt"),
        ({"model__ffn_weight": "hyperspherical"}, "ffn_weight hyperspherical .*ngpt"),
        ({"model__kv_heads": 2}, "kv_heads 2 .*ngpt: .*scale"),
        ({"model__tie_embeddings": True}, "tie_embeddings True .*ngpt"),
        ({"model__activation": "geglu"}, "activation geglu .*ngpt"),
        ({"model__qk_norm": True}, "qk_norm True .*ngpt: .*normalises"),
        ({"model__initialisation": "depth_scaled"}, "initialisation depth_scaled .*ngpt"),
        (
            {"model__block": {"path": "blocks:Mine", "source_hash": "01234567"}},
            "block .*ngpt",
        ),
        ({"training__weight_decay": 0.1}, r"weight_decay 0\.1 .*ngpt: .*; use 0"),
    ],
)
def test_what_ngpt_leaves_no_choice_of_is_refused_with_its_reason(changes, message):
    ngpt = {
        "model__architecture": "ngpt",
        "model__norm": "ngpt",
        "training__weight_decay": 0.0,
    }
    assert spec(**ngpt).model.ffn_activation == "swiglu"
    with pytest.raises(ValidationError, match=message):
        spec(**(ngpt | changes))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_ngpts_placement_is_of_ngpt_alone(architecture):
    with pytest.raises(ValidationError, match=f"norm ngpt .* {architecture}"):
        spec(model__architecture=architecture, model__norm="ngpt")


@pytest.mark.parametrize(
    "changes",
    [
        {"model__d_model": 10_000_001, "model__head_dim": 1},
        {"model__head_dim": 10_001},
        {"model__ffn_widths": [10_000_001]},
        {"model__ffn_widths": [8] * 10_001},
        {"model__context": 10_000_001},
        {"model__vocab_size": 10_000_001},
        {"training__steps": 10**8},
        {"training__batch_tokens": 10**10 + 1},
        {"evaluation__tokens": 10**10 + 1},
        {"spectra__tokens": 10**10 + 1},
    ],
)
def test_numbers_beyond_any_experiment_are_refused(changes):
    with pytest.raises(ValidationError, match=r"at most|less than or equal to 1|99999999"):
        spec(**changes)
