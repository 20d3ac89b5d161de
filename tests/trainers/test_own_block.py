"""A user's own block is trained, probed, counted and initialised like widthlab's; the classes of
docs/own-block.md are the ones that are tried."""

import hashlib
import importlib
import itertools
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from repository import ROOT

from trainers import accounting, check_block
from trainers.__main__ import main
from trainers.models.build import build, feed_forwards
from trainers.models.model_spec import BlockSpec
from trainers.spec import TrialSpec
from trainers.train import train
from trialstore import records
from trialstore.errors import InputError
from trialstore.records import SPECTRA, read_records
from trialstore.storage import LocalStorage

DOCUMENTED = "\n\n".join(
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-block.md").read_text(), re.S)
)
#: The FFN of a llama, written again.
SAME = """
import torch.nn.functional as F
from torch import nn


class SwiGLU(nn.Module):
    def __init__(self, config, width):
        super().__init__()
        self.width = width
        self.gate = nn.Linear(config.d_model, width, bias=False)
        self.up = nn.Linear(config.d_model, width, bias=False)
        self.down = nn.Linear(width, config.d_model, bias=False)

    @property
    def nonlinearity_input(self):
        return self.gate

    def forward(self, x):
        return self.down(F.silu(self.gate(x)) * self.up(x))
"""
_numbers = itertools.count()

MakeModule = Callable[[str], str]


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeModule]:
    """Write a module where `import` finds it; its name is new each time."""
    monkeypatch.syspath_prepend(tmp_path)
    names = []

    def make(source: str) -> str:
        names.append(f"users_module_{next(_numbers)}")
        (tmp_path / f"{names[-1]}.py").write_text(source)
        importlib.invalidate_caches()
        return names[-1]

    yield make
    for name in names:
        sys.modules.pop(name, None)


@pytest.fixture
def with_block(make_spec, user_module):
    """A trial with a block: `with_block("DoubleGated", norm="lns")`."""

    def make(name: str, source: str = DOCUMENTED, architecture: str = "llama", **model):
        block = check_block.resolve(f"{user_module(source)}:{name}")
        content = {
            "architecture": architecture,
            "norm": "pre",
            "d_model": 16,
            "head_dim": 4,
            "ffn_widths": [24, 20],
            "context": 16,
            "vocab_size": 257,
            "block": block.model_dump(),
            **model,
        }
        return make_spec(model=content)

    return make


# --- trained -------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.parametrize("name", ["DoubleGated", "Parallel", "Twice"])
def test_the_documented_classes_are_trained_and_probed(with_block, trial, diary, name) -> None:
    spec = with_block(name)
    log = diary()
    end = train(spec, trial, log)
    assert end.outcome == "completed"
    assert log.losses[-1] < log.losses[0]
    rows = read_records(trial, SPECTRA).to_pylist()
    samples = 128 * (2 if name == "Twice" else 1)
    assert {(row["layer"], row["site"], row["D"], row["N"]) for row in rows} == {
        (layer, site, D, samples) for layer, D in enumerate((24, 20)) for site in ("pre", "post")
    }
    assert end.result["parameters"]["total"] == accounting.parameters(spec.model).total


@pytest.mark.long
@pytest.mark.slow
def test_a_resumed_trial_ends_with_the_same_bits(
    with_block, trial, diary, dying_at, killed, bits, tmp_path
) -> None:
    """At ZeRO 3, which gathers every parameter of a module before its forward pass."""
    spec = with_block("DoubleGated", norm="lns")
    layout = spec.layout.model_copy(update={"zero_stage": 3})
    spec = spec.model_copy(update={"layout": layout})
    with pytest.raises(killed):
        train(spec, trial, dying_at(6))
    train(spec, trial, diary())
    whole = LocalStorage(tmp_path / "whole")
    train(spec, whole, diary())
    assert bits(trial) == bits(whole)


def test_a_swiglu_of_ones_own_is_the_llama(with_block, random_tokens) -> None:
    """The same names, so the same values at the start, the same function, the same size."""
    own = with_block("SwiGLU", SAME, initialisation="depth_scaled").model
    llama = own.model_copy(update={"block": None})
    ours, theirs = build(own, 3), build(llama, 3)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    tokens = random_tokens(own)
    with torch.no_grad():
        assert torch.equal(ours(tokens).logits, theirs(tokens).logits)
    assert accounting.parameters(own) == accounting.parameters(llama)
    assert accounting.training_flops_per_token(own) == accounting.training_flops_per_token(llama)


