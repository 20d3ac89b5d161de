"""Ids are those of the whole text, whatever its length; what they stand for adds up to it."""

import json
import unicodedata

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from odd_tokenizers import END, ODD, TRAINING
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from trainers.data import encoded as encoded_module
from trainers.data import tokenizer as module
from trainers.data import tokenizer_parts
from trainers.data.encoded import REFUSED_LOST_SHARE, is_refused, lost_text_problem
from trainers.data.tokenizer import SEPARATOR, ByteTokenizer, Tokenizer, train_bpe
from trainers.data.tokenizer_parts import byte_characters, pieces
from trialstore.errors import InputError

#: Text that is hard on tokenizers: white space in runs, line ends, marks, controls, astral planes.
FRAGMENTS = [
    " ", "  ", "\n", "\r\n", "\t", "\x00", "\x1c", "\x85", "\xa0", "\u180e", "\u2028", "\u200b",
    "'s", "'LL", "don't", "a", "fox", "fox\n jump", "12345", "...", "é", "e\u0301", "ß", "\ufb01",
    "日本", "\U0001f600", "\U00010348", "[UNK]", "##a", "▁", "Ġ", END, SEPARATOR,
]  # fmt: skip
TEXTS = st.one_of(
    st.text(), st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.text(max_size=3))).map("".join)
)


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(360, TRAINING)


@pytest.fixture(scope="module", params=ODD)
def odd(request: pytest.FixtureRequest) -> Tokenizer:
    backend = ODD[request.param]()
    return Tokenizer(backend, backend.token_to_id(END))


def whole_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """What the library gives for the whole text, its file opened anew."""
    backend = tokenizers.Tokenizer.from_str(tokenizer._backend.to_str())
    backend.encode_special_tokens = True
    return list(backend.encode(text, add_special_tokens=False).ids)


# --- whole documents -----------------------------------------------------------------------


@given(text=TEXTS, size=st.integers(1, 8))
def test_cut_documents_have_the_ids_of_the_whole(bpe: Tokenizer, text: str, size: int) -> None:
    assert bpe._parts.may_be_cut
    cut = list(pieces(text, size))
    assert "".join(cut) == text
    ids = [number for piece in cut for number in whole_ids(bpe, piece)]
    assert ids == whole_ids(bpe, text)


def test_no_character_hides_the_end_of_a_word_before_a_blank_or_a_line_end() -> None:
    """All white space, controls, formats and marks: where Python sees none before the cut, the
    words of GPT-2 end there."""
    divide = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str
    every = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    doubtful = [one for one in every if unicodedata.category(one)[0] in "ZCM" and one.isprintable()]
    doubtful += [
        one for one in every if unicodedata.category(one) in ("Zs", "Zl", "Zp", "Cc", "Cf")
    ]
    for blank in " \n":
        cuttable = [one for one in doubtful if len(list(pieces(f"{one}{blank}x", 1))) > 1]
        assert len(cuttable) > 2000
        starts = {start for _, (start, _) in divide("".join(one + blank for one in cuttable))}
        assert set(range(1, 2 * len(cuttable), 2)) <= starts


def test_pieces_are_long_and_cut_where_a_word_ends() -> None:
    assert list(pieces("one two\n\nthree  four", 3)) == ["one", " two", "\n\nthree", "  four"]
    assert list(pieces("one two three", 4)) == ["one two", " three"]
    assert list(pieces("unbroken" * 100, 4)) == ["unbroken" * 100]
    assert list(pieces("", 4)) == [""]


