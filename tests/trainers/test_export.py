"""An exported model computes the trained function, for every kind of model and checkpoint."""

import hashlib
import io
import json
import os
import pickle
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaForCausalLM

from trainers.data.batches import heldout_windows
from trainers.data.store import open_store
from trainers.export import export as module
from trainers.export.export import export
from trainers.export.weights import trained_model
from trainers.models.build import build, token_loss
from trainers.models.decoder import Decoder
from trainers.models.linear import GEOMETRIES
from trainers.models.placements import PLACEMENTS
from trainers.spec import TrialSpec
from trainers.train import train
from trialstore import records
from trialstore.errors import InputError
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.long

MODEL_STATES = "mp_rank_00_model_states.pt"


@pytest.fixture(scope="module", autouse=True)
def _private_modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder from which transformers imports the source code of models."""
    folder = str(tmp_path_factory.mktemp("modules"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", folder)
        patch.setattr(sys, "path", [*sys.path, folder])
        yield
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def committed(trial: LocalStorage, spec: TrialSpec, model: Decoder, step: int = 7) -> None:
    """A trial directory with a stage 0 checkpoint of these weights."""
    file = io.BytesIO()
    torch.save({"module": model.state_dict()}, file)
    trial.put(records.SPEC, spec.to_json())
    trial.put(f"{records.checkpoint_folder(step)}/{MODEL_STATES}", file.getvalue())
    listed = {MODEL_STATES: {"sha256": hashlib.sha256(file.getvalue()).hexdigest()}}
    trial.put(records.manifest_key(step), records.Manifest(spec.id, step, 1, listed, []).to_json())


@pytest.fixture
def exported(make_spec, lively, trial, tmp_path) -> Callable[..., tuple[Any, Decoder, TrialSpec]]:
    """The reloaded model, the model as trained, and its spec."""

    def make(architecture: str, norm: str = "pre", **changes: Any):
        spec = of_model(make_spec, architecture, norm, **changes)
        model = lively(spec.model)
        committed(trial, spec, model)
        done = export(trial, str(tmp_path / "out"))
        loaded = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", trust_remote_code=done.trust_remote_code
        )
        return loaded, model.eval(), spec

    return make


def of_model(make_spec, architecture: str, norm: str = "pre", **changes: Any) -> TrialSpec:
    model = {
        "architecture": architecture,
        "norm": norm,
        "d_model": 16,
        "head_dim": 4,
        "ffn_widths": [24, 24, 24],
        "context": 16,
        "vocab_size": 257,
        **changes,
    }
    return make_spec(model=model, training__weight_decay=0.0)


def error_of(loaded: Any, model: Decoder, spec: TrialSpec) -> float:
    """The largest difference of logits, in units of the largest logit if that is above 1."""
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(spec.model.vocab_size, (3, spec.model.context), generator=generator)
    with torch.no_grad():
        ours, theirs = model(tokens).logits, loaded(tokens).logits
    assert float(ours.std()) > 0.01
    return float((ours - theirs).abs().max() / ours.abs().max().clamp(min=1))


# --- what it is exported as ----------------------------------------------------------------

GRID = [
    (architecture, norm, geometry)
    for architecture in ("gpt2", "llama")
    for norm in PLACEMENTS
    if norm != "ngpt"
    for geometry in GEOMETRIES
]
STOCK = {"gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}


@pytest.mark.parametrize(("architecture", "norm", "geometry"), [*GRID, ("ngpt", "ngpt", "plain")])
def test_an_export_computes_the_trained_function(exported, architecture, norm, geometry) -> None:
    """Pre-LN and LNS of every geometry become classes of transformers."""
    post_layers = 1 if norm == "mix" else 0
    loaded, model, spec = exported(architecture, norm, ffn_weight=geometry, post_layers=post_layers)
    assert error_of(loaded, model, spec) < 1e-5
    if norm in ("pre", "lns"):
        assert type(loaded) is STOCK[architecture]
    else:
        assert type(loaded).__module__.startswith("transformers_modules.")


@pytest.mark.parametrize(
    ("changes", "stock"),
    [
        ({"architecture": "llama", "kv_heads": 2}, True),
        ({"architecture": "llama", "tie_embeddings": True, "norm": "lns"}, True),
        ({"architecture": "llama", "activation": "geglu"}, True),
        ({"architecture": "llama", "activation": "relu"}, False),
        ({"architecture": "llama", "qk_norm": True}, False),
        ({"architecture": "llama", "ffn_widths": [24, 16]}, False),
        ({"architecture": "gpt2", "tie_embeddings": True}, True),
        ({"architecture": "gpt2", "activation": "relu"}, True),
        ({"architecture": "gpt2", "activation": "relu2", "ffn_weight": "weight_norm"}, True),
        ({"architecture": "gpt2", "activation": "swiglu"}, False),
        ({"architecture": "gpt2", "kv_heads": 1}, False),
        ({"architecture": "gpt2", "qk_norm": True, "tie_embeddings": True}, False),
        ({"architecture": "gpt2", "ffn_widths": [24, 16], "norm": "lns"}, False),
    ],
)
def test_choices_beside_placement_and_geometry(exported, changes, stock) -> None:
    loaded, model, spec = exported(**changes)
    assert error_of(loaded, model, spec) < 1e-5
    assert (type(loaded) in STOCK.values()) == stock
    tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert tied == spec.model.tie_embeddings


def test_a_model_of_bfloat16_is_near_and_half_the_size(make_spec, lively, trial, tmp_path) -> None:
    spec = of_model(make_spec, "llama", "sandwich")
    model = lively(spec.model)
    committed(trial, spec, model)
    sizes = {}
    for dtype in ("float32", "bfloat16"):
        export(trial, str(tmp_path / dtype), dtype)
        sizes[dtype] = (tmp_path / dtype / "model.safetensors").stat().st_size
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "bfloat16", trust_remote_code=True)
    assert loaded.dtype == torch.bfloat16
    assert error_of(loaded, model.eval(), spec) < 0.1
    assert 0.45 < sizes["bfloat16"] / sizes["float32"] < 0.6


# --- of real trials ------------------------------------------------------------------------


def held_out_loss(model: Any, spec: TrialSpec) -> float:
    store = open_store(spec.source, expected=spec.data)
    windows = heldout_windows(
        store.heldout, spec.evaluation.tokens, spec.model.context, spec.data.corpus_fingerprint
    )
    tokens = torch.from_numpy(windows).long()
    with torch.no_grad():
        return float(token_loss(model(tokens[:, :-1]).logits, tokens[:, 1:]).mean())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    "stage",
    [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3],
)
def test_a_trial_of_any_stage_has_the_loss_that_it_recorded(
    make_spec, trial, diary, tmp_path, stored, stage, precision
) -> None:
    """Tied embeddings, shared keys, a buffer: all that a checkpoint may hold beside matrices."""
    spec = of_model(
        make_spec, "llama", "post", ffn_widths=[24, 20], kv_heads=2, tie_embeddings=True,
        ffn_weight="spectral_norm",
    )  # fmt: skip
    layout = spec.layout.model_copy(update={"zero_stage": stage})
    training = spec.training.model_copy(update={"precision": precision, "steps": 4})
    spec = spec.model_copy(update={"layout": layout, "training": training})
    train(spec, trial, diary())
    done = export(trial, str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    recorded = records.get_result(trial)["final"]["val_loss"]
    assert (done.val_loss, done.val_step) == (recorded, 4)
    tolerance = 1e-6 if precision == "fp32" else 1e-2
    assert held_out_loss(loaded, spec) == pytest.approx(recorded, rel=tolerance)
    if precision == "bf16" and stage in (1, 2):  # the weights that were computed with
        file = trial.path(stored(trial, 4))
        rounded = torch.load(file, weights_only=True)["module"]
        masters = trained_model(trial).model.state_dict()
        assert rounded.keys() == masters.keys()
        for name, master in masters.items():
            assert torch.equal(master.to(rounded[name].dtype), rounded[name]), name
        name = "layers.0.attention.q.weight"
        assert rounded[name].dtype == torch.bfloat16
        assert not torch.equal(masters[name], rounded[name].float())


@pytest.mark.parametrize(
    "stage",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(3, marks=pytest.mark.slow)],
)
def test_the_weights_are_those_that_deepspeeds_own_tool_finds(
    make_spec, trial, diary, capfd, stage
) -> None:
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    spec = make_spec(model__tie_embeddings=True, model__d_model=24, layout__zero_stage=stage)
    train(spec, trial, diary())
    found = trained_model(trial).model.state_dict()
    expected = get_fp32_state_dict_from_zero_checkpoint(
        str(trial.path("checkpoints")), tag="step-00000010/attempt-1"
    )
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


def test_muon_and_ngpt_are_exported_at_stage_3(make_spec, trial, diary, tmp_path) -> None:
    spec = of_model(make_spec, "ngpt", "ngpt", ffn_widths=[24, 20])
    muon = {"optimizer": "muon", "gradient_clipping": 0.0, "steps": 3}
    spec = TrialSpec.model_validate(
        spec.model_dump()
        | {"training": spec.training.model_dump() | muon}
        | {"layout": {"zero_stage": 3}}
    )
    train(spec, trial, diary())
    export(trial, str(tmp_path / "out"))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    recorded = records.get_result(trial)["final"]["val_loss"]
    assert held_out_loss(loaded, spec) == pytest.approx(recorded, rel=1e-6)
    for name, dim in loaded.unit_norm_dims.items():
        norms = loaded.get_parameter(name).norm(dim=dim)
        torch.testing.assert_close(norms, torch.ones_like(norms), atol=1e-5, rtol=0)


def test_a_running_trial_is_exported_at_its_newest_checkpoint(
    make_spec, trial, dying_at, killed, tmp_path
) -> None:
    spec = make_spec(model__ffn_widths=[24, 24])
    with pytest.raises(killed):
        train(spec, trial, dying_at(6))
    done = export(trial, str(tmp_path / "out"))
    assert (done.step, done.steps, done.outcome) == (4, 10, None)
    assert "(unfinished) after 4 of 10 updates" in done.summary
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert held_out_loss(loaded, spec) == pytest.approx(done.val_loss, rel=1e-6)
    assert "4 of 10 updates (unfinished)" in (tmp_path / "out" / "README.md").read_text()


def test_a_trial_of_the_first_semantics_version_is_exported_and_its_card_says_so(
    make_spec, lively, trial, tmp_path
) -> None:
    spec = of_model(make_spec, "gpt2").model_copy(update={"semantics_version": 1})
    committed(trial, spec, lively(spec.model))
    stored = json.loads(trial.get(records.SPEC))
    del stored["semantics_version"]  # as that version wrote it
    trial.put(records.SPEC, records.encode_json(stored))
    export(trial, str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert f"`{spec.id}`" in card
    assert "| semantics version | 1," in card


# --- refusals ------------------------------------------------------------------------------


@pytest.fixture
def small(make_spec, trial) -> LocalStorage:
    """A trial that can be exported."""
    spec = make_spec(model__ffn_widths=[24, 24])
    committed(trial, spec, build(spec.model, 0))
    return trial


def left_behind(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in ("trial", "corpus"))


def test_a_folder_that_holds_something_is_left_alone(small, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--out '.*out'"):
        export(small, str(tmp_path / "out"))
    assert left_behind(tmp_path) == ["out"]
    assert left_behind(tmp_path / "out") == ["thesis.txt"]


def test_an_empty_folder_is_accepted(small, tmp_path) -> None:
    (tmp_path / "out").mkdir()
    done = export(small, str(tmp_path / "out"))
    assert done.files == left_behind(tmp_path / "out")
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()} == {0o644}


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", r"--out '.*file'"),
        ("file/below", r"--out '.*below'.*(Not a directory|File exists)"),
        ("s3://bucket/model", "--out 's3://bucket/model'"),
        ("", "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(small, tmp_path, monkeypatch, out, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=message):
        export(small, out)
    assert left_behind(tmp_path) == ["file"]


def test_a_failed_export_leaves_nothing(small, tmp_path, monkeypatch) -> None:
    def fail(*_: object) -> None:
        assert any(path.name.startswith(".out.") for path in tmp_path.iterdir())
        raise RuntimeError("power cut")

    monkeypatch.setattr(module, "ModelCard", fail)
    with pytest.raises(TypeError):  # called with keywords
        export(small, str(tmp_path / "out"))
    assert left_behind(tmp_path) == []


def test_a_full_disk_is_an_input_error_and_leaves_nothing(small, tmp_path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(GPT2LMHeadModel, "save_pretrained", full)
    monkeypatch.setattr(Decoder, "save_pretrained", full)
    with pytest.raises(InputError, match=r"--out '.*out'.*No space left on device"):
        export(small, str(tmp_path / "out"))
    assert left_behind(tmp_path) == []


def test_a_trial_without_a_checkpoint_is_refused(make_spec, trial, tmp_path) -> None:
    with pytest.raises(InputError, match=r"spec\.json"):
        export(trial, str(tmp_path / "out"))
    trial.put(records.SPEC, make_spec().to_json())
    with pytest.raises(InputError, match="checkpoint"):
        export(trial, str(tmp_path / "out"))
    ended = {"outcome": "diverged", "step": 1, "steps": 20, "final": {}, "records": {}}
    trial.put(records.RESULT, records.encode_json(ended))
    with pytest.raises(InputError, match="diverged at step 1"):
        export(trial, str(tmp_path / "out"))
    assert left_behind(tmp_path) == []


def test_a_checkpoint_that_does_not_match_its_manifest_is_refused(small, tmp_path) -> None:
    small.put(f"{records.checkpoint_folder(7)}/{MODEL_STATES}", b"cut off")
    with pytest.raises(InputError, match=r"\[7\]"):
        export(small, str(tmp_path / "out"))


def test_the_checkpoint_of_another_model_is_refused(make_spec, trial, tmp_path) -> None:
    spec = make_spec()
    other = make_spec(model__ffn_widths=[32, 32])
    committed(trial, spec, build(other.model, 0))
    with pytest.raises(InputError, match=f"step 7 .*{spec.id}"):
        export(trial, str(tmp_path / "out"))


class Payload:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("stage", [0, 3])
def test_nothing_in_a_checkpoint_is_executed(
    make_spec, trial, dying_at, killed, tmp_path, stage
) -> None:
    """For a payload in each of its files, with the hash that an attacker would set."""
    with pytest.raises(killed):
        train(make_spec(layout__zero_stage=stage), trial, dying_at(4 + 1))
    names = sorted(json.loads(trial.get(records.manifest_key(4)))["files"])
    assert len(names) == (1 if stage == 0 else 2)
    bait = tmp_path / "executed"
    for name in names:
        attacked = LocalStorage(tmp_path / "attacked")
        shutil.copytree(trial.root, attacked.root, dirs_exist_ok=True)
        path = attacked.path(f"{records.checkpoint_folder(4)}/{name}")
        saved = torch.load(path, weights_only=False)
        torch.save({**saved, "seconds": Payload(bait)}, path)
        manifest = json.loads(attacked.get(records.manifest_key(4)))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        manifest["files"][name]["sha256"] = digest
        attacked.put(records.manifest_key(4), records.encode_json(manifest))
        with pytest.raises(InputError, match="UnpicklingError"):
            export(attacked, str(tmp_path / "out"))
        assert not bait.exists()
        shutil.rmtree(attacked.root)
    pickle.loads(pickle.dumps(Payload(bait))).close()
    assert bait.exists()  # it would have worked


def test_a_file_that_the_manifest_does_not_list_is_not_read(small, tmp_path) -> None:
    """A leftover of ZeRO beside the files would change how they are read."""
    export(small, str(tmp_path / "before"))
    small.put(f"{records.checkpoint_folder(7)}/zero_pp_rank_0_mp_rank_00_optim_states.pt", b"left")
    export(small, str(tmp_path / "after"))
    weights = [tmp_path / out / "model.safetensors" for out in ("before", "after")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission_is_refused(small, tmp_path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(InputError, match=r"--out '.*out'.*Permission denied"):
        export(small, str(tmp_path / "locked" / "out"))


def test_unreadable_records_only_remove_the_loss_from_the_card(small, caplog) -> None:
    small.put("metrics/part-1-8-8.parquet", b"harmed")
    assert module._held_out_loss(small, 7) is None
    assert [record.args[0] for record in caplog.records] == [small.url]


def test_the_card_describes_the_model(small, make_spec, tmp_path) -> None:
    spec = make_spec(model__ffn_widths=[24, 24], axes={"norm": "pre", "width_multiplier": 2.0})
    committed(small, spec, build(spec.model, 0))
    done = export(small, str(tmp_path / "out"))
    card = (tmp_path / "out" / "README.md").read_text()
    for said in (spec.id, "7 of 10 updates (unfinished)", "| width_multiplier | `2.0` |",
                 "GPT2LMHeadModel", "AutoModelForCausalLM.from_pretrained('.')"):  # fmt: skip
        assert said in card
    assert (done.val_loss, done.outcome) == (None, None)
    space: dict[str, Tensor] = {}
    exec("\n".join(done.load), space)
    assert type(space["model"]).__name__ == done.model_class
