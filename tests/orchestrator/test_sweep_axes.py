"""One real sweep over axes that reach through the whole of widthlab: a block of the user's own,
nGPT with its own recipe, and several horizons of one run."""

import json
import subprocess
import sys

import pytest
from own_ffn import CUBED

from trialstore.records import METRICS, get_result, read_records
from trialstore.storage import LocalStorage

pytestmark = pytest.mark.slow

SWEEP = """
name: axes
corpus: {kind: python-source}
tokenizer: {kind: bpe, vocab_size: 512}
model: {norm: pre, depth: 2, d_model: 32, head_dim: 16, context: 32}
grid:
  architecture: [gpt2, ngpt]
  block: [null, "own_ffn:Cubed"]
  width_multiplier: [2]
  steps: [10, 14]
overrides:
  - when: {architecture: ngpt}
    set: {learning_rate: 2.0e-2, final_fraction: 0}
training: {batch_tokens: 256, learning_rate: 1.0e-2, schedule: wsd, warmup_steps: 2}
evaluation: {every: 5, tokens: 1024}
spectra: {every: 5, tokens: 1024}
resources: {checkpoint_every: 5}
"""


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalStorage, dict]:
    folder = tmp_path_factory.mktemp("axes")
    (folder / "axes.yaml").write_text(SWEEP)
    (folder / "own_ffn.py").write_text(CUBED)
    done = subprocess.run(
        [
            *[sys.executable, "-m", "orchestrator.cli", "run", folder / "axes.yaml"],
            *["--storage", folder / "runs", "--json"],
        ],
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr
    return LocalStorage(folder / "runs" / "axes"), json.loads(done.stdout)


def trial(sweep: tuple[LocalStorage, dict], **axes) -> LocalStorage:
    storage, report = sweep
    (found,) = (t["id"] for t in report["trials"] if axes.items() <= t["axes"].items())
    return storage.child(f"trials/{found}")


def test_every_cell_is_trained_and_ngpt_once_whatever_the_block(sweep) -> None:
    _, report = sweep
    assert report["counts"]["completed"] == len(report["trials"]) == 6
    ngpt = [t["axes"] for t in report["trials"] if t["axes"]["architecture"] == "ngpt"]
    assert [(axes["norm"], axes["block"]) for axes in ngpt] == [("ngpt", None)] * 2


@pytest.mark.parametrize("block", [None, "own_ffn:Cubed"])
def test_the_shorter_horizon_goes_on_from_the_longer_ones_run(sweep, block) -> None:
    """Up to where its own decay begins the rows are the same, down to the clock."""
    tables = [
        read_records(trial(sweep, architecture="gpt2", block=block, steps=steps), METRICS)
        for steps in (10, 14)
    ]
    short, long = (table.to_pandas() for table in tables)
    shared = 8
    head, same = (frame[frame["step"] <= shared].reset_index(drop=True) for frame in (short, long))
    assert head.equals(same)
    assert short["step"].max() == 10
    rates = short[short["kind"] == "train"]["learning_rate"].tolist()
    assert rates == pytest.approx([5e-3, *[1e-2] * 7, 5.5e-3, 1e-3])


def test_a_recipe_of_its_own_is_what_was_trained(sweep) -> None:
    ngpt = read_records(trial(sweep, architecture="ngpt", steps=14), METRICS).to_pandas()
    rates = ngpt[ngpt["kind"] == "train"]["learning_rate"]
    assert rates.max() == pytest.approx(2e-2)
    assert rates.iloc[-1] == 0.0


def test_an_own_ffn_is_watched_and_counted(sweep) -> None:
    result = get_result(trial(sweep, architecture="gpt2", block="own_ffn:Cubed", steps=14))
    d, D, depth = 32, 64, 2
    assert result["parameters"]["ffn"] == depth * (2 * d * D + D + d)
    assert result["outcome"] == "completed"