def test_long_documents_are_encoded_in_pieces_and_several_at_a_time(
    bpe: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["".join(TRAINING), "", "short", "\n".join(TRAINING[::-1])]
    expected = [whole_ids(bpe, text) for text in texts]
    given = []
    encodings = Tokenizer._encodings

    def noted(self: Tokenizer, batch: list[str], offsets: bool = False) -> list:
        given.append(batch)
        return encodings(self, batch, offsets)

    monkeypatch.setattr(Tokenizer, "_encodings", noted)
    monkeypatch.setattr(module, "_BATCH", 200)
    monkeypatch.setattr(tokenizer_parts.pieces, "__defaults__", (50,))
    assert [ids.tolist() for ids in bpe.encode_batch(texts)] == expected
    assert len(given) > 20
    assert max(len(piece) for batch in given for piece in batch) < 80


@given(text=TEXTS)
@pytest.mark.long
def test_other_tokenizers_are_given_the_whole_text(odd: Tokenizer, text: str) -> None:
    assert not odd._parts.may_be_cut or odd.unknown_id is None
    assert odd.encode_batch([text, "x", text])[2].tolist() == whole_ids(odd, text)


@pytest.mark.long
def test_a_document_longer_than_a_piece_has_the_ids_of_the_whole(odd: Tokenizer) -> None:
    text = "".join(TRAINING) * 60  # 150,000 characters
    assert len(text) > 2 * tokenizer_parts.PIECE
    assert odd.encode_batch([text])[0].tolist() == whole_ids(odd, text)


# --- what ids stand for --------------------------------------------------------------------


@given(texts=st.lists(TEXTS, max_size=4))
@pytest.mark.long
def test_what_is_measured_adds_up_to_the_text(odd: Tokenizer, texts: list[str]) -> None:
    measured = odd.measure_batch(texts)
    for text, found, ids in zip(texts, measured, odd.encode_batch(texts), strict=True):
        np.testing.assert_array_equal(found.ids, ids)
        assert len(found.text_bytes) == len(ids)
        assert found.text_bytes.sum(dtype=int) == (len(text.encode()) if len(ids) else 0)
        assert found.altered == (odd.decode(ids) != text)
        assert found.characters == sum(not one.isspace() for one in text)
        assert 0 <= found.lost_characters <= found.characters
        assert found.separators == ids.tolist().count(odd.separator)
        if odd.lossless:
            assert not found.altered
            assert not found.lost_characters


@given(text=TEXTS)
def test_tokenizers_that_claim_it_give_every_text_back(bpe: Tokenizer, text: str) -> None:
    for tokenizer in (bpe, ByteTokenizer()):
        assert tokenizer.lossless
        (found,) = tokenizer.measure_batch([text])
        assert tokenizer.decode(found.ids) == text
        assert not found.altered
        np.testing.assert_array_equal(found.text_bytes, bytes_of_each(tokenizer, found.ids))


def bytes_of_each(tokenizer: Tokenizer, ids: np.ndarray) -> list[int]:
    """Independently: how many bytes an id writes, from the token that the library names."""
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    tokens = [tokenizer._backend.id_to_token(int(number)) for number in ids]
    return [len(bytes(byte_of[character] for character in token)) for token in tokens]


@pytest.mark.parametrize(
    ("name", "lossless"),
    [(name, name == "byte_level_split") for name in ODD],
)
def test_only_what_is_proven_is_claimed(name: str, lossless: bool) -> None:
    backend = ODD[name]()
    assert Tokenizer(backend, backend.token_to_id(END)).lossless == lossless


@pytest.mark.parametrize(
    "change",
    [
        lambda backend: setattr(backend, "normalizer", normalizers.NFC()),
        lambda backend: setattr(backend, "decoder", decoders.Fuse()),
        lambda backend: setattr(backend, "pre_tokenizer", pre_tokenizers.ByteLevel()),
        lambda backend: setattr(
            backend,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(" ", "removed"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False),
                ]
            ),
        ),
        lambda backend: setattr(
            backend,
            "pre_tokenizer",
            pre_tokenizers.Sequence(
                [pre_tokenizers.Punctuation("removed"), pre_tokenizers.ByteLevel(False)]
            ),
        ),
        lambda backend: backend.add_tokens([AddedToken("fox", rstrip=True)]),
        lambda backend: backend.add_tokens(["é"]),
    ],
)
def test_any_part_that_changes_text_ends_the_claim(change) -> None:
    backend = ODD["byte_level_split"]()
    change(backend)
    assert not Tokenizer(backend, backend.token_to_id(END)).lossless


