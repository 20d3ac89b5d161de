"""A plan asks no hub: what it knows of the data is on this machine or in the sweep's directory."""

import json
import socket
import sys
from pathlib import Path

import pytest

from orchestrator.cli import __main__ as cli
from orchestrator.grid.expand import expand
from orchestrator.grid.plan import resolved_yaml
from orchestrator.grid.planned_data import NOT_FETCHED, planned_data
from orchestrator.sweep.load import parse_sweep
from trainers.data.sources import DataSpec
from trialstore.errors import InputError
from trialstore.storage import LocalStorage

COMMIT = "0123456789abcdef0123456789abcdef01234567"
DATA = DataSpec(corpus_fingerprint="0123456789abcdef", tokenizer_hash="fedcba9876543210")

BASE = """\
name: mini
corpus: {kind: hub, dataset: owner/data}
tokenizer: {kind: pretrained, path: owner/model, vocab_size: 512}
model: {architecture: gpt2, norm: pre, depth: 2, d_model: 64, head_dim: 16, context: 64}
grid: {width_multiplier: [1, 2, 4]}
training: {steps: 100, batch_tokens: 2048, learning_rate: 1e-3}
"""


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a plan asked the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("WIDTHLAB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sweep(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path / "storage" / "mini")


def test_a_corpus_that_was_never_fetched_is_planned_with_the_stated_vocabulary(sweep):
    found = planned_data(parse_sweep(BASE, "mini.yaml"), sweep)
    assert (found.data, found.vocab_size, found.known) == (NOT_FETCHED, 512, False)


def test_without_a_vocabulary_the_way_out_is_named(sweep):
    with pytest.raises(InputError, match=r"'owner/model' is not on this machine.*vocab_size"):
        planned_data(parse_sweep(BASE.replace(", vocab_size: 512", ""), "mini.yaml"), sweep)


def test_a_bpe_for_a_corpus_of_the_hub_has_the_vocabulary_it_will_be_trained_for(sweep):
    text = BASE.replace("{kind: pretrained, path: owner/model, ", "{kind: bpe, ")
    pinned = text.replace("owner/data", f"owner/data, revision: {COMMIT}")
    for each in (text, pinned):
        found = planned_data(parse_sweep(each, "mini.yaml"), sweep)
        assert (found.vocab_size, found.known) == (512, False)


def test_bytes_of_a_pinned_corpus_are_known_without_fetching_it(sweep):
    text = BASE.replace("owner/data", f"owner/data, revision: {COMMIT}").replace(
        "{kind: pretrained, path: owner/model, vocab_size: 512}", "{kind: bytes}"
    )
    found = planned_data(parse_sweep(text, "mini.yaml"), sweep)
    assert found.known
    assert found.vocab_size == 257


def test_what_a_run_has_pinned_is_known_to_the_next_plan(sweep):
    config = parse_sweep(BASE, "mini.yaml")
    pinned = parse_sweep(
        BASE.replace("owner/data", f"owner/data, revision: {COMMIT}").replace(
            "owner/model", f"owner/model, revision: {COMMIT}"
        ),
        "mini.yaml",
    )
    grid = expand(pinned, DATA, 512)
    sweep.put("sweep.yaml", resolved_yaml(pinned, grid, DATA, 512).encode())
    found = planned_data(config, sweep)
    assert (found.data, found.vocab_size, found.known) == (DATA, 512, True)
    other = parse_sweep(BASE, "mini.yaml", ["corpus.column=body"])
    assert not planned_data(other, sweep).known


def test_local_data_are_known_as_before(sweep, tmp_path):
    (tmp_path / "a.txt").write_text("one\n" * 9)
    (tmp_path / "b.txt").write_text("two\n" * 9)
    text = BASE.replace("{kind: hub, dataset: owner/data}", f"{{kind: text, paths: [{tmp_path}]}}")
    local = text.replace("{kind: pretrained, path: owner/model, vocab_size: 512}", "{kind: bytes}")
    assert planned_data(parse_sweep(local, "mini.yaml"), sweep).known
    # The corpus is here, the tokenizer is not.
    assert not planned_data(parse_sweep(text, "mini.yaml"), sweep).known


def command(monkeypatch: pytest.MonkeyPatch, text: str, folder: Path, *options: str) -> int:
    path = folder / "mini.yaml"
    path.write_text(text)
    storage = str(folder / "storage")
    monkeypatch.setattr(
        sys, "argv", ["widthlab", "plan", str(path), "--storage", storage, *options]
    )
    try:
        cli.main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


def test_the_command_shows_a_plan_without_ids(monkeypatch, tmp_path, capsys):
    assert command(monkeypatch, BASE, tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert [trial["id"] for trial in found["trials"]] == [None] * 3
    assert command(monkeypatch, BASE, tmp_path) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "note: ids are known once the corpus has been fetched: widthlab run does it" in text
    assert " trial " not in text.partition("note:")[0].partition("every trial")[2]


def test_the_command_says_what_to_state(monkeypatch, tmp_path, capsys):
    text = BASE.replace(", vocab_size: 512", "")
    assert command(monkeypatch, text, tmp_path) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert "tokenizer.vocab_size" in output.err
