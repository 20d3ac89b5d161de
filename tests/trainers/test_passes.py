"""A trial goes through every window once a pass, killed and resumed in the midst of one or not."""

import json
from pathlib import Path

import numpy as np
import pytest

from trainers import train as train_module
from trainers.data.batches import training_batch, windows_in
from trainers.data.sources import BytesTokenizer, DataSource, TextFiles
from trainers.data.store import open_store
from trainers.train import train
from trialstore import records
from trialstore.storage import LocalStorage

CONTEXT, SEQUENCES = 16, 16


@pytest.fixture
def short_source(tmp_path: Path) -> DataSource:
    """About 130 windows of training text."""
    path = tmp_path / "short.jsonl"
    draw = np.random.default_rng(0)  # no two windows are alike
    texts = ["".join(map(chr, draw.integers(97, 123, 40))) for _ in range(55)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataSource(corpus=TextFiles(paths=[str(path)]), tokenizer=BytesTokenizer())


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bytes]]:
    """The step and the tokens of every batch that is trained on."""
    found: list[tuple[int, bytes]] = []

    def watched(*arguments: object, step: int, **others: object) -> np.ndarray:
        rows = training_batch(*arguments, step=step, **others)
        found.extend((step, row.tobytes()) for row in rows)
        return rows

    monkeypatch.setattr(train_module, "training_batch", watched)
    return found


@pytest.mark.long
def test_killed_in_a_pass_it_goes_on_with_the_windows_that_are_left(
    make_spec, trial, diary, dying_at, killed, bits, short_source, seen, tmp_path
) -> None:
    store = open_store(short_source)
    count = windows_in(len(store.train), CONTEXT)
    steps = 2 * count // SEQUENCES  # nearly two passes
    spec = make_spec(
        source=short_source.model_dump(),
        data=store.data_spec.model_dump(),
        training__steps=steps,
        training__batch_tokens=SEQUENCES * CONTEXT,
        layout__micro_batch=4,
    )
    whole = LocalStorage(tmp_path / "whole")
    for step in (6, steps - 3):  # before the last checkpoint but one, and in the second pass
        with pytest.raises(killed):
            train(spec, trial, dying_at(step))
    train(spec, trial, diary())
    # What was done again after a checkpoint counts once.
    trained_on = list(dict.fromkeys(seen))
    windows = [row for _, row in sorted(trained_on, key=lambda each: each[0])]
    everything = {row.tobytes() for row in store.train.windows(np.arange(count) * CONTEXT, 17)}
    assert len(everything) == count
    assert set(windows[:count]) == everything
    assert len(set(windows[count:])) == len(windows) - count
    assert len(windows) == steps * SEQUENCES
    passes = steps * SEQUENCES / count
    assert 1.8 < passes <= 2
    assert records.get_result(trial)["data"]["passes"] == pytest.approx(passes)

    seen.clear()
    train(spec, whole, diary())
    assert [row for _, row in seen] == windows
    assert bits(trial) == bits(whole)