def test_words_that_are_unknown_are_lost() -> None:
    backend = tokenizers.Tokenizer(
        models.WordLevel({"[UNK]": 0, END: 1, "ten": 2, "green": 3}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = Tokenizer(backend, 1)
    (found,) = tokenizer.measure_batch(["ten  grün green é"])
    assert found.ids.tolist() == [2, 0, 3, 0]
    assert found.text_bytes.tolist() == [3, 2 + 5, 1 + 5, 1 + 2]
    assert (found.lost_characters, found.characters) == (5, 13)
    assert found.lost_example == "g"
    assert found.altered
    assert tokenizer.unknown_id == 0


def test_characters_that_are_dropped_without_a_word_are_lost() -> None:
    backend = ODD["byte_level_ascii"]()
    tokenizer = Tokenizer(backend, backend.token_to_id(END))
    (found, plain) = tokenizer.measure_batch(["aé bü", "plain"])
    assert tokenizer.decode(found.ids) == "a b"
    assert found.text_bytes.tolist() == [1, 3, 3]
    assert found.lost_characters == 2
    assert found.altered
    assert not plain.altered
    assert tokenizer.measure_batch(["éü"])[0].lost_characters == 2


def test_an_accent_that_is_taken_off_alters_text_and_loses_no_character() -> None:
    backend = ODD["word_pieces"]()
    tokenizer = Tokenizer(backend, backend.token_to_id(END))
    (found,) = tokenizer.measure_batch(["Café see"])
    assert found.altered
    assert found.lost_characters == 0
    assert found.text_bytes.sum() == 9


def test_every_byte_of_a_character_goes_to_its_first_id() -> None:
    backend = ODD["byte_fallback"]()
    (found,) = Tokenizer(backend, 1).measure_batch(["a😀"])
    assert found.text_bytes.tolist() == [1, 0, 4, 0, 0, 0]
    assert not found.altered
    assert not found.lost_characters


@pytest.mark.parametrize(
    "text", ["Tiếng Việt của người", "café naïve", "한국어 텍스트", "\u0cca\u0cd5", "\u09cb"]
)
def test_marks_that_are_composed_with_their_letter_are_not_lost(text: str) -> None:
    """NFC joins them to one character, which the ids hold; its offsets are the letter's alone."""
    backend = ByteTokenizer()._backend
    backend.normalizer = normalizers.NFC()
    tokenizer = Tokenizer(backend, 256)
    decomposed = unicodedata.normalize("NFD", text)
    (found,) = tokenizer.measure_batch([decomposed])
    assert tokenizer.decode(found.ids) == unicodedata.normalize("NFC", text) != decomposed
    assert found.altered
    assert found.lost_characters == 0


def test_a_mark_is_lost_with_its_letter_and_one_that_composes_with_none_by_itself() -> None:
    backend = ByteTokenizer()._backend
    backend.normalizer = normalizers.Replace(tokenizers.Regex("e\u0301|\u0331"), "")
    tokenizer = Tokenizer(backend, 256)
    (found,) = tokenizer.measure_batch(["ae\u0301 q\u0331"])  # no letter is q with a line below
    assert tokenizer.decode(found.ids) == "a q"
    assert found.lost_characters == 3


def test_the_separator_within_a_text_is_counted() -> None:
    """A model of whole words has the separator among its words."""
    backend = ODD["words"]()
    tokenizer = Tokenizer(backend, backend.token_to_id(END))
    (found,) = tokenizer.measure_batch([f"The {END} quick"])
    assert found.separators == 1


def test_text_that_has_no_id_is_named() -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0, END: 1}))
    for encode in (Tokenizer(backend, 1).encode_batch, Tokenizer(backend, 1).measure_batch):
        with pytest.raises(InputError, match=r"tokenizer: .*kind bpe"):
            encode(["b"])


# --- the verdict on what is lost -----------------------------------------------------------


def test_what_is_lost_is_said_with_its_share_and_the_way_out() -> None:
    assert lost_text_problem(0, 1000) is None
    assert lost_text_problem(0, 0) is None
    little = lost_text_problem(5, 1000, examples=["é"])
    assert little is not None
    assert "loses 0.5 % of the text's characters, such as 'é' (U+00E9)" in little
    assert "Bits per byte cannot be given" in little
    much = lost_text_problem(980, 1000, unknown_share=0.98)
    assert much is not None
    assert "loses 98 % of the text's characters; 98 % of the ids are its unknown id" in much
    assert "1 % may be lost" in much
    assert "bpe or bytes" in much


def test_more_than_one_in_a_hundred_is_refused() -> None:
    assert REFUSED_LOST_SHARE == encoded_module.REFUSED_LOST_SHARE == 0.01
    assert not is_refused(10, 1000)
    assert is_refused(11, 1000)
    assert not is_refused(0, 0)


def test_the_id_of_what_is_unknown_is_that_of_the_model() -> None:
    found = {name: Tokenizer(make(), 0).unknown_id for name, make in ODD.items()}
    assert {name for name, number in found.items() if number == 0} == {
        "words", "word_pieces", "unigram", "byte_fallback",
    }  # fmt: skip
    assert found["byte_level_split"] is None


def test_the_hash_covers_how_added_tokens_are_matched() -> None:
    hashes = set()
    for flags in ({}, {"lstrip": True}, {"rstrip": True}, {"single_word": True},
                  {"normalized": False}, {"special": True}):  # fmt: skip
        backend = ODD["byte_level_split"]()
        backend.add_tokens([AddedToken("fox", **flags)])
        hashes.add(Tokenizer(backend, 0).hash)
    assert len(hashes) == 6


def test_the_hash_does_not_cover_what_is_off() -> None:
    backend = ODD["word_pieces"]()
    content = json.loads(backend.to_str())
    assert content["post_processor"]
    plain = tokenizers.Tokenizer.from_str(json.dumps(content | {"post_processor": None}))
    plain.enable_truncation(4)
    assert Tokenizer(backend, 1).hash == Tokenizer(plain, 1).hash
