"""The split by size: a tenth of the bytes, by contents alone, copies always together."""

import json
import random
import unicodedata
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from trainers.data.corpus import Corpus, open_corpus
from trainers.data.cuts import halves, place_of_cut
from trainers.data.documents import content_digest, normalised
from trainers.data.held_out import CUT, HELD_OUT, Sizes, heavy_texts, held_out_codes
from trainers.data.sources import TextFiles


def opened(path: Path) -> Corpus:
    return open_corpus(TextFiles(paths=[str(path)]))


def corpus_of(root: Path, texts: list[str], name: str = "a.jsonl") -> Corpus:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (root / name).write_text(rows)
    return opened(root)


def share(corpus: Corpus) -> float:
    held = sum(len(document.text.encode()) for document in corpus.documents("heldout"))
    trained = sum(len(document.text.encode()) for document in corpus.documents("train"))
    return held / (held + trained)


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(f"word{draw.randrange(1000)}" for _ in range(words))


@pytest.mark.parametrize(
    "words",
    [
        [5000],
        [400] * 2,
        [400] * 5,
        [240] * 9 + [240_000],
        [20] * 3 + [30_000, 40_000],
        [900, 900, 8200],
        [300] * 50,
        list(range(20, 400)),
    ],
    ids=["one", "two", "five", "giant", "two giants", "middling", "fifty", "many"],
)
def test_about_a_tenth_is_held_out_of_any_shape(tmp_path: Path, words: list[int]) -> None:
    corpus = corpus_of(tmp_path, [prose(seed, count) for seed, count in enumerate(words)])
    assert 0.095 <= share(corpus) <= 0.105 or (len(words) < 10 and 0.05 <= share(corpus) <= 0.15)


lengths = st.lists(st.integers(110, 100_000), min_size=2, max_size=60)


@given(lengths)
@settings(deadline=None)
@example([110, 100_000])
@example([1000] * 10)
@pytest.mark.long
def test_the_share_is_near_a_tenth_whatever_the_sizes(lengths: list[int]) -> None:
    texts = [f"{number:05} " + "x" * (length - 6) for number, length in enumerate(lengths)]
    with TemporaryDirectory() as root:
        corpus = corpus_of(Path(root), texts)
        assert 0.05 <= share(corpus) <= 0.15
        assert "".join(sorted(_whole(corpus))) == "".join(sorted(texts))


def _whole(corpus: Corpus) -> list[str]:
    """The documents, those that were cut put together again."""
    texts: dict[str, str] = {}
    for _, document in corpus.assigned():
        name = document.name.partition("#")[0]
        texts[name] = texts.get(name, "") + document.text
    return list(texts.values())


