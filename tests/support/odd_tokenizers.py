"""Tokenizers that normalise, divide or lose text in ways of their own, small and made here."""

import json
from pathlib import Path

import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from trainers.data.tokenizer_parts import byte_characters

END = "</s>"
TRAINING = [
    "The quick brown fox doesn't jump over 1234567 lazy dogs; I'LL see.\n",
    "def f(x):\r\n\treturn x ** 2  # naïve café 2024\n\n\n",
    "日本語のテキスト。Москва, שלום 😀\n",
] * 20
#: Split into words as later models do: digits in threes, line ends with what comes before them.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level_split() -> tokenizers.Tokenizer:
    """Byte-level BPE behind a split of its own."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return _trained(
        backend,
        trainers.BpeTrainer(
            vocab_size=500, initial_alphabet=byte_characters(), show_progress=False
        ),
    )


def byte_level_normalised() -> tokenizers.Tokenizer:
    """Byte-level BPE of text in lower case, composed, without a post-processor."""
    backend = byte_level_split()
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return backend


def byte_level_prefixed() -> tokenizers.Tokenizer:
    """Byte-level BPE that puts a space before every text."""
    backend = byte_level_split()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return backend


def byte_level_ascii() -> tokenizers.Tokenizer:
    """Byte-level BPE without the bytes beyond ASCII: it drops them without a word."""
    backend = tokenizers.Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(byte_characters()[:128])}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([END])
    return backend


def byte_level_added() -> tokenizers.Tokenizer:
    """Byte-level BPE with an added token that lies across words, and one beyond ASCII."""
    backend = byte_level_split()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_tokens([AddedToken("fox\n jump", normalized=False), AddedToken("é")])
    return backend


def words() -> tokenizers.Tokenizer:
    """Whole words; what is unknown is one id."""
    backend = tokenizers.Tokenizer(models.WordLevel(unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return _trained(
        backend,
        trainers.WordLevelTrainer(
            vocab_size=12, special_tokens=["[UNK]", END], show_progress=False
        ),
    )


def word_pieces() -> tokenizers.Tokenizer:
    """BERT's: lower case, no accents, words in pieces, a token put around every text."""
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend = _trained(
        backend,
        trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=["[UNK]", END], show_progress=False
        ),
    )
    backend.post_processor = processors.TemplateProcessing(
        single=f"{END} $A {END}", special_tokens=[(END, backend.token_to_id(END))]
    )
    return backend


def unigram() -> tokenizers.Tokenizer:
    """SentencePiece's: compatibility forms, a mark before every word, pieces by probability."""
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    return _trained(
        backend,
        trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<unk>", END], unk_token="<unk>", show_progress=False
        ),
    )


def byte_fallback() -> tokenizers.Tokenizer:
    """Llama's first: characters and their merges, bytes for what is none of them."""
    pieces = ["<unk>", END, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghij"]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.add_special_tokens([END])
    return backend


ODD = {
    make.__name__: make
    for make in (
        byte_level_split,
        byte_level_normalised,
        byte_level_prefixed,
        byte_level_ascii,
        byte_level_added,
        words,
        word_pieces,
        unigram,
        byte_fallback,
    )
}


def publish(backend: tokenizers.Tokenizer, folder: Path, **config: object) -> Path:
    """A folder such as people publish: the tokenizer, and what its special tokens are."""
    folder.mkdir(parents=True, exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": END} | config))
    return folder


def _trained(backend: tokenizers.Tokenizer, trainer: trainers.BpeTrainer) -> tokenizers.Tokenizer:
    backend.train_from_iterator(TRAINING, trainer)
    backend.add_special_tokens([END])
    return backend
