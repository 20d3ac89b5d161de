"""The identity of a trial: what enters its id, what does not, and that neither ever moves."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from analysis.errors import InputError
from trainers.spec import (
    OUTSIDE_IDENTITY,
    BytesTokenizer,
    DataSource,
    DataSpec,
    EvaluationSpec,
    Layout,
    ModelSpec,
    SpectraSpec,
    TextFiles,
    TrainingSpec,
    TrialSpec,
    canonical_json,
    parse_spec,
)

GPT2: dict[str, Any] = {
    "model": {
        "architecture": "gpt2",
        "norm": "pre",
        "d_model": 64,
        "head_dim": 16,
        "ffn_widths": [256, 256],
        "context": 64,
        "vocab_size": 512,
    },
    "training": {"steps": 250, "batch_tokens": 2048, "learning_rate": 6e-3},
    "data": {"corpus_fingerprint": "0123456789abcdef", "tokenizer_hash": "fedcba9876543210"},
    "replicate": 0,
}


def spec(**changes: Any) -> TrialSpec:
    """The trial with fields replaced: `training__steps=3` or `replicate=1`."""
    content = json.loads(json.dumps(GPT2))
    for path, value in changes.items():
        *sections, key = path.split("__")
        target = content
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return TrialSpec.model_validate(content)


#: A change of every identity field. A field that is added to the spec must be added here.
CHANGES: dict[str, Any] = {
    "model__architecture": "llama",
    "model__norm": "post",
    "model__d_model": 128,
    "model__head_dim": 32,
    "model__ffn_widths": [256, 264],
    "model__context": 32,
    "model__vocab_size": 513,
    "model__tie_embeddings": True,
    "training__steps": 251,
    "training__batch_tokens": 4096,
    "training__learning_rate": 5e-3,
    "training__beta1": 0.8,
    "training__beta2": 0.99,
    "training__weight_decay": 0.0,
    "training__gradient_clipping": 0.0,
    "training__warmup_fraction": 0.0,
    "training__final_fraction": 0.0,
    "training__precision": "bf16",
    "data__corpus_fingerprint": "0123456789abcdee",
    "data__tokenizer_hash": "fedcba9876543211",
    "replicate": 1,
    "evaluation__every": 50,
    "evaluation__tokens": 8192,
    "spectra__every": 50,
    "spectra__tokens": 4096,
    "spectra__sites": ["pre", "post"],
    "parent": "0123456789ab",
}
#: Fields that have one value only, so far.
SINGLE = {"model__ffn_weight", "training__optimizer", "training__schedule", "kind"}


def identity_fields() -> set[str]:
    fields = set()
    for name, field in TrialSpec.model_fields.items():
        if name in OUTSIDE_IDENTITY:
            continue
        inner = getattr(field.annotation, "model_fields", None)
        fields |= {f"{name}__{key}" for key in inner} if inner else {name}
    return fields


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "5f98526a76da"),
        ({"replicate": 1}, "ef280b507c56"),
        ({"model__architecture": "llama", "model__norm": "post"}, "3139a19826cc"),
        ({"spectra__sites": ["pre", "post"], "training__precision": "bf16"}, "9b6f74917a45"),
    ],
)
def test_ids_of_the_first_version_stand(changes, expected):
    """A stored trial is found again by its id: never edit these, raise SEMANTICS_VERSION."""
    assert spec(**changes).id == expected


def test_the_canonical_form_holds_what_is_not_at_its_default():
    assert canonical_json(spec()) == (
        '{"data":{"corpus_fingerprint":"0123456789abcdef","tokenizer_hash":"fedcba9876543210"},'
        '"model":{"architecture":"gpt2","context":64,"d_model":64,"ffn_widths":[256,256],'
        '"head_dim":16,"norm":"pre","vocab_size":512},"replicate":0,"semantics_version":1,'
        '"training":{"batch_tokens":2048,"learning_rate":0.006,"steps":250}}'
    )


def test_every_identity_field_is_tried_below():
    assert set(CHANGES) | SINGLE == identity_fields()


@pytest.mark.parametrize(("field", "value"), CHANGES.items())
def test_changing_an_identity_field_changes_the_id(field, value):
    assert spec(**{field: value}).id != spec().id


def test_every_change_gives_an_id_of_its_own():
    ids = {spec(**{field: value}).id for field, value in CHANGES.items()}
    assert len(ids) == len(CHANGES)


@given(
    workers=st.sampled_from([1, 2, 4]),
    micro_batch=st.sampled_from([None, 1, 2, 8]),
    zero_stage=st.integers(0, 3),
    device=st.sampled_from(["cpu", "cuda"]),
    checkpoint_every=st.integers(1, 1000),
    path=st.text(min_size=1),
    axes=st.dictionaries(st.text(), st.integers() | st.text()),
)
def test_layout_source_and_axes_leave_the_id_alone(
    workers, micro_batch, zero_stage, device, checkpoint_every, path, axes
):
    moved = spec().model_copy(
        update={
            "layout": Layout(
                workers=workers,
                micro_batch=micro_batch,
                zero_stage=zero_stage,
                device=device,
                checkpoint_every=checkpoint_every,
            ),
            "source": DataSource(corpus=TextFiles(paths=[path]), tokenizer=BytesTokenizer()),
            "axes": axes,
        }
    )
    assert moved.id == spec().id


def test_a_default_written_out_is_the_same_trial():
    written = spec(
        evaluation=EvaluationSpec().model_dump(),
        spectra=SpectraSpec().model_dump(mode="json"),
        training__beta1=0.9,
        model__tie_embeddings=False,
    )
    assert written.id == spec().id


def test_a_whole_number_and_a_float_are_the_same_learning_rate():
    assert spec(training__learning_rate=1).id == spec(training__learning_rate=1.0).id


def test_a_spec_is_read_back_as_it_was_written():
    written = spec(layout={"workers": 2}, axes={"width_multiplier": 4.0, "seed": 0})
    assert parse_spec(written.to_json(), "spec.json") == written


def test_a_spec_that_was_edited_by_hand_is_refused():
    content = json.loads(spec().to_json())
    content["training"]["steps"] = 3
    with pytest.raises(InputError, match=rf"spec.json: says id {spec().id} but its content is"):
        parse_spec(json.dumps(content), "spec.json")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "spec.json: not JSON"),
        ("[]", "spec.json: a spec is a JSON object, not list"),
        (json.dumps(GPT2 | {"replicas": 1}), "replicas: Extra inputs"),
        (json.dumps(GPT2 | {"replicate": "0"}), "replicate: Input should be a valid integer"),
        (json.dumps({k: v for k, v in GPT2.items() if k != "data"}), "data: Field required"),
    ],
)
def test_a_broken_spec_is_refused_by_name_and_place(text, message):
    with pytest.raises(InputError, match=message):
        parse_spec(text, "spec.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__head_dim": 24}, "head_dim 24 does not divide d_model 64"),
        ({"model__ffn_widths": [256, 0]}, "D = 0 must be at least 1"),
        ({"model__ffn_widths": []}, "at least 1 item"),
        (
            {"model__architecture": "llama", "model__d_model": 9, "model__head_dim": 3},
            "head_dim 3 must be even",
        ),
        ({"training__batch_tokens": 2000}, "not a multiple of the context 64; the nearest is 1984"),
        ({"training__batch_tokens": 10}, "the nearest is 64"),
        ({"training__learning_rate": 0}, "greater than 0"),
        ({"training__learning_rate": float("nan")}, "finite"),
        ({"layout": {"workers": 3}}, "32 sequences cannot be shared evenly by 3 workers"),
        ({"layout": {"workers": 2, "micro_batch": 5}}, "micro_batch 5 does not divide the 16"),
        ({"spectra__tokens": 32}, "spectra.tokens 32 is less than one context of 64"),
        ({"evaluation__tokens": 32}, "evaluation.tokens 32 is less than one context of 64"),
        ({"spectra__sites": ["post", "post"]}, "names a site twice"),
        ({"data__tokenizer_hash": ""}, "at least 8 characters"),
    ],
)
def test_what_cannot_be_trained_is_refused(changes, message):
    with pytest.raises(ValidationError, match=message):
        spec(**changes)


def test_a_model_knows_its_depth_and_heads():
    model = ModelSpec(**GPT2["model"])
    assert (model.depth, model.heads) == (2, 4)


def test_a_spec_is_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        spec().replicate = 1  # type: ignore[misc]


def test_data_and_training_specs_compare_by_value():
    assert spec().data == DataSpec(**GPT2["data"])
    assert spec().training == TrainingSpec(**GPT2["training"])
    assert spec().sequences == 32


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
