"""What a sweep file may say, and how it is told that it may not."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mini_sweep import MINIMAL, parse, refused, replaced

from orchestrator.sweep.config import AXES, GRID_ONLY
from orchestrator.sweep.load import load_sweep
from orchestrator.sweep.strict_yaml import dump
from trainers.data.sources import BPETokenizer, PythonSource, TextFiles
from trialstore.errors import InputError

SHIPPED = sorted((Path(__file__).parents[2] / "orchestrator" / "sweeps").glob("*.yaml"))

# --- what is understood --------------------------------------------------------------------


def test_a_minimal_file_has_every_default():
    config = parse()
    assert config.corpus == PythonSource()
    assert config.tokenizer == BPETokenizer(vocab_size=512)
    assert config.hold == ("none",)
    assert config.grid == {"width_multiplier": (1.0, 2.67, 4.0), "seed": (0,)}
    assert config.model.reference_multiplier == 4.0
    assert config.model.ffn_multiple == 8
    assert config.resources.retries == 2
    assert config.analysis.tolerance_nats == 0.01
    assert config.analysis.aggregate_last == 5
    assert config.training.learning_rate == 0.001


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_sweeps_are_valid_and_named_like_their_file(path):
    assert load_sweep(path).name == path.stem


def test_there_are_shipped_sweeps():
    assert {path.stem for path in SHIPPED} >= {"small", "tiny"}


def test_ngpt_needs_no_norm_for_it_has_its_own():
    assert parse(replaced("gpt2, norm: pre", "ngpt")).model.norm == "ngpt"
    only = replaced("architecture: gpt2, norm: pre, ", "").replace(
        "grid:", "grid:\n  architecture: [ngpt]"
    )
    assert parse(only).model.norm == "ngpt"
    assert "model.norm: is missing" in refused(only.replace("[ngpt]", "[ngpt, llama]"))


def test_what_fits_together_is_asked_of_the_cells_and_not_of_the_file():
    config = parse(MINIMAL + "  optimizer: muon\n  momentum: 0.9\n")
    assert (config.training.optimizer, config.training.gradient_clipping) == ("muon", 1.0)


def test_a_warm_up_of_no_number_is_a_fraction():
    config = parse(MINIMAL + "  warmup_steps: null\n  warmup_fraction: 0.2\n")
    assert (config.training.warmup_steps, config.training.warmup_fraction) == (None, 0.2)


def test_a_scalar_axis_is_one_value():
    assert parse(replaced("[1, 2.67, 4]", "4")).grid["width_multiplier"] == (4.0,)


def test_any_scalar_of_the_base_can_be_an_axis():
    text = replaced("  learning_rate: 1e-3\n", "").replace(
        "grid:\n",
        "grid:\n  learning_rate: [1e-3, 3e-3]\n  spectra.every: [10, 20]\n"
        "  training.weight_decay: 0\n  tie_embeddings: [true, false]\n",
    )
    config = parse(text)
    assert config.grid["learning_rate"] == (0.001, 0.003)
    assert config.grid["spectra.every"] == (10, 20)
    assert config.grid["weight_decay"] == (0.0,)
    assert config.grid["tie_embeddings"] == (True, False)
    assert (config.training.learning_rate, config.spectra.every) == (0.001, 10)


def test_every_scalar_of_the_base_is_an_axis_and_no_list_is():
    assert {"architecture", "depth", "steps", "evaluation.every", "spectra.tokens"} <= AXES.keys()
    assert not {"sites", "spectra.sites", "every", "tokens", "workers"} & AXES.keys()
    assert not GRID_ONLY.keys() & AXES.keys()


def test_widths_can_be_given_themselves_one_or_a_list_per_layer():
    text = replaced("width_multiplier: [1, 2.67, 4]", "ffn_width: [128, [64, 256]]")
    assert parse(text).grid["ffn_width"] == (128, [64, 256])


@pytest.mark.parametrize(
    ("written", "meant"),
    [("none", ("none",)), ("params", ("params",)), ("[none, flops]", ("none", "flops"))],
)
def test_hold_is_one_budget_or_a_list(written, meant):
    assert parse(f"{MINIMAL}hold: {written}\n").hold == meant


def test_two_sections_that_share_an_anchor_are_not_tied_together():
    text = MINIMAL + "evaluation: &often {every: 10, tokens: 4096}\nspectra: *often\n"
    config = parse(text, "spectra.every=20")
    assert (config.evaluation.every, config.spectra.every) == (10, 20)


def test_corpora_and_tokenizers_are_chosen_by_kind():
    text = MINIMAL + "corpus: {kind: text, paths: [a.txt]}\ntokenizer: {kind: bytes}\n"
    config = parse(text)
    assert config.source.corpus == TextFiles(paths=["a.txt"])
    assert config.source.tokenizer.kind == "bytes"


# --- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            "steps: 100",
            "stepz: 100",
            "mini.yaml, line 6: training.stepz: unknown key; did you mean steps?",
        ),
        ("training:", "trainings:", "line 5: trainings: unknown key; did you mean training?"),
        (
            "name: mini",
            "name: mini\nsteps: 3",
            "line 2: steps: unknown key; it belongs at training.steps",
        ),
        ("d_model: 64", "d_modle: 64", "line 2: model.d_modle: unknown key; did you mean d_model?"),
        ("steps: 100", "steps: 100.0", "line 6: training.steps: 100.0 should be a valid integer"),
        ("steps: 100", "steps: '100'", "training.steps: '100' should be a valid integer"),
        ("steps: 100", "steps: true", "training.steps: True should be a valid integer"),
        ("steps: 100", "steps:", "training.steps: nothing should be a valid integer"),
        ("steps: 100", "steps: 0", "training.steps: 0 should be greater than or equal to 1"),
        (
            "1e-3",
            "[1e-3]",
            "should be a valid number; for several values use grid.learning_rate",
        ),
        ("1e-3", ".nan", "training.learning_rate: nan should be a finite number"),
        ("gpt2", "gpt3", "model.architecture: 'gpt3' should be 'gpt2', 'llama' or 'ngpt'"),
        (
            "norm: pre",
            "norm: pree",
            "line 2: model.norm: 'pree' should be one of pre, post, mix, lns, sandwich,",
        ),
        ("norm: pre", "norm: pre, mix_alpha: 2", "model.mix_alpha: 2 should be less than or equal"),
        (
            "norm: pre",
            "norm: pre, kv_heads: 0",
            "model.kv_heads: 0 should be greater than",
        ),
        ("norm: pre, ", "", "line 2: model.norm: is missing; give it, or the axis grid.norm"),
        ("architecture: gpt2, norm: pre", "architecture: gpt2", "model.norm: is missing"),
        (
            "steps: 100",
            "steps: 100\n  warmup_steps: 10\n  warmup_fraction: 0.1",
            "line 7: training.warmup_steps: warmup_fraction is also given, and says the same",
        ),
        (
            "grid:\n",
            "grid:\n  warmup_steps: [10, 20]\n  warmup_fraction: [0.1]\n",
            "line 4: grid.warmup_steps: warmup_fraction is also given",
        ),
        (
            "depth: 2, ",
            "",
            "line 2: model.depth: is missing; give it, or the axis grid.depth",
        ),
        (
            "name: mini",
            "name: a/b",
            "line 1: name: 'a/b' should begin with a letter or a digit and hold only letters (A to "
            "Z, a to z), digits, '.', '_' and '-'",
        ),
        ("name: mini", "name: mini.yaml", "'mini.yaml' is the name of a file; the sweep's is with"),
        ("name: mini", "name: mini.YML", "without the ending, such as mini"),
        ("name: mini", "name: mlflow.db", "'mlflow.db' is MLflow's in the folder of the sweeps"),
        ("name: mini", "name: mlartifacts", "'mlartifacts' is MLflow's in the folder"),
        ("name: mini", f"name: {'a' * 101}", "101 characters are too many for a name"),
        ("[1, 2.67, 4]", "[]", "line 4: grid.width_multiplier: has no values"),
        ("[1, 2.67, 4]", "[1, 0]", "grid.width_multiplier.1: 0 should be greater than 0"),
        ("[1, 2.67, 4]", "[1, -2]", "grid.width_multiplier.1: -2 should be greater than 0"),
        ("[1, 2.67, 4]", "[1, .inf]", "grid.width_multiplier.1: inf should be a finite number"),
        ("[1, 2.67, 4]", "[1, wide]", "grid.width_multiplier.1: 'wide' should be a valid number"),
        ("[1, 2.67, 4]", "", "grid.width_multiplier: nothing should be a valid number"),
        ("  width_mult", "  width_mul", "line 4: grid.width_muliplier: unknown axis; did you mean"),
        (
            "grid:\n",
            "grid:\n  steps: [1]\n",
            "line 4: grid.steps: training.steps is also given, as 100; remove one",
        ),
        (
            "grid:\n",
            "grid:\n  seed: [0]\n  ffn_width: 64\n",
            "exactly one of width_multiplier (D = multiplier x d_model) and ffn_width (D itself): "
            "both are given",
        ),
        ("  width_multiplier: [1, 2.67, 4]", "  seed: [0]", "grid: needs exactly one of"),
        ("grid:\n", "grid:\n  seed: [-1]\n", "grid.seed.0: -1 should be greater than or equal"),
        ("grid:\n", "grid:\n  every: [1]\n", "is in several places; write evaluation.every or"),
        ("grid:\n", "grid:\n  sites: [pre]\n", "grid.sites: is a list and cannot be an axis"),
        (
            "grid:\n",
            "grid:\n  vocab_size: [512]\n",
            "tokenizer.vocab_size is one for the whole sweep and cannot be an axis",
        ),
        (
            "grid:\n",
            "grid:\n  weight_decay: [0]\n  training.weight_decay: [1]\n",
            "the axis weight_decay stands on the grid twice",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line_key_value_and_way_out(old, new, message):
    assert message in refused(replaced(old, new))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("hold: [none, none]", "names a budget twice"),
        ("hold: []", "hold: [] should have at least 1 item"),
        ("hold: {none: params}", "hold: {'none': 'params'} should be a list"),
        ("hold: memory", "hold.0: 'memory' should be 'none', 'params' or 'flops'"),
        (
            "spectra: {memory: 2048}",
            "spectra.memory: unknown key; did you mean memory_mb?",
        ),
        ("spectra:", "spectra: nothing is not a mapping; its keys are every, tokens, sites"),
        ("resources: [1]", "resources: [1] is not a mapping; its keys are workers, "),
        ("corpus: python-source", "corpus: 'python-source' is not a mapping; its keys are kind"),
        ("corpus: {kind: web}", "corpus.kind: 'web' should be one of python-source, text, hub"),
        ("corpus: {paths: [a]}", "corpus.kind: is missing; give one of python-source, text, hub"),
        ("corpus: {kind: text}", "corpus.paths: is missing"),
        (
            "tokenizer: {kind: bytes, vocab_size: 300}",
            "tokenizer.vocab_size: kind bytes has no such key; known are kind",
        ),
        ("7: 1", "7: unknown key"),
    ],
)
def test_a_mistake_in_another_section_is_named_too(more, message):
    assert message in refused(f"{MINIMAL}{more}\n")


@pytest.mark.parametrize("more", ["hold: parms", "hold: [parms]", "spectra: {sites: [mid]}"])
def test_a_wrong_item_of_a_list_is_one_mistake_and_not_two(more):
    (line,) = refused(f"{MINIMAL}{more}\n").splitlines()
    assert "should be 'none', 'params' or 'flops'" in line or "should be 'pre' or 'post'" in line


@pytest.mark.parametrize(
    "override",
    [
        "depth=10001",
        "d_model=10000001",
        "head_dim=10001",
        "context=10000001",
        "ffn_multiple=1000001",
        "reference_multiplier=1e9",
        "reference_multiplier=1e300",
        "steps=100000000",
        "batch_tokens=10000000001",
        "evaluation.tokens=10000000001",
        "spectra.tokens=10000000001",
        "tokenizer={kind: bpe, vocab_size: 10000001}",
        "grid.depth=[2, 1000000000]",
        "width_multiplier=[1, 1e300]",
        "ffn_width=100000000000000000",
        "ffn_width=[[64, 100000000000000000]]",
    ],
)
def test_a_number_beyond_any_model_is_named_with_its_bound(override):
    message = refused(MINIMAL, override)
    assert message.startswith(f"mini.yaml, --set {override}: ")
    assert "should be less than or equal to 1" in message or "to 99999999" in message


def test_waiting_for_nodes_needs_a_device_that_is_known():
    message = refused(MINIMAL, "wait_for_nodes=true")
    assert "wait_for_nodes true needs device: cpu or device: cuda" in message
    assert parse(MINIMAL, "wait_for_nodes=true", "device=cpu").resources.wait_for_nodes


def test_every_mistake_is_named_at_once():
    message = refused(replaced("steps: 100", "steps: x").replace("d_model: 64", "d_model: y"))
    assert "model.d_model: 'y'" in message
    assert "training.steps: 'x'" in message


def test_explicit_widths_leave_no_room_for_a_budget():
    text = replaced("width_multiplier: [1, 2.67, 4]", "ffn_width: [64]") + "hold: params\n"
    assert "use grid.width_multiplier, or hold: none" in refused(text)


@pytest.mark.parametrize("text", ["[1, 2]", "just words", "3"])
def test_a_file_that_is_no_mapping_is_refused(text):
    assert "mini.yaml: a sweep file is a mapping of keys such as name" in refused(text)


def test_a_file_that_is_not_there_is_bad_input(tmp_path):
    with pytest.raises(InputError, match=r"nowhere.yaml' cannot be read: No such file"):
        load_sweep(tmp_path / "nowhere.yaml")


def test_a_directory_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        load_sweep(tmp_path)


def outcome(text: str) -> str:
    try:
        parse(text)
    except InputError as error:
        return str(error)
    return "a config"


@given(
    key=st.sampled_from(
        ["name", "corpus", "model", "grid", "hold", "overrides", "training", "resources"]
    ),
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text("ab", max_size=2),
        lambda inner: (
            st.lists(inner, max_size=2)
            | st.dictionaries(
                st.sampled_from(["kind", "steps", "depth", "seed", "workers", "when", "set", "x"]),
                inner,
                max_size=2,
            )
        ),
    ),
)
def test_no_value_of_a_section_escapes_as_anything_but_bad_input(key, value):
    content = {"grid": {"width_multiplier": [1]}, key: value}
    assert outcome(dump(content)).startswith("mini.yaml")