@pytest.mark.parametrize("spread", [2**64, 2**50])  # over all buckets, over a few
@pytest.mark.long
def test_documents_are_held_out_in_the_order_of_their_digests(spread: int) -> None:
    for seed in range(40):
        draw = np.random.default_rng(seed)
        count = int(draw.integers(40, 4000))
        digests = draw.integers(0, spread, count, np.uint64)
        digests[: count // 5] = digests[-(count // 5) :]  # copies
        lengths = draw.integers(100, 300, count)
        lengths[: count // 5] = lengths[-(count // 5) :]
        sizes = Sizes()
        for digest, length in zip(digests.tolist(), lengths.tolist(), strict=True):
            sizes.add(digest, length, length)
        assert heavy_texts(sizes) == []
        codes = held_out_codes(sizes, [], 0)
        assert codes is not None
        groups = sorted(set(digests.tolist()))
        reached = np.cumsum([lengths[digests == group].sum() for group in groups])
        last = groups[int(np.argmin(np.abs(reached - lengths.sum() / 10)))]
        assert (codes == HELD_OUT).tolist() == (digests <= last).tolist()


def test_the_larger_part_is_never_held_out_of_short_texts() -> None:
    sizes = Sizes()
    for digest, length in [(5, 90), (7, 80), (9, 3)]:
        sizes.add(digest, length, length)
    codes = held_out_codes(sizes, heavy_texts(sizes), 0)
    assert codes is not None
    assert codes.tolist() == [0, 0, HELD_OUT]
    two = Sizes()
    for digest, length in [(5, 90), (7, 80)]:
        two.add(digest, length, length)
    codes = held_out_codes(two, heavy_texts(two), 0)
    assert codes is not None
    assert codes.tolist() == [0, HELD_OUT]


def test_a_text_with_its_copies_is_weighed_as_one() -> None:
    sizes = Sizes()
    for digest in [3] * 30 + list(range(2**32, 2**32 + 170)):
        sizes.add(digest, 100, 100)
    (heavy,) = heavy_texts(sizes)
    assert (heavy.digest, heavy.bytes) == (3, 3000)
    codes = held_out_codes(sizes, [heavy], 300)
    assert codes is not None
    assert codes[:30].tolist() == [CUT] * 30
    assert (codes[30:] == HELD_OUT).sum() == 17


# --- twins ---------------------------------------------------------------------------------

FORMS = [
    lambda text: text.replace("\n", "\r\n"),
    lambda text: text.replace("\n", " \n"),
    lambda text: text + "\n\n ",
    lambda text: "\ufeff" + text,
    lambda text: text.replace(" ", "  "),
    lambda text: unicodedata.normalize("NFD", text),
    lambda text: unicodedata.normalize("NFC", text),
]
characters = st.characters(exclude_categories=["Cs"])
words = st.text(characters, min_size=1, max_size=12)
contents = st.lists(words, min_size=1, max_size=60).map(" \n".join)


@given(contents, st.sampled_from(FORMS))
def test_forms_of_a_text_have_one_digest(text: str, form: object) -> None:
    assert content_digest(form(text)) == content_digest(text)  # type: ignore[operator]


def test_other_texts_have_other_digests() -> None:
    texts = ["a b", "ab c", "a.b", "A b", "\u00e9", "e", ""]
    assert len({content_digest(text) for text in texts}) == len(texts)
    assert content_digest("e\u0301 \u00a0x") == content_digest("\u00e9x")


@given(st.lists(contents, min_size=2, max_size=12), st.data())
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@pytest.mark.long
def test_twins_are_never_on_both_sides(texts: list[str], data: st.DataObject) -> None:
    texts = [text for text in texts if normalised(text)]
    forms = data.draw(st.lists(st.sampled_from(FORMS), min_size=len(texts), max_size=len(texts)))
    twins = [form(text) for form, text in zip(forms, texts, strict=True)]
    long = "all else is small beside a text as long as this one is, which has few words " * 3
    with TemporaryDirectory() as root:
        corpus = corpus_of(Path(root), [*texts, *twins, long, long.replace(" ", "\n")])
        sides: dict[str, set[bytes]] = {"train": set(), "heldout": set()}
        for split, document in corpus.assigned():
            sides[split].add(normalised(document.text))
        assert sides["heldout"]
        assert not sides["train"] & sides["heldout"]


def test_a_giant_and_its_twin_are_cut_at_the_same_place(tmp_path: Path) -> None:
    giant = "\n\n".join(prose(seed, 30) for seed in range(100)) + "\u00e9"
    twin = unicodedata.normalize("NFD", giant.replace("\n\n", " ").replace(" ", "\r\n"))
    corpus = corpus_of(tmp_path, [giant, "short " * 40, twin])
    tails = [d.text for d in corpus.documents("heldout") if d.name.endswith("#tail")]
    heads = [d.text for d in corpus.documents("train") if d.name.endswith("#head")]
    assert len({normalised(text) for text in tails}) == 1
    assert len({normalised(text) for text in heads}) == 1
    assert len(set(tails)) == len(set(heads)) == 2


@given(st.permutations(range(30)), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=20)
def test_neither_order_nor_names_matter(order: list[int], draw: random.Random) -> None:
    texts = [prose(seed, 10 + 3 * seed) for seed in range(29)] + [prose(99, 2000)]
    with TemporaryDirectory() as one, TemporaryDirectory() as other:
        first = corpus_of(Path(one), texts)
        names = draw.sample(range(1000), 30)
        for place, name in zip(order, names, strict=True):
            (Path(other) / f"{name}.txt").write_text(texts[place])
        second = opened(Path(other))
        held = [{d.text for d in corpus.documents("heldout")} for corpus in (first, second)]
    assert held[0] == held[1]


# --- where a text is cut -------------------------------------------------------------------


def cut(text: str) -> tuple[str, str]:
    return halves(text, place_of_cut(text))


@pytest.mark.parametrize(
    ("boundary", "others"), [("\n\n", "\n"), ("\r\n\r\n", "\r\n"), ("\n", " "), (" ", "")]
)
def test_a_cut_prefers_a_blank_line_then_a_line_then_a_word(boundary: str, others: str) -> None:
    parts = ["y" * 9 + others] * 91 + [boundary] + ["z" * 9 + others] * 9
    head, tail = cut("".join(parts))
    assert tail == ("z" * 9 + others) * 9
    assert head + tail == "".join(parts)


def test_a_text_of_one_word_is_cut_between_characters() -> None:
    assert cut("x" * 1000) == ("x" * 900, "x" * 100)
    head, tail = cut("e\u0301" * 1000)
    assert head == "e\u0301" * 900
    assert tail == "e\u0301" * 100


def test_a_tail_that_begins_with_a_line_keeps_its_indentation() -> None:
    text = "def f():\n    return 1\n" * 100
    head, tail = cut(text)
    assert head + tail == text
    assert tail.startswith(("def", "    return"))


def test_a_tenth_is_of_the_bytes_and_not_of_the_characters() -> None:
    text = "latin " * 1000 + "\u4e2d\u6587\n" * 1000  # 6000 bytes and 7000
    head, tail = cut(text)
    assert abs(len(tail.encode()) - 1300) <= 7
    assert head + tail == text


@given(st.text(characters, min_size=100, max_size=3000))
@settings(deadline=None)
def test_a_cut_text_is_whole_and_neither_half_is_empty(text: str) -> None:
    if len(normalised(text).decode()) < 25:
        text += "abcdefghijklmnopqrstuvwxyz"
    head, tail = cut(text)
    assert head + tail == text
    assert normalised(head)
    assert normalised(tail)


def test_a_long_text_is_cut_where_a_short_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n".join(prose(seed, 8) + " \u00e9e\u0301" for seed in range(500))
    whole = cut(text)
    monkeypatch.setattr("trainers.data.cuts._CHUNK", 37)
    assert cut(text) == whole
