"""The identity of a trial: what enters its id, what does not, and that neither ever moves."""

import json
from hashlib import sha256
from typing import Any, get_args

import pytest
from gpt2_spec import GPT2, spec
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainers.data.sources import BytesTokenizer, DataSource, DataSpec, TextFiles
from trainers.models.model_spec import Activation, FFNWeight, ModelSpec
from trainers.models.placements import PLACEMENTS
from trainers.spec import (
    OUTSIDE_IDENTITY,
    SEMANTICS_VERSION,
    EvaluationSpec,
    Layout,
    Schedule,
    SpectraSpec,
    TrainingSpec,
    TrialSpec,
    canonical_json,
    parse_spec,
    refuse_other_semantics,
)
from trialstore.errors import InputError

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
    "model__ffn_weight": "weight_norm",
    "model__activation": "relu",
    "model__kv_heads": 2,
    "model__qk_norm": True,
    "model__post_layers": 1,
    "model__initialisation": "depth_scaled",
    "model__block": {"path": "blocks:Mine", "source_hash": "0123456789abcdef"},
    "training__steps": 251,
    "training__batch_tokens": 4096,
    "training__learning_rate": 5e-3,
    "training__optimizer": "muon",
    "training__momentum": 0.9,
    "training__schedule": "linear",
    "training__warmup_steps": 10,
    "training__decay_fraction": 0.1,
    "training__beta1": 0.8,
    "training__beta2": 0.99,
    "training__weight_decay": 0.0,
    "training__gradient_clipping": 0.0,
    "training__warmup_fraction": 0.0,
    "training__final_fraction": 0.0,
    "training__precision": "bf16",
    "training__stop_on_collapse": True,
    "data__corpus_fingerprint": "0123456789abcdee",
    "data__tokenizer_hash": "fedcba9876543211",
    "replicate": 1,
    "evaluation__every": 50,
    "evaluation__tokens": 8192,
    "spectra__every": 50,
    "spectra__tokens": 4096,
    "spectra__sites": ["pre", "post"],
    "spectra__method": "lanczos",
    "spectra__buckets": True,
    "parent": "0123456789ab",
    "semantics_version": 1,
}
#: What a field needs beside it to be allowed at all.
MUON: dict[str, Any] = {"training__optimizer": "muon", "training__gradient_clipping": 0.0}
COMPANIONS: dict[str, dict[str, Any]] = {
    "model__post_layers": {"model__norm": "mix", "model__post_layers": 2},
    "training__optimizer": {"training__gradient_clipping": 0.0},
    "training__momentum": MUON,
    "training__decay_fraction": {"training__schedule": "wsd"},
}
#: Fields that have one value only, so far.
SINGLE = {"kind"}
#: How a trial is measured, not what: of all sections' fields the only one outside the identity.
HOW = {"spectra__memory_mb"}


def identity_fields() -> set[str]:
    fields = set()
    for name, field in TrialSpec.model_fields.items():
        if name in OUTSIDE_IDENTITY:
            continue
        inner = getattr(field.annotation, "model_fields", None)
        fields |= {f"{name}__{key}" for key in inner} if inner else {name}
    return fields


GOLDEN: list[dict[str, Any]] = [
    {},
    {"replicate": 1},
    {"model__architecture": "llama", "model__norm": "post"},
    {"spectra__sites": ["pre", "post"], "training__precision": "bf16"},
]


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        (GOLDEN[0], "5f98526a76da", "be6a8bc4c74d"),
        (GOLDEN[1], "ef280b507c56", "24fb89b0d0bd"),
        (GOLDEN[2], "3139a19826cc", "be8c3cea1703"),
        (GOLDEN[3], "9b6f74917a45", "62f514928b5a"),
    ],
)
def test_ids_of_every_version_stand(changes, first, second):
    """A stored trial is found again by its id: never edit these, raise SEMANTICS_VERSION."""
    assert spec(**changes, semantics_version=1).id == first
    assert spec(**changes, semantics_version=2).id == second


CANONICAL = (
    '{"data":{"corpus_fingerprint":"0123456789abcdef","tokenizer_hash":"fedcba9876543210"},'
    '"model":{"architecture":"gpt2","context":64,"d_model":64,"ffn_widths":[256,256],'
    '"head_dim":16,"norm":"pre","vocab_size":512},"replicate":0,"semantics_version":%d,'
    '"training":{"batch_tokens":2048,"learning_rate":0.006,"steps":250}}'
)


def test_the_canonical_form_holds_the_version_and_what_is_not_at_its_default():
    assert canonical_json(spec()) == CANONICAL % SEMANTICS_VERSION
    for version in (1, 2):
        of_version = spec(semantics_version=version)
        assert canonical_json(of_version) == CANONICAL % version
        assert of_version.id == sha256((CANONICAL % version).encode()).hexdigest()[:12]


# --- semantics versions --------------------------------------------------------------------


def test_a_spec_says_its_version_and_a_new_one_has_the_current():
    assert spec().semantics_version == SEMANTICS_VERSION == 2
    assert json.loads(spec().to_json())["semantics_version"] == 2


def written_before(**changes: Any) -> dict[str, Any]:
    """A spec.json as the first version wrote it."""
    content = json.loads(spec(**changes, semantics_version=1).to_json())
    del content["semantics_version"]
    return content


def test_a_spec_of_the_first_version_is_read_under_the_id_that_it_has():
    read = parse_spec(json.dumps(written_before()), "spec.json")
    assert (read.semantics_version, read.id) == (1, "5f98526a76da")


