"""What a plan says of a corpus that it has not encoded."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainers.data import estimate
from trainers.data.at_hand import resolve
from trainers.data.sources import BPETokenizer, DataSource, TextFiles
from trainers.data.store import open_store


@pytest.fixture
def source(tmp_path: Path) -> DataSource:
    """Words at first and numbers later: other tokens a byte at the end than at the beginning."""
    draw = np.random.default_rng(0)
    folder = tmp_path / "corpus"
    folder.mkdir()
    for name in ("a", "b"):
        texts = [
            " ".join(
                draw.choice(["river", "king"], 30)
                if n < 400
                else draw.integers(0, 10**9, 15).astype(str)
            )
            for n in range(700)
        ]
        (folder / f"{name}.jsonl").write_text(
            "".join(json.dumps({"text": t}) + "\n" for t in texts)
        )
    return DataSource(corpus=TextFiles(paths=[str(folder)]), tokenizer=BPETokenizer(vocab_size=300))


def test_a_small_corpus_is_counted(source: DataSource, tmp_path: Path) -> None:
    found = resolve(source, tmp_path / "cache").contents
    assert found is not None
    assert not found.estimated
    assert found == open_store(source, tmp_path / "cache").meta.contents


def test_a_store_that_is_there_is_believed(source: DataSource, tmp_path: Path, monkeypatch) -> None:
    kept = open_store(source, tmp_path / "cache")
    monkeypatch.setattr(estimate, "SAMPLE_BYTES", 1000)
    assert resolve(source, tmp_path / "cache").contents == kept.meta.contents


def test_tokens_of_a_large_corpus_are_estimated_from_all_of_it(
    source: DataSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = open_store(source, tmp_path / "cache").meta.contents
    monkeypatch.setattr(estimate, "SAMPLE_BYTES", 60_000)
    monkeypatch.setattr(estimate, "EXCERPT", 100)
    found = resolve(source, tmp_path / "elsewhere").contents
    assert found is not None
    assert found.estimated
    for guess, known in zip(found.sources, true.sources, strict=True):
        assert (guess.source, guess.split) == (known.source, known.split)
        assert (guess.documents, guess.bytes) == (known.documents, known.bytes)
        assert guess.tokens == pytest.approx(known.tokens, rel=0.1)
    assert found.total("train").tokens == pytest.approx(true.total("train").tokens, rel=0.03)
    # The first tenth has words alone, and other tokens a byte: a prefix would be far off.
