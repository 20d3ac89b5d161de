"""A BPE is trained on text from all over the training split, each source by its share."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data import bpe_sample
from trainers.data.bpe_sample import sample
from trainers.data.documents import Corpus, Document, Split

BUDGET = 20_000


class Stream(Corpus):
    """Documents that are made as they are read; nobody knows how many bytes there are."""

    fingerprint = "0" * 16
    total_bytes = None

    def __init__(self, texts: list[str]) -> None:
        self._texts = texts

    def assigned(self) -> Iterator[tuple[Split, Document]]:
        for number, text in enumerate(self._texts):
            yield "heldout" if text.startswith("#") else "train", Document(str(number), text)


@pytest.fixture(autouse=True)
def small_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe_sample, "BPE_TRAINING_BYTES", BUDGET)


def sampled(texts: list[str]) -> list[str]:
    return list(sample(Stream(texts)))


def test_a_small_training_split_is_taken_whole_and_in_order() -> None:
    assert sampled(["one", "#held out", "two"]) == ["one", "two"]


def test_a_stream_of_unknown_length_is_sampled_to_its_end_within_the_budget() -> None:
    """5,000 documents of 20 bytes, five times the budget: places are spread over all of it."""
    taken = [int(text) for text in sampled([f"{number:020}" for number in range(5000)])]
    assert BUDGET / 2 <= 20 * len(taken) <= BUDGET
    assert taken == sorted(set(taken))
    # One of each k in a row is taken, k a power of two: each 500 give 500 / k, or one more or less.
    per_tenth = Counter(number // 500 for number in taken)
    assert all(abs(per_tenth[tenth] - len(taken) / 10) <= 2 for tenth in range(10)), per_tenth


@pytest.mark.parametrize("first", [0.1, 0.5, 0.9])
def test_each_source_has_its_share_of_bytes(first: float) -> None:
    """Sources that follow one another, one in long documents and one in short ones."""
    total = 20 * BUDGET
    long_ones = ["a" * 40 + " " + "a" * 3959 + " "] * round(first * total / 4000)
    short_ones = ["b" * 9 + " "] * round((1 - first) * total / 10)
    letters = Counter("".join(sampled(long_ones + short_ones)))
    assert letters["a"] / (letters["a"] + letters["b"]) == pytest.approx(first, abs=0.05)


@pytest.mark.parametrize("period", [2, 4, 8])
def test_sources_that_take_turns_cannot_fall_into_step(period: int) -> None:
    texts = [("x" if number % period == 0 else "y") * 20 for number in range(32_000)]
    letters = Counter(text[0] for text in sampled(texts))
    expected = 1 / period
    # The standard error of a share among `total` places drawn independently, three times.
    total = letters.total()
    allowed = 3 * (expected * (1 - expected) / total) ** 0.5
    assert letters["x"] / total == pytest.approx(expected, abs=allowed)


def test_one_long_document_is_sampled_to_its_end() -> None:
    words = [f"{number:07}" for number in range(20_000)]
    taken = [int(word) for text in sampled([" ".join(words)]) for word in text.split()]
    assert sum(len(text) for text in sampled([" ".join(words)])) <= BUDGET
    assert taken[0] < 1000
    assert taken[-1] > 19_000


def test_text_without_any_word_end_is_cut_all_the_same() -> None:
    taken = sampled(["\u4e2d" * 40_000])
    assert sum(len(text.encode()) for text in taken) <= BUDGET


def test_a_sample_is_the_same_each_time() -> None:
    texts = [f"{number:020}" for number in range(9000)]
    assert sampled(texts) == sampled(texts)


@given(texts=st.lists(st.text(max_size=20).filter(lambda text: not text.startswith("#"))))
def test_what_fits_is_taken_whole(texts: list[str]) -> None:
    assert "".join(sampled(texts)) == "".join(texts)