# --- counted -------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
@pytest.mark.parametrize("name", ["DoubleGated", "Parallel", "Twice"])
def test_every_parameter_is_counted_and_in_its_place(with_block, name, architecture) -> None:
    model = with_block(name, architecture=architecture, qk_norm=True).model
    built, counted = build(model, 0), accounting.parameters(model)
    layers = dict(built.layers.named_parameters())
    of_ffn = sum(p.numel() for ffn in feed_forwards(built) for p in ffn.parameters())
    of_norms = sum(p.numel() for name, p in layers.items() if "norm" in name)
    of_final = sum(p.numel() for p in built.final_norm.parameters())
    assert counted.total == sum(p.numel() for p in built.parameters())
    assert counted.ffn == of_ffn
    assert counted.norm == of_norms + of_final
    assert counted.attention == sum(p.numel() for p in layers.values()) - of_ffn - of_norms


def test_flops_are_six_per_weight_that_is_multiplied(with_block) -> None:
    d, widths, context, V = 16, (24, 20), 16, 257
    attention = len(widths) * 4 * d * d
    ffn = sum(4 * d * D for D in widths)
    for name, applied in (("DoubleGated", 1), ("Twice", 2)):
        expected = 6 * (attention + applied * ffn + V * d) + 12 * len(widths) * d * context
        assert accounting.training_flops_per_token(with_block(name).model) == expected


def test_a_whole_block_counts_its_attention_itself(with_block) -> None:
    source = DOCUMENTED + (
        "\n\nclass Stated(Parallel):\n"
        "    @staticmethod\n"
        "    def matrix_weights(config, width):\n"
        "        return 1000 + width\n"
    )
    flops = accounting.training_flops_per_token(with_block("Stated", source).model)
    assert flops == 6 * (2000 + 24 + 20 + 257 * 16) + 12 * 2 * 16 * 16


@pytest.mark.parametrize("value", ["1.5", "None", "-1"])
def test_what_is_no_number_of_weights_is_refused(with_block, value) -> None:
    source = SAME + f"\n    @staticmethod\n    def matrix_weights(*_):\n        return {value}\n"
    with pytest.raises(InputError, match=rf"matrix_weights gives {value} for D 24"):
        accounting.training_flops_per_token(with_block("SwiGLU", source).model)


def test_a_count_that_fails_is_an_input_error(with_block) -> None:
    source = SAME + "\n    @staticmethod\n    def matrix_weights(*_):\n        return {}[24]\n"
    with pytest.raises(InputError, match=r"matrix_weights .*D 24: KeyError: 24"):
        accounting.training_flops_per_token(with_block("SwiGLU", source).model)


# --- initialised ---------------------------------------------------------------------------


def test_matrices_are_drawn_by_name_whatever_the_class_drew(with_block) -> None:
    """What shares a name and a shape shares its values, between classes and with widthlab's."""
    torch.manual_seed(1)
    double = dict(build(with_block("DoubleGated").model, 0).named_parameters())
    torch.manual_seed(2)
    parallel = dict(build(with_block("Parallel").model, 0).named_parameters())
    shared = double.keys() & parallel.keys()
    assert {"layers.1.ffn.gate.weight", "layers.1.ffn.down.weight"} <= shared
    for name in shared:
        assert torch.equal(double[name], parallel[name]), name
    other = dict(build(with_block("DoubleGated").model, 1).named_parameters())
    assert not torch.equal(
        double["layers.0.ffn.second.weight"], other["layers.0.ffn.second.weight"]
    )
    assert float(double["layers.0.ffn.second.weight"].detach().std()) == pytest.approx(
        0.02, rel=0.2
    )


def test_of_one_dimension_biases_start_at_0_and_the_rest_at_1(with_block) -> None:
    source = SAME.replace(
        "        self.up =",
        "        self.own_bias = nn.Parameter(torch.randn(3))\n"
        "        self.temper = nn.Parameter(torch.randn(3))\n"
        "        self.register_buffer('kept', torch.arange(3.0))\n"
        "        self.up =",
    ).replace("from torch import nn", "import torch\nfrom torch import nn")
    ffn = next(feed_forwards(build(with_block("SwiGLU", source).model, 0)))
    assert ffn.own_bias.tolist() == [0, 0, 0]
    assert ffn.temper.tolist() == [1, 1, 1]
    assert ffn.kept.tolist() == [0, 1, 2]