def test_an_old_spec_whose_content_was_changed_is_told_by_its_id():
    changed = written_before() | {"replicate": 7}
    with pytest.raises(InputError, match="id 5f98526a76da "):
        parse_spec(json.dumps(changed), "spec.json")


def test_a_spec_written_by_hand_is_of_the_current_version():
    """It has no id, for nobody has trained it."""
    assert parse_spec(json.dumps(GPT2), "spec.json") == spec()


def test_a_spec_of_a_later_version_is_refused_with_the_versions_that_are_known():
    later = json.loads(spec().to_json()) | {"semantics_version": 3}
    with pytest.raises(InputError, match=r"spec.json: .*version 3 .* knows 1 to 2"):
        parse_spec(json.dumps(later), "spec.json")


def test_only_the_current_version_is_trained():
    refuse_other_semantics(spec(), "spec.json")
    with pytest.raises(InputError, match=r"spec\.json: trial 5f98526a76da .*version 1"):
        refuse_other_semantics(spec(semantics_version=1), "spec.json")


def test_every_identity_field_is_tried_below():
    assert set(CHANGES) | SINGLE | HOW == identity_fields()


def test_the_memory_of_a_snapshot_changes_no_id():
    assert spec(spectra__memory_mb=7).id == spec().id
    beside = spec(spectra__memory_mb=7, spectra__every=50)
    assert beside.id == spec(spectra__every=50).id != spec().id


@pytest.mark.parametrize(("buckets", "needed"), [(False, 4), (True, 12)])
def test_memory_for_less_than_one_layer_is_refused(buckets, needed):
    """A matrix of 1000 x 1000 numbers in float32 takes 3.8 MiB."""
    wide = {"model__ffn_widths": [256, 1000], "spectra__buckets": buckets}
    assert spec(**wide, spectra__memory_mb=needed).spectra.memory_mb == needed
    less = f"memory_mb {needed - 1} is less than the {needed} that one layer of width 1000 takes"
    with pytest.raises(ValidationError, match=less):
        spec(**wide, spectra__memory_mb=needed - 1)


@pytest.mark.parametrize(("field", "value"), CHANGES.items())
def test_changing_an_identity_field_changes_the_id(field, value):
    beside = COMPANIONS.get(field, {})
    assert spec(**(beside | {field: value})).id != spec(**beside).id


def test_every_change_gives_an_id_of_its_own():
    ids = {spec(**(COMPANIONS.get(f, {}) | {f: value})).id for f, value in CHANGES.items()}
    assert len(ids) == len(CHANGES)


@pytest.mark.parametrize(
    "changes",
    [
        {"model__norm": norm, "model__post_layers": 1 if norm == "mix" else 0}
        for norm in PLACEMENTS
        if norm != "ngpt"
    ]
    + [{"model__ffn_weight": one} for one in get_args(FFNWeight)]
    + [{"model__activation": one} for one in get_args(Activation)]
    + [{"training__schedule": one} for one in get_args(Schedule)],
    ids=str,
)
def test_every_choice_is_allowed_and_read_back(changes):
    written = spec(**changes)
    assert parse_spec(written.to_json(), "spec.json") == written
    for field, value in changes.items():
        section, name = field.split("__")
        default = {"model__activation": "gelu"}.get(field)  # gpt2's own is left out
        assert getattr(getattr(written, section), name) == (None if value == default else value)


# --- one model, one spelling ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "own"), [("gpt2", "gelu"), ("llama", "swiglu"), ("ngpt", "swiglu")]
)
def test_an_architectures_own_activation_written_out_is_the_same_trial(architecture, own):
    left_out = of_architecture(architecture)
    written = of_architecture(architecture, model__activation=own)
    assert written.id == left_out.id
    assert written == left_out
    assert written.model.ffn_activation == own
    assert written.model.gated == (own == "swiglu")


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "ngpt"])
def test_as_many_key_heads_as_heads_written_out_is_the_same_trial(architecture):
    left_out = of_architecture(architecture)
    written = of_architecture(architecture, model__kv_heads=4)
    assert written.id == left_out.id
    assert written == left_out
    assert written.model.key_value_heads == left_out.model.heads == 4
    if architecture != "ngpt":
        assert of_architecture(architecture, model__kv_heads=1).model.key_value_heads == 1


def of_architecture(architecture: str, **changes: Any) -> TrialSpec:
    if architecture == "ngpt":
        changes |= {"model__norm": "ngpt", "training__weight_decay": 0.0}
    return spec(model__architecture=architecture, **changes)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "wsd"])
def test_the_warm_up_is_a_fraction_of_the_steps_or_a_number_of_them(schedule):
    by_fraction = spec(training__schedule=schedule, training__warmup_fraction=0.2)
    by_number = spec(training__schedule=schedule, training__warmup_steps=50)
    assert by_fraction.training.warmup == by_number.training.warmup == 50
    assert by_fraction.id != by_number.id  # another number of steps tells them apart


def test_wsd_trials_that_differ_in_their_steps_part_where_the_shorter_decays():
    """200 of 250 updates at the peak; the decay is a fifth, and never none."""
    wsd = {"training__schedule": "wsd", "training__warmup_steps": 25}
    assert spec(**wsd).training.stable_end == 200
    assert spec(**wsd, training__steps=500).training.stable_end == 400
    assert spec(**wsd, training__decay_fraction=0.001).training.stable_end == 249


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
