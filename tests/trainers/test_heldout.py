"""What is measured stands for the whole held-out split: every source, and the bytes of its text."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from trainers.data.batches import heldout_starts, windows_in
from trainers.data.sources import BPETokenizer, DataSource, TextFiles
from trainers.data.store import TokenStore, open_store
from trainers.export.weights import trained_model
from trainers.heldout import standard_error, unigram_loss
from trainers.spec import TrialSpec
from trainers.train import train
from trialstore import records

CONTEXT = 16


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """A small source in one script, then a larger one in another."""
    folder = tmp_path_factory.mktemp("two")
    draw = np.random.default_rng(0)
    words = ["river", "king", "film", "war", "city", "light"]
    other = [
        "".join(map(chr, 0x4E00 + draw.choice(40, 120, p=1 / 1.5 ** np.arange(1, 41) / 1.99999982)))
        for _ in range(300)
    ]
    prose = [" ".join(draw.choice(words, 60)) for _ in range(1500)]
    for name, texts in (("a", other), ("b", prose)):
        lines = (json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return DataSource(corpus=TextFiles(paths=[str(folder)]), tokenizer=BPETokenizer(vocab_size=300))


@pytest.fixture
def store(two_sources: DataSource, token_cache: Path) -> TokenStore:
    return open_store(two_sources, token_cache)


@pytest.fixture
def on_two_sources(
    make_spec: Callable[..., TrialSpec], store: TokenStore, two_sources: DataSource
) -> Callable[..., TrialSpec]:
    """A trial on both sources, with fields replaced."""
    return partial(
        make_spec,
        model__vocab_size=300,
        data=store.data_spec.model_dump(),
        source=two_sources.model_dump(),
    )


def losses_of_every_window(trial, store: TokenStore) -> np.ndarray:
    """Of a finished trial's model, in float64, [windows, context]: all that can be measured."""
    model = trained_model(trial).model.double()
    tokens = torch.from_numpy(np.concatenate(list(store.heldout.chunks())).astype(np.int64))
    count = windows_in(len(tokens), CONTEXT)
    inputs = tokens[: count * CONTEXT].view(count, CONTEXT)
    targets = tokens[1 : count * CONTEXT + 1].view(count, CONTEXT)
    with torch.no_grad():
        parts = [
            -torch.log_softmax(model(rows).logits.double(), -1)
            .gather(-1, wanted[..., None])
            .squeeze(-1)
            for rows, wanted in zip(inputs.split(256), targets.split(256), strict=True)
        ]
    return torch.cat(parts).numpy()


@pytest.mark.long
def test_loss_and_bits_per_byte_are_those_of_the_whole_split(
    on_two_sources, trial, diary, store
) -> None:
    tokens = 2048
    spec = on_two_sources(
        training__steps=60, training__batch_tokens=256, evaluation={"every": 60, "tokens": tokens}
    )
    train(spec, trial, diary())
    final = records.get_result(trial)["final"]
    losses = losses_of_every_window(trial, store)
    whole = losses.mean()
    assert abs(final["val_loss"] - whole) < 3 * final["val_loss_se"]
    windows, measured = len(losses), tokens // CONTEXT
    # Bits per byte: all nats over all bytes of all text, less the few tokens of no window.
    text_bytes = store.meta.contents.total("heldout").bytes
    bits = losses.sum() / math.log(2) / text_bytes * (windows * CONTEXT) / losses.size
    se = final["val_loss_se"] / whole * bits
    assert abs(final["val_bits_per_byte"] - bits) < 3 * se
    # The first windows, all of one source, would have given another loss.
    assert abs(losses[:measured].mean() - whole) > 10 * final["val_loss_se"]


@pytest.mark.long
def test_the_whole_split_has_no_sampling_error(on_two_sources, trial, diary, store) -> None:
    tokens = windows_in(len(store.heldout), CONTEXT) * CONTEXT
    spec = on_two_sources(training__steps=1, evaluation={"every": 1, "tokens": tokens})
    train(spec, trial, diary())
    final = records.get_result(trial)["final"]
    assert final["val_loss_se"] == 0
    assert final["val_loss"] == pytest.approx(losses_of_every_window(trial, store).mean(), rel=1e-6)


@pytest.mark.long
def test_a_result_says_what_its_tokens_were_made_of(make_spec, trial, diary) -> None:
    spec = make_spec()
    train(spec, trial, diary())
    store = open_store(spec.source, expected=spec.data)
    tokens = sum(len(part) for part in store.train.chunks())
    data = records.get_result(trial)["data"]
    assert data["train_tokens"] == tokens
    assert data["window_tokens"] == (tokens - 1) // 16 * 16
    assert data["heldout_tokens"] == sum(len(part) for part in store.heldout.chunks())
    assert data["measured_tokens"] == 128
    assert data["passes"] == pytest.approx(10 * 64 / ((tokens - 1) // 16 * 16))
    assert data["lossless"] is True
    assert data["unknown_share"] == 0


def test_frequencies_alone_cost_their_cross_entropy() -> None:
    counts = np.array([5, 2, 0])  # with one more of each: 6, 3 and 1 of 10
    targets = np.array([[0, 0], [1, 2]])
    by_hand = -(2 * math.log(0.6) + math.log(0.3) + math.log(0.1)) / 4
    assert unigram_loss(counts, targets) == pytest.approx(by_hand, rel=1e-12)


def test_the_standard_error_is_the_spread_of_samples_of_a_split_in_two_parts() -> None:
    draw = np.random.default_rng(0)
    split = np.concatenate([draw.normal(6, 0.5, 300), draw.normal(3, 0.2, 900)])
    starts = [heldout_starts(1201, 100, 1, f"corpus {n}") for n in range(2000)]
    samples = [split[windows] for windows in starts]
    spread = np.std([sample.mean() for sample in samples])
    assert spread == pytest.approx(np.sqrt((0.25 * 0.25 + 0.75 * 0.04) / 100 * 11 / 12), rel=0.05)
    found = [standard_error(sample, 100 / 1200) for sample in samples]
    # A little too large, for where the two parts meet; as if drawn anywhere it would be 0.13.
    assert spread < np.mean(found) < 1.4 * spread
    within = [abs(s.mean() - split.mean()) < 3 * se for s, se in zip(samples, found, strict=True)]
    assert np.mean(within) > 0.99


def test_one_window_has_no_standard_error_and_all_have_none_to_tell() -> None:
    assert standard_error(np.array([3.0]), 0.1) is None
    assert standard_error(np.array([3.0]), 1) == 0
    assert standard_error(np.array([3.0, 5.0]), 1) == 0
    # (5 - 3)^2 / 2 over two windows, half of all.
    assert standard_error(np.array([3.0, 5.0]), 0.5) == pytest.approx(np.sqrt(2 / 2 * 0.5))
