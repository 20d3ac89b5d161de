"""Exported models load, compute and generate without widthlab."""

import hashlib
import importlib
import io
import json
import os
import re
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest
import torch
from repository import ROOT, SUPPORT
from safetensors.torch import save_file

from trainers import check_block
from trainers.export.code import MODEL_FILES, portable
from trainers.export.export import export
from trainers.spec import TrialSpec
from trialstore import records
from trialstore.errors import InputError
from trialstore.storage import LocalStorage

DOCUMENTED = "\n\n".join(
    re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-block.md").read_text(), re.S)
)
CONTINUED = 6

#: One of each kind that transformers has no class for, and the two that it has.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"architecture": "gpt2", "norm": "lns", "ffn_weight": "spectral_norm"},
    "llama": {"architecture": "llama", "norm": "pre", "kv_heads": 2, "ffn_weight": "weight_norm"},
    "mix": {"architecture": "llama", "norm": "mix", "post_layers": 1, "qk_norm": True},
    "deepnorm": {"architecture": "gpt2", "norm": "deepnorm", "tie_embeddings": True},
    "gated": {"architecture": "gpt2", "norm": "pre", "activation": "geglu"},
    "widths": {"architecture": "llama", "norm": "sandwich", "ffn_widths": [24, 20]},
    "ngpt": {"architecture": "ngpt", "norm": "ngpt"},
    "own_ffn": {"architecture": "gpt2", "norm": "post", "block": "users_blocks:DoubleGated"},
    "own_block": {"architecture": "llama", "norm": "lns", "block": "users_blocks:Parallel"},
}


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that sees what is installed here, but not what is installed as editable: path
    files of a folder that a path file names are not read."""
    folder = tmp_path_factory.mktemp("outside")
    venv.create(folder / "venv", with_pip=False)
    (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
    (site / "installed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    return folder / "venv" / "bin" / "python"


@pytest.fixture
def users_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "users_blocks.py").write_text(DOCUMENTED)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()


def spec_of(make_spec, changes: dict[str, Any]) -> TrialSpec:
    content = {
        "d_model": 16, "head_dim": 4, "ffn_widths": [24, 24], "context": 32, "vocab_size": 257,
    } | changes  # fmt: skip
    if "block" in content:
        content["block"] = check_block.resolve(content["block"]).model_dump()
    return make_spec(model=content, training__weight_decay=0.0)


@pytest.mark.processes
@pytest.mark.slow
def test_an_export_works_without_widthlab(
    make_spec, lively, users_blocks, outside, tmp_path
) -> None:
    """Logits, greedy generation, batches of unequal length, the tokenizer, and saving again."""
    folder = tmp_path / "models"
    for name, changes in MODELS.items():
        spec = spec_of(make_spec, changes)
        model = lively(spec.model).eval()
        trial = LocalStorage(tmp_path / "trials" / name)
        commit(trial, spec, model)
        export(trial, str(folder / name / "model"), block=changes.get("block"))
        generator = torch.Generator().manual_seed(4)
        tokens = torch.randint(257, (2, 32), generator=generator)
        prompt = tokens[:, :5].contiguous()
        with torch.no_grad():
            logits = model(tokens).logits
        settings = {"max_new_tokens": CONTINUED, "min_new_tokens": CONTINUED, "do_sample": False}
        generated = model.generate(prompt, eos_token_id=256, pad_token_id=256, **settings)
        expected = {"tokens": tokens, "logits": logits, "prompt": prompt, "generated": generated}
        save_file(expected, folder / name / "expected.safetensors")

    done = subprocess.run(
        [str(outside), "-I", str(SUPPORT / "load_exported.py"), str(folder)],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=240,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == MODELS.keys()
    for name, was in found.items():
        assert was["error"] < 1e-5, name
        assert was["generated"] == was["expected"], name
        assert was["alone"] == was["together"], name
        assert was["saved_again"], name
        assert was["text"] == "ten green bottles"
        assert was["eos"] == [256, 256]
    stock = {name for name, was in found.items() if was["class"].startswith("transformers.models.")}
    assert stock == {"gpt2", "llama"}


def commit(trial: LocalStorage, spec: TrialSpec, model: torch.nn.Module) -> None:
    """Write a stage 0 checkpoint of step 1."""
    file = io.BytesIO()
    torch.save({"module": model.state_dict()}, file)
    name = "mp_rank_00_model_states.pt"
    trial.put(records.SPEC, spec.to_json())
    trial.put(f"{records.checkpoint_folder(1)}/{name}", file.getvalue())
    listed = {name: {"sha256": hashlib.sha256(file.getvalue()).hexdigest()}}
    trial.put(records.manifest_key(1), records.Manifest(spec.id, 1, 1, listed, []).to_json())


# --- the source of a user's block ----------------------------------------------------------


def rewritten(tmp_path: Path, source: str) -> str:
    path = tmp_path / "users.py"
    path.write_text(source)
    return portable(path)


def test_imports_of_the_model_files_become_those_of_their_neighbours(tmp_path) -> None:
    assert rewritten(tmp_path, DOCUMENTED) == DOCUMENTED.replace("from trainers.models.", "from .")
    assert "from .decoder import Block" in rewritten(tmp_path, DOCUMENTED)
    source = (
        '"""from trainers.models.decoder import Block"""\n'
        "from __future__ import annotations\n"
        "import math, torch.nn as nn\n"
        "if True:\n"
        "    x = 'é'; from trainers.models.linear import (\n"
        "        WeightNormLinear,\n"
        "    )\n"
    )
    expected = source.replace("'é'; from trainers.models.linear", "'é'; from .linear")
    assert rewritten(tmp_path, source) == expected


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("import numpy as np", "imports numpy"),
        ("from jaxtyping import Float", "imports jaxtyping"),
        ("from trainers.models.build import build", r"imports trainers\.models\.build"),
        ("from trainers.models import decoder", r"imports trainers\.models"),
        ("import trainers.models.decoder", r"imports trainers\.models\.decoder"),
        ("from trainers.spec import ModelSpec", r"imports trainers\.spec"),
        ("from .other import x", r"imports \.other"),
        ("from . import other", r"imports \."),
        ("from trainers.models \\\n  .decoder import Block", r"imports trainers\.models\.decoder"),
    ],
)
def test_an_import_that_cannot_travel_is_named(tmp_path, line, named) -> None:
    with pytest.raises(InputError, match=rf"users\.py, line 3: {named}: "):
        rewritten(tmp_path, f"import torch\n\n{line}\n")


@pytest.mark.long
def test_a_block_with_other_imports_is_refused_before_anything_is_written(
    make_spec, lively, tmp_path, monkeypatch
) -> None:
    source = DOCUMENTED.replace("import torch\n", "import numpy\nimport torch\n", 1)
    (tmp_path / "users_numpy.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    block = {"architecture": "llama", "norm": "pre", "block": "users_numpy:DoubleGated"}
    spec = spec_of(make_spec, block)
    trial = LocalStorage(tmp_path / "trial")
    commit(trial, spec, lively(spec.model))
    with pytest.raises(InputError, match="numpy"):
        export(trial, str(tmp_path / "out"), block=block["block"])
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_exported_model_files_do_not_import_widthlab(tmp_path) -> None:
    """Each file of the model passes the test that a user's block must pass."""
    ours = Path(check_block.__file__).parent / "models"
    for name in MODEL_FILES:
        source = (ours / f"{name}.py").read_text()
        neighbours = "|".join(MODEL_FILES)
        standing_alone = re.sub(
            rf"^from \.({neighbours}) import", "from torch import", source, flags=re.M
        )
        assert rewritten(tmp_path, standing_alone) == standing_alone
    assert sys.modules["trainers.models.decoder"].__file__ == str(ours / "decoder.py")