# --- found, or not -------------------------------------------------------------------------


def test_the_hash_is_of_the_source_file_and_enters_the_id(
    with_block, user_module, tmp_path
) -> None:
    spec = with_block("DoubleGated")
    block = spec.model.block
    (module, _, _) = block.path.partition(":")
    digest = hashlib.sha256((tmp_path / f"{module}.py").read_bytes()).hexdigest()
    assert block.source_hash == digest[:16]
    other = BlockSpec(path=block.path, source_hash="0" * 16)
    edited = spec.model_copy(update={"model": spec.model.model_copy(update={"block": other})})
    without = spec.model_copy(update={"model": spec.model.model_copy(update={"block": None})})
    assert len({spec.id, edited.id, without.id}) == 3


def test_a_trial_is_refused_once_its_source_has_changed(with_block, trial, diary) -> None:
    spec = with_block("DoubleGated")
    planned = spec.model_dump()
    planned["model"]["block"]["source_hash"] = "0123456789abcdef"
    with pytest.raises(InputError, match=r"hash .*0123456789abcdef"):
        train(TrialSpec.model_validate(planned), trial, diary())
    assert trial.list(records.METRICS) == []


def test_an_edit_under_a_running_process_is_noticed(with_block, tmp_path) -> None:
    block = with_block("DoubleGated").model.block
    (tmp_path / f"{block.path.partition(':')[0]}.py").write_text(DOCUMENTED + "\n# later\n")
    with pytest.raises(InputError, match="edited since"):
        check_block.check(block)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("no_such_module:Class", "there is no module no_such_module"),
        ("no_such.module:Class", "there is no module no_such"),
        ("{}:Nothing", r"has no module class Nothing; it has SwiGLU"),
        ("{}:F", r"has no module class F"),
        ("{}", r"must be written package\.module:Class"),
        ("a b:C", r"must be written package\.module:Class"),
    ],
)
def test_a_path_to_nothing_is_an_input_error(user_module, path, message) -> None:
    with pytest.raises(InputError, match=message):
        check_block.resolve(path.format(user_module(SAME)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency", "ModuleNotFoundError"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
        (SAME.replace("width):\n", "width):\n        replaces\n"), "NameError"),
        (SAME.replace("nonlinearity_input", "other"), "cannot be built .* no attribute 'nonlin"),
        (
            SAME.replace("self.gate =", "self.g = self.gate ="),
            r"g\.weight and .*gate\.weight are one",
        ),
        (SAME.replace("self.width = width", "self.width = 7"), "its width is 7"),
        (SAME.replace("Module):\n", "Module):\n    replaces = 'all'\n"), "may be ffn or block"),
    ],
)
def test_a_class_that_cannot_be_used_is_an_input_error(with_block, source, message) -> None:
    with pytest.raises(InputError, match=message):
        accounting.parameters(with_block("SwiGLU", source).model)


def test_a_process_that_cannot_import_it_says_so_and_trains_nothing(
    make_spec, trial, tmp_path, capsys, monkeypatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_: None)  # of this process, it stays as it is
    block = {"path": "no_such_module:Class", "source_hash": "0" * 16}
    path = tmp_path / "spec.json"
    path.write_bytes(make_spec(model__block=block).to_json())
    assert main([str(path), "--out", trial.url]) == 2
    assert "give --block no_such_module:Class" in capsys.readouterr().err
    assert trial.list() == []
    assert main([str(path), "--out", trial.url, "--block", "no_such_module:Class"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no_such_module" in line
    assert "PYTHONPATH" in line
    assert trial.list(records.METRICS) == []


@pytest.mark.processes
@pytest.mark.slow
def test_it_is_found_in_the_working_directory_of_python_m_trainers(
    with_block, trial, tmp_path
) -> None:
    path = tmp_path / "spec.json"
    spec = with_block("DoubleGated")
    path.write_bytes(spec.to_json())
    command = [sys.executable, "-m", "trainers", str(path), "--out", trial.url]
    command += ["--block", spec.model.block.path]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert records.get_result(trial)["outcome"] == "completed"
